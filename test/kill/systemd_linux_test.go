// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// pid1 stands in for systemd 262 with holdfastd.service and holdfastd.socket, as far as holdfastd can see it: a systemd
// whose fd stores cross updates can't be had outside a virtual machine.
type pid1 struct {
	command  []string
	log      *os.File
	socket   *os.File // holdfastd.socket
	notify   *net.UnixConn
	failures func(format string, args ...any)

	mu       sync.Mutex
	store    []stored // the last one that came first, as service_add_fd_store does (src/core/service.c)
	main     int      // the PID of holdfastd
	ready    chan struct{}
	ended    chan struct{} // of this holdfastd
	stopping bool
	starts   int
	killed   int // the PID of the holdfastd that the test has killed; the test's alone
	// hold is called once, with the process of the next start before it is holdfastd.
	hold func(pid int)
}

type stored struct {
	name string
	fd   int
}

const (
	notifyPath  = "/run/systemd/notify"
	privatePath = "/run/systemd/private"
	storeMax    = 4096
	// ownSession is the session in which PID 1 takes over what is in no other (src/core/luo.c).
	ownSession = "systemd"
)

// boot begins where the kernel before ended.
func bootPID1(ctx context.Context, command []string, log *os.File, failures func(string, ...any)) (*pid1, error) {
	p := &pid1{command: command, log: log, failures: failures}
	if err := p.restore(ctx); err != nil {
		return nil, fmt.Errorf("restoring the store: %w", err)
	}
	// /run lasts as long as the namespace, and so over the updates.
	for _, path := range []string{notifyPath, privatePath, holdfast.Address} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: holdfast.Address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if p.socket, err = listener.File(); err != nil {
		return nil, err
	}
	private, err := net.Listen("unix", privatePath)
	if err != nil {
		return nil, err
	}
	if p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifyPath, Net: "unixgram"}); err != nil {
		return nil, err
	}
	conn, err := p.notify.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	if err := conn.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil || optErr != nil {
		return nil, errors.Join(err, optErr)
	}
	go p.serveNotify()
	go func() {
		for {
			conn, err := private.Accept()
			if err != nil {
				return
			}
			go p.serveBus(conn)
		}
	}()
	return p, p.start()
}

