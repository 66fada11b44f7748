// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// The script's output goes through a FIFO to a process that outlives it, and the whole shutdown, and
// copies it to the port. The port itself would do badly: /dev/stdout can't be opened once more. So
// would a terminal, with colours and pagers, and a pipe, which kills a writer that outlives its reader.
const (
	runDir        = "/run/hfvm"
	fifo          = runDir + "/output"
	messageSocket = runDir + "/messages"
)

// A Message is what the guest tells the host, one JSON object a line.
type Message struct {
	Kind string `json:"kind"` // "boot", "pass" or "fail"
	Boot int    `json:"boot"`
	Text string `json:"text,omitempty"` // the release of the kernel of a boot; why it failed
}

// openFIFO opens the output for reading and writing at once: that never blocks, and a writer with a
// reading end of its own is never killed by SIGPIPE.
func openFIFO() (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("making %s: %w", fifo, err)
	}
	// Not os.OpenFile, which would make it non-blocking, for the script too.
	fd, err := unix.Open(fifo, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", fifo, err)
	}
	return os.NewFile(uintptr(fd), fifo), nil
}

// openPort opens a port for writing, once it is there: the driver learns of its ports one after the
// other, some time after it found their device.
func openPort(name string) (*os.File, error) {
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(events)
	if _, err := unix.InotifyAddWatch(events, filepath.Dir(name), unix.IN_CREATE); err != nil {
		return nil, err
	}
	for {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.ENOENT:
			if _, err := unix.Read(events, make([]byte, 4096)); err != nil && err != unix.EINTR {
				return nil, err
			}
		case unix.EINTR:
		default:
			return nil, fmt.Errorf("opening %s: %w", name, err)
		}
	}
}

// output copies from the FIFO to the port, and passes messages on in their place among the output.
type output struct {
	mu   sync.Mutex // around taking something from the FIFO and writing it to the port
	fifo int
	port *os.File
}

// runOutput is the service hfvm-output.service, and a part of the init of a guest without a system.
func runOutput([]string) error {
	f, err := openFIFO()
	if err != nil {
		return err
	}
	defer f.Close()
	port, err := openPort(outputPort)
	if err != nil {
		return err
	}
	o := &output{fifo: int(f.Fd()), port: port}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: messageSocket})
	if err != nil {
		return err
	}
	failed := make(chan error)
	go func() { failed <- o.serve(listener) }()
	go func() { failed <- o.copy() }()
	return <-failed
}

func (o *output) copy() error {
	readable := []unix.PollFd{{Fd: int32(o.fifo), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(readable, -1); err != nil && err != unix.EINTR {
			return err
		}
		if err := o.drain(); err != nil {
			return err
		}
	}
}

// drain copies what is in the FIFO now.
func (o *output) drain() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	size, err := unix.IoctlGetInt(o.fifo, unix.TIOCINQ) // FIONREAD
	if err != nil || size == 0 {
		return err
	}
	buf := make([]byte, size)
	n, err := unix.Read(o.fifo, buf)
	if err != nil {
		return err
	}
	_, err = o.port.Write(buf[:n])
	return err
}

func (o *output) serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			var m Message
			if err := json.NewDecoder(conn).Decode(&m); err != nil {
				return
			}
			if err := errors.Join(o.drain(), send(m)); err != nil {
				fmt.Fprintln(os.Stderr, "hfvm-output:", err)
			}
		}()
	}
}

// tell tells the host something, after all the output so far.
func tell(m Message) error {
	conn, err := net.Dial("unix", messageSocket)
	if err != nil {
		// Nobody copies yet, so there is no output to wait for.
		return send(m)
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(m); err != nil {
		return fmt.Errorf("telling the host: %w", err)
	}
	_, err = io.Copy(io.Discard, conn) // its end is the answer
	return err
}

// send writes a message to the port. One process at a time: a second opener would get EBUSY.
func send(m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	turn, err := os.Open(ConfigFile)
	if err != nil {
		return fmt.Errorf("telling the host: %w", err)
	}
	defer turn.Close()
	if err := unix.Flock(int(turn.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("telling the host: %w", err)
	}
	f, err := openPort(messagePort)
	if err != nil {
		return fmt.Errorf("telling the host: %w", err)
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}
