// SPDX-License-Identifier: MIT

package updated

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

// answerTimeout is how long holdfastd may take to say that it is there.
const answerTimeout = 5 * time.Second

// stillTimeout is how long one that was there may take to say that it still is. Somebody's veto waits for it.
const stillTimeout = time.Second

// SwitchKernel has PID 1 switch to the loaded kernel. Where that isn't systemd there is nobody to stop anything, and the kernel
// is told at once.
func SwitchKernel(ctx context.Context) error {
	booted, err := systemd.Booted()
	if err != nil {
		return err
	}
	if booted {
		return systemd.Kexec(ctx)
	}
	return kexec.Reboot()
}

// UnloadKernel drops the loaded kernel.
func UnloadKernel(context.Context) error { return kexec.Unload() }

// WatchOrchestrator makes sure that the holdfastd at address answers, and watches that process until ctx ends.
func WatchOrchestrator(ctx context.Context, address string) (Watched, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return Watched{}, err
	}
	ended, answers := make(chan struct{}), make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(ended)
		defer stop()
		defer conn.Close()
		for in := bufio.NewReader(conn); ; {
			if _, err := in.ReadBytes(0); err != nil {
				return
			}
			select {
			case answers <- struct{}{}:
			default:
			}
		}
	}()
	var asking sync.Mutex
	ask := func(patience time.Duration) error {
		asking.Lock()
		defer asking.Unlock()
		select {
		case <-answers: // to a question whose asker had no patience left
		default:
		}
		conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte(`{"method":"org.varlink.service.GetInfo"}` + "\x00")); err != nil {
			return err
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-answers:
			return nil
		case <-ended:
			return io.EOF
		case <-timer.C:
			return os.ErrDeadlineExceeded
		}
	}
	// Without an answer it may be systemd alone that holds the socket.
	if err := ask(answerTimeout); err != nil {
		conn.Close()
		return Watched{}, fmt.Errorf("asking at %s: %w", address, err)
	}
	return Watched{ended, func() bool {
		err := ask(stillTimeout)
		return err == nil || errors.Is(err, os.ErrDeadlineExceeded) // slow, and not dead
	}}, nil
}
