// SPDX-License-Identifier: MIT

// Package shutdown learns from logind that a kexec is coming, before anything is stopped, and holds it up.
//
// A delay inhibitor gives programs time, as long as InhibitDelayMaxSec= of logind says; it can't call anything off. A block
// inhibitor refuses every shutdown, as long as it is held. Who asks PID 1 itself (systemctl start kexec.target, --force,
// --ignore-inhibitors), as holdfast-updated does, passes both by, and so does everything on a host without logind.
package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	login1  = "org.freedesktop.login1"
	manager = login1 + ".Manager"

	// retryMin and retryMax are for a logind that was started again, and for one that isn't there.
	retryMin = time.Second
	retryMax = time.Minute
	// askTimeout bounds a call to logind.
	askTimeout = 25 * time.Second
	// lateTimeout is for an answer that is on its way when it isn't wanted any more.
	lateTimeout = time.Second
)

// Watch has programs made ready when logind is about to stop the host for a kexec.
type Watch struct {
	// Prepare makes ready. The host isn't stopped before it returns, or the end of its context, which is when logind waits
	// no longer or the shutdown was called off.
	Prepare func(ctx context.Context)
	// Block refuses every shutdown by way of logind besides.
	Block bool
	Log   *slog.Logger
	// Address is the bus's; "" is the system's.
	Address string
}

// Run watches until ctx ends. Where there is no bus or no logind it goes on looking for one.
func (w *Watch) Run(ctx context.Context) {
	var told string
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		began := time.Now()
		err := w.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMax {
			pause, told = retryMin, ""
		}
		if text := err.Error(); text != told {
			w.Log.Warn("a plain systemctl kexec can't be held up for programs in scopes", "reason", text)
			told = text
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// connect gives a connection that ends when it is closed: ctx is for its making only.
func (w *Watch) connect(ctx context.Context) (*dbus.Conn, error) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	var conn *dbus.Conn
	var err error
	if w.Address == "" {
		conn, err = dbus.ConnectSystemBus(dbus.WithContext(lasting))
	} else {
		conn, err = dbus.Connect(w.Address, dbus.WithContext(lasting))
	}
	if err != nil {
		cancel()
		return nil, err
	}
	if !stop() {
		conn.Close()
		return nil, ctx.Err()
	}
	return conn, nil
}

// watch returns when the connection ends.
func (w *Watch) watch(ctx context.Context) error {
	conn, err := w.connect(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the system bus: %w", err)
	}
	defer conn.Close()
	l := &logind{Watch: w, conn: conn}
	defer l.end()
	// More than logind sends before it waits for an answer.
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(login1), dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdownWithMetadata")},
		{dbus.WithMatchSender(login1), dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown")},
		// A logind that was started again knows its inhibitors; one that was absent doesn't.
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, login1)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("asking the system bus for signals: %w", err)
		}
	}
	if err := l.inhibit(ctx); err != nil {
		return err
	}
	w.Log.Info("holds up a kexec by way of logind until everybody is ready", "block", w.Block)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, open := <-signals:
			if !open {
				return errors.New("the system bus hung up")
			}
			if err := l.signal(ctx, s); err != nil {
				return err
			}
		case <-l.prepared:
			l.let()
		}
	}
}

// logind is the state of one connection.
type logind struct {
	*Watch
	conn         *dbus.Conn
	delay, block *os.File
	told         bool // of the type of the shutdown that is coming
	cancel       context.CancelFunc
	prepared     chan struct{} // closed when Prepare has returned; nil where it doesn't run
}

// inhibit takes the inhibitors that aren't held.
func (l *logind) inhibit(ctx context.Context) error {
	take := func(f **os.File, mode, why string) error {
		if *f != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		call := l.conn.Object(login1, "/org/freedesktop/login1").Go(manager+".Inhibit", 0, make(chan *dbus.Call, 1), "shutdown", "Holdfast", why, mode)
		// The answer has a descriptor, which the bus's library closes for nobody.
		select {
		case <-call.Done:
		case <-ctx.Done():
			select {
			case <-call.Done:
			case <-time.After(lateTimeout):
				return fmt.Errorf("asking logind for a %s inhibitor: %w", mode, ctx.Err())
			}
		}
		var fd dbus.UnixFD
		if err := call.Store(&fd); err != nil {
			return fmt.Errorf("asking logind for a %s inhibitor: %w", mode, err)
		}
		*f = os.NewFile(uintptr(fd), mode+" inhibitor")
		return nil
	}
	if err := take(&l.delay, "delay", "programs are made ready before the kernel is switched"); err != nil {
		return err
	}
	if l.Block {
		return take(&l.block, "block", "the kernel is switched with holdfast update only")
	}
	return nil
}

func (l *logind) signal(ctx context.Context, s *dbus.Signal) error {
	switch s.Name {
	case "org.freedesktop.DBus.NameOwnerChanged":
		if len(s.Body) == 3 && s.Body[0] == login1 && s.Body[2] == "" {
			return errors.New("logind has ended")
		}
		return nil
	case manager + ".PrepareForShutdownWithMetadata", manager + ".PrepareForShutdown":
	default:
		return nil
	}
	var coming, ok bool
	if len(s.Body) > 0 {
		coming, ok = s.Body[0].(bool)
	}
	if !ok {
		return nil
	}
	if !coming {
		l.told = false
		l.stop()
		return l.inhibit(ctx)
	}
	// logind sends the signal with the type first (send_prepare_for(), src/login/logind-dbus.c, systemd 255 and newer).
	if l.told {
		return nil
	}
	l.told = true
	kind := ""
	if len(s.Body) > 1 {
		if metadata, ok := s.Body[1].(map[string]dbus.Variant); ok {
			kind, _ = metadata["type"].Value().(string)
		}
	}
	if kind != "kexec" {
		l.let()
		return nil
	}
	l.prepare(ctx)
	return nil
}

func (l *logind) prepare(ctx context.Context) {
	usec := uint64((5 * time.Second).Microseconds()) // logind's default
	asking, done := context.WithTimeout(ctx, askTimeout)
	var max dbus.Variant
	err := l.conn.Object(login1, "/org/freedesktop/login1").CallWithContext(asking, "org.freedesktop.DBus.Properties.Get", 0, manager, "InhibitDelayMaxUSec").Store(&max)
	done()
	if err == nil {
		err = max.Store(&usec)
	}
	if err != nil {
		l.Log.Warn("could not ask logind how long it waits", "reason", err)
	}
	wait := time.Duration(min(usec, uint64(time.Hour.Microseconds()))) * time.Microsecond
	l.Log.Info("logind is about to stop the host for a kexec: everybody is made ready first", "most", wait)
	ctx, l.cancel = context.WithTimeout(ctx, wait)
	prepared := make(chan struct{})
	l.prepared = prepared
	go func() {
		defer close(prepared)
		l.Prepare(ctx)
	}()
}

// stop ends what Prepare does.
func (l *logind) stop() {
	if l.prepared != nil {
		l.cancel()
		<-l.prepared
		l.prepared = nil
	}
}

// let has logind go on.
func (l *logind) let() {
	l.stop()
	if l.delay != nil {
		l.delay.Close()
		l.delay = nil
	}
}

func (l *logind) end() {
	l.let()
	if l.block != nil {
		l.block.Close()
	}
}
