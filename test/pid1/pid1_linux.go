// SPDX-License-Identifier: MIT

// Package pid1 stands in for systemd 262 with one unit, as far as that unit can see it: its notify socket, its fd store, and
// what PID 1 answers about that on its private socket. A systemd whose fd stores cross updates can't be had outside a
// virtual machine.
package pid1

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Where PID 1 listens.
const (
	NotifyPath  = "/run/systemd/notify"
	privatePath = "/run/systemd/private"
)

// Stored is a descriptor in the unit's fd store.
type Stored struct {
	Name string
	FD   int
}

// PID1 is one. Its fields must not be changed once it listens.
type PID1 struct {
	Unit string
	Max  int // FileDescriptorStoreMax=
	// Fail is told of what can't be.
	Fail func(format string, args ...any)
	// Ready, unless nil, is called at READY=1.
	Ready func()
	// Before, unless nil, is called before a message is taken ("FDSTORE", "FDSTOREREMOVE", "BARRIER", …) or a call answered
	// ("DumpUnitFileDescriptorStore", …). It may take its time, as PID 1 does that is busy. With false the message is lost,
	// and the connection of the call broken off.
	Before func(what string) bool

	mu     sync.Mutex
	main   int
	store  []Stored // the last one that came first, as service_add_fd_store does (src/core/service.c)
	notify *net.UnixConn
	bus    net.Listener
	conns  map[net.Conn]bool
	served sync.WaitGroup
}

// OwnRun puts an empty /run into this process's mount namespace, with room for PID 1's sockets.
func OwnRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making / private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting a tmpfs on /run: %w", err)
	}
	return os.MkdirAll(filepath.Join(filepath.Dir(NotifyPath), "system"), 0o755)
}

// Listen begins. What an earlier one has left of its sockets it removes.
func (p *PID1) Listen() error {
	for _, path := range []string{NotifyPath, privatePath} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var err error
	if p.bus, err = net.Listen("unix", privatePath); err != nil {
		return err
	}
	if p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: NotifyPath, Net: "unixgram"}); err != nil {
		return err
	}
	conn, err := p.notify.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	if err := conn.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil || optErr != nil {
		return errors.Join(err, optErr)
	}
	p.conns = map[net.Conn]bool{}
	p.served.Go(p.serveNotify)
	p.served.Go(func() {
		for {
			conn, err := p.bus.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[conn] = true
			p.mu.Unlock()
			p.served.Go(func() { p.serveBus(conn) })
		}
	})
	return nil
}

// Close ends it, and closes what is in the store.
func (p *PID1) Close() {
	p.notify.Close()
	p.bus.Close()
	p.HangUp()
	p.served.Wait()
	for _, s := range p.store {
		unix.Close(s.FD)
	}
}

// HangUp breaks all connections off, as PID 1 does when it executes itself anew.
func (p *PID1) HangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// SetMain says which process is the unit's main one: only its messages count. 0 is none.
func (p *PID1) SetMain(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.main = pid
}

// Store is what is in the store. The descriptors stay PID 1's.
func (p *PID1) Store() []Stored {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.store)
}

// Put puts something into the store that came by other ways than the notify socket, at its end.
func (p *PID1) Put(s Stored) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store = append(p.store, s)
}

func (p *PID1) before(what string) bool { return p.Before == nil || p.Before(what) }

// serveNotify is manager_dispatch_notify_fd (src/core/manager.c), for the one unit that there is.
func (p *PID1) serveNotify() {
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
			p.Fail("notify socket: %v", err)
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

func (p *PID1) notified(sender int, state string, fds []int) {
	first, _, _ := strings.Cut(state, "=")
	words := map[string]string{}
	for line := range strings.Lines(state) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		words[key] = value
	}
	lost := !p.before(first)
	p.mu.Lock()
	// A message of a process that is gone already may still be taken or not. Either way it is so for all after it.
	lost = lost || sender != p.main
	switch {
	case lost:
	case words["FDSTORE"] == "1":
		for _, fd := range fds {
			p.keep(words["FDNAME"], fd)
		}
		fds = nil
	case words["FDSTOREREMOVE"] == "1":
		p.store = slices.DeleteFunc(p.store, func(s Stored) bool {
			if s.Name == words["FDNAME"] {
				go unix.Close(s.FD) // asynchronous_close
				return true
			}
			return false
		})
	}
	p.mu.Unlock()
	if !lost && words["READY"] == "1" && p.Ready != nil {
		p.Ready()
	}
	for _, fd := range fds { // BARRIER=1
		unix.Close(fd)
	}
}

// keep is service_add_fd_store (src/core/service.c), which tells nobody what it does not keep.
func (p *PID1) keep(name string, fd int) {
	unix.CloseOnExec(fd)
	full := len(p.store) >= p.Max
	if full || slices.ContainsFunc(p.store, func(s Stored) bool { return sameDescription(s.FD, fd) }) {
		unix.Close(fd)
		return
	}
	p.store = slices.Insert(p.store, 0, Stored{name, fd})
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

// serveBus answers what the unit asks PID 1 on its private socket.
func (p *PID1) serveBus(conn net.Conn) {
	defer func() {
		conn.Close()
		p.mu.Lock()
		delete(p.conns, conn)
		p.mu.Unlock()
	}()
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
		member := memberOf(call)
		if !p.before(member) {
			return
		}
		body, err := p.answer(member)
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
			p.Fail("answering on the bus: %v", err)
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

// memberOf is the method, or the property that is to be got.
func memberOf(call *dbus.Message) (member string) {
	call.Headers[dbus.FieldMember].Store(&member)
	if member == "Get" && len(call.Body) == 2 {
		member, _ = call.Body[1].(string)
	}
	return member
}

func (p *PID1) answer(member string) (any, error) {
	switch member {
	case "GetUnitByPID":
		return dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + strings.NewReplacer(".", "_2e", "-", "_2d").Replace(p.Unit)), nil
	case "Version":
		return dbus.MakeVariant("262 (stand-in)"), nil
	case "Id":
		return dbus.MakeVariant(p.Unit), nil
	case "FileDescriptorStoreMax":
		return dbus.MakeVariant(uint32(p.Max)), nil
	case "FileDescriptorStorePreserve":
		return dbus.MakeVariant("yes"), nil
	case "DumpUnitFileDescriptorStore":
		p.mu.Lock()
		defer p.mu.Unlock()
		list := []unitFD{}
		for _, s := range p.store {
			var st unix.Stat_t
			if err := unix.Fstat(s.FD, &st); err != nil {
				return nil, err
			}
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", s.FD))
			if err != nil {
				return nil, err
			}
			list = append(list, unitFD{Name: s.Name, Mode: st.Mode, Inode: st.Ino, Path: path,
				DevMajor: unix.Major(st.Dev), DevMinor: unix.Minor(st.Dev), RDevMajor: unix.Major(st.Rdev), RDevMinor: unix.Minor(st.Rdev)})
		}
		return list, nil
	}
	return nil, fmt.Errorf("the stand-in for PID 1 does not know %q", member)
}