// start starts holdfastd: the sockets first, then what is stored (service_collect_fds). The shell is there for
// $LISTEN_PID, and waits until whoever wants to has a hold of it.
func (p *pid1) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	names, extra := []string{"varlink"}, []*os.File{p.socket}
	for _, s := range p.store {
		fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), s.name)
		defer f.Close()
		names, extra = append(names, s.name), append(extra, f)
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; read go; exec "$0" "$@" </dev/null`}, p.command...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifyPath, "LISTEN_FDS="+strconv.Itoa(len(extra)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.ExtraFiles = extra
	cmd.Stdout, cmd.Stderr = p.log, p.log
	gate, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.main, p.ready, p.ended = cmd.Process.Pid, make(chan struct{}), make(chan struct{})
	p.starts++
	if hold := p.hold; hold != nil {
		p.hold = nil
		hold(p.main)
	}
	gate.Close()
	go p.reap(cmd, pidfd, p.ended)
	return nil
}

// reap starts another one when this one has ended. Nobody waits for the process before that: the kernel would tell the
// waiting thread of a stop that is for the tracer (wait_task_stopped in kernel/exit.c, Linux 7.3).
func (p *pid1) reap(cmd *exec.Cmd, pidfd int, ended chan struct{}) {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for poll[0].Revents == 0 {
		unix.Poll(poll, -1)
	}
	unix.Close(pidfd)
	err := cmd.Wait()
	p.mu.Lock()
	p.main = 0
	stopping := p.stopping
	p.mu.Unlock()
	close(ended)
	if stopping {
		return
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGKILL {
		log, _ := os.ReadFile(p.log.Name())
		p.failures("holdfastd ended by itself: %v\n%s", err, log[max(0, len(log)-1024):])
	}
	if err := p.start(); err != nil {
		p.failures("starting holdfastd: %v", err)
	}
}

// holdNext has the next start held.
func (p *pid1) holdNext(hold func(pid int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = hold
}

// daemon waits until there is a holdfastd that is ready, and isn't the one that was killed.
func (p *pid1) daemon() (int, error) {
	limit := time.After(deadline)
	for {
		p.mu.Lock()
		pid, ready, ended := p.main, p.ready, p.ended
		p.mu.Unlock()
		if pid == p.killed {
			ready = nil
		}
		select {
		case <-ready:
			select {
			case <-ended:
			default:
				return pid, nil
			}
		case <-ended:
		case <-limit:
			return 0, errors.New("holdfastd did not get ready")
		}
		// The next one is on its way.
		time.Sleep(time.Millisecond)
	}
}

// serveNotify is manager_dispatch_notify_fd (src/core/manager.c), for the one unit that there is.
func (p *pid1) serveNotify() {
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(253*4)+unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, _, _, err := p.notify.ReadMsgUnix(data, oob)
		if err != nil {
			return
		}
		var fds []int
		var sender int
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			p.failures("notify socket: %v", err)
			return
		}
		for _, m := range messages {
			if cred, err := unix.ParseUnixCredentials(&m); err == nil {
				sender = int(cred.Pid)
			} else if rights, err := unix.ParseUnixRights(&m); err == nil {
				fds = append(fds, rights...)
			}
		}
		p.notified(sender, string(data[:n]), fds)
	}
}

func (p *pid1) notified(sender int, state string, fds []int) {
	words := map[string]string{}
	for line := range strings.Lines(state) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		words[key] = value
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A message of a process that is gone already may still be taken or not. Either way it is so for all after it.
	if sender != p.main {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return
	}
	switch {
	case words["FDSTORE"] == "1":
		for _, fd := range fds {
			p.keep(words["FDNAME"], fd)
		}
		return
	case words["FDSTOREREMOVE"] == "1":
		p.store = slices.DeleteFunc(p.store, func(s stored) bool {
			if s.name == words["FDNAME"] {
				go unix.Close(s.fd) // asynchronous_close
				return true
			}
			return false
		})
	case words["READY"] == "1":
		select {
		case <-p.ready:
		default:
			close(p.ready)
		}
	}
	for _, fd := range fds { // BARRIER=1
		unix.Close(fd)
	}
}

// keep is service_add_fd_store (src/core/service.c), which tells nobody what it does not keep.
func (p *pid1) keep(name string, fd int) {
	unix.CloseOnExec(fd)
	full := len(p.store) >= storeMax
	if full || slices.ContainsFunc(p.store, func(s stored) bool { return sameDescription(s.fd, fd) }) {
		unix.Close(fd)
		return
	}
	p.store = slices.Insert(p.store, 0, stored{name, fd})
}

// sameDescription tells whether two descriptors are of one open file (F_DUPFD_QUERY is there since Linux 6.10; before,
// systemd asks kcmp(2)).
func sameDescription(a, b int) bool {
	const dupFDQuery = 1024 + 3
	if same, err := unix.FcntlInt(uintptr(a), dupFDQuery, b); err == nil {
		return same == 1
	}
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	same, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && same == 0
}

// serveBus answers what holdfastd asks PID 1 on its private socket.
func (p *pid1) serveBus(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	var hello strings.Builder
	for !strings.HasSuffix(hello.String(), "\r\nBEGIN\r\n") {
		b, err := in.ReadByte()
		if err != nil {
			return
		}
		hello.WriteByte(b)
	}
	if _, err := conn.Write([]byte("OK 0123456789abcdef0123456789abcdef\r\n")); err != nil {
		return
	}
	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		body, err := p.answer(call)
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
		}}
		if err != nil {
			reply.Type = dbus.TypeError
			reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.DBus.Error.Failed")
			body = err.Error()
		}
		reply.Body = []any{body}
		reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body))
		var out bytes.Buffer
		if err := reply.EncodeTo(&out, binary.LittleEndian); err != nil {
			p.failures("answering on the bus: %v", err)
			return
		}
		// The serial number, which only a Conn can give.
		binary.LittleEndian.PutUint32(out.Bytes()[8:], call.Serial())
		if _, err := conn.Write(out.Bytes()); err != nil {
			return
		}
	}
}

// unitFD is an entry of DumpUnitFileDescriptorStore, (suuutuusu).
type unitFD struct {
	Name                 string
	Mode                 uint32
	DevMajor, DevMinor   uint32
	Inode                uint64
	RDevMajor, RDevMinor uint32
	Path                 string
	Flags                uint32
}

func (p *pid1) answer(call *dbus.Message) (any, error) {
	var member string
	call.Headers[dbus.FieldMember].Store(&member)
	if member == "Get" && len(call.Body) == 2 {
		member, _ = call.Body[1].(string)
	}
	switch member {
	case "GetUnitByPID":
		return dbus.ObjectPath("/org/freedesktop/systemd1/unit/holdfastd_2eservice"), nil
	case "Version":
		return dbus.MakeVariant("262 (stand-in)"), nil
	case "Id":
		return dbus.MakeVariant("holdfastd.service"), nil
	case "FileDescriptorStoreMax":
		return dbus.MakeVariant(uint32(storeMax)), nil
	case "FileDescriptorStorePreserve":
		return dbus.MakeVariant("yes"), nil
	case "DumpUnitFileDescriptorStore":
		p.mu.Lock()
		defer p.mu.Unlock()
		list := []unitFD{}
		for _, s := range p.store {
			var st unix.Stat_t
			if err := unix.Fstat(s.fd, &st); err != nil {
				return nil, err
			}
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", s.fd))
			if err != nil {
				return nil, err
			}
			list = append(list, unitFD{Name: s.name, Mode: st.Mode, Inode: st.Ino, Path: path,
				DevMajor: unix.Major(st.Dev), DevMinor: unix.Minor(st.Dev), RDevMajor: unix.Major(st.Rdev), RDevMinor: unix.Minor(st.Rdev)})
		}
		return list, nil
	}
	return nil, fmt.Errorf("the stand-in for PID 1 does not know %q", member)
}

// saved is what PID 1 tells the next one about an entry of its store.
type saved struct {
	Name    string
	Session string `json:",omitempty"` // by its kernel name
	Token   uint64 `json:",omitempty"` // in PID 1's own session
}

// kexec is the end of a boot: holdfastd is stopped, what the store has is made ready for the next kernel, and that takes
// over (luo_preserve_fd_stores in src/core/luo.c; systemd-shutdown holds the sessions open). It returns only if that failed.
func (p *pid1) kexec(ctx context.Context) error {
	p.mu.Lock()
	p.stopping = true
	main, ended := p.main, p.ended
	p.mu.Unlock()
	if main != 0 {
		unix.Kill(main, unix.SIGTERM)
	}
	select {
	case <-ended:
	case <-time.After(deadline):
		return errors.New("holdfastd did not end at SIGTERM")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	own, err := liveupdate.Device{}.Create(ctx, ownSession)
	if err != nil {
		return err
	}
	var list []saved
	for i, s := range p.store {
		if session, err := liveupdate.FromFD(s.fd); err == nil {
			list = append(list, saved{Name: s.name, Session: session.Name()})
			session.Disown()
			continue
		}
		// What is in a session can't be in another, and a marker can't be in any: systemd warns of those.
		token := uint64(i + 1)
		if err := own.PreserveFD(token, s.fd); err == nil {
			list = append(list, saved{Name: s.name, Token: token})
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	raw, err := unix.MemfdCreate("systemd", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.Write(raw, data); err != nil {
		return err
	}
	if err := own.PreserveFD(0, raw); err != nil {
		return err
	}
	return luosim.Kexec()
}

func (p *pid1) restore(ctx context.Context) error {
	device := liveupdate.Device{}
	own, err := device.Retrieve(ctx, ownSession)
	if errors.Is(err, liveupdate.ErrNoSuchSession) {
		return nil
	}
	if err != nil {
		return err
	}
	defer own.Close()
	f, err := own.Retrieve(0)
	if err != nil {
		return err
	}
	defer f.Close()
	var list []saved
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	if err := json.NewDecoder(f).Decode(&list); err != nil {
		return err
	}
	for _, s := range list {
		if s.Session == "" {
			f, err := own.Retrieve(s.Token)
			if err != nil {
				return err
			}
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			f.Close()
			if err != nil {
				return err
			}
			p.store = append(p.store, stored{s.Name, fd})
			continue
		}
		session, err := device.Retrieve(ctx, s.Session)
		if errors.Is(err, liveupdate.ErrNoSuchSession) || errors.Is(err, liveupdate.ErrAlreadyRetrieved) {
			continue // it was one of the kernel before that, and couldn't come over again
		}
		if err != nil {
			return err
		}
		p.store = append(p.store, stored{s.Name, session.Disown()})
	}
	return nil
}
