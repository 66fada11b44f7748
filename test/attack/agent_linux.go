// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const (
	driverSocket = "/run/attack/driver"
	giftsSocket  = "/run/attack/gifts"

	sessionName = "ram"
	memoryName  = "memory"
	memorySize  = 8192
)

// secret is how the memory of an owner begins.
func secret(owner string) string { return "the memory of " + owner }

// agent is there in an attacker's unit, session or container, or in a victim's, and does what the driver says: attempts
// in processes of their own, and what a victim does itself.
func agent(role string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var c net.Conn
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // until the driver is there
		if c, err = net.Dial("unix", driverSocket); err == nil {
			break
		}
		if time.Now().After(end) {
			return err
		}
	}
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	fmt.Fprintf(c, "%s uid %d in %s\n", role, os.Getuid(), strings.TrimSpace(strings.TrimPrefix(string(cgroup), "0::")))
	v := &victim{owner: owners[role]}
	if role == "victim" {
		go v.gifts(self)
	}
	for {
		line, err := readLine(c)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if id, ok := strings.CutPrefix(line, "try "); ok {
			cmd := exec.Command(self, "try", id)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, os.Stderr
			cmd.Run()
			fmt.Fprintf(c, "exit %d\n", cmd.ProcessState.ExitCode())
			continue
		}
		fmt.Fprintf(c, "done %s\n", v.do(line))
	}
}

// readLine reads no more than that, as the rest is for somebody else.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

// victim has parked its memory, and wants it back as it was.
type victim struct {
	owner   string
	session int // 0 is none
	memory  int
	next    int
}

// do is what it does; "" is that all went well.
func (v *victim) do(what string) (trouble string) {
	defer func() {
		if p := recover(); p != nil {
			trouble = strings.ReplaceAll(fmt.Sprint(p.(verdict).text), "\n", " ")
		}
	}()
	switch what {
	case "reset":
		v.reset()
	case "check":
		v.check()
	case "acquires later":
		c := dial()
		defer c.close()
		closeFDs(c.call("Acquire", object{"name": "later"}).ok().fds)
	case "parks again":
		c := dial()
		defer c.close()
		c.park(v.session, []string{memoryName}, v.memory).ok()
	case "unpark":
		release(sessionName).ok()
	case "bystander":
		v.bystander()
	default:
		return "what is " + what + "?"
	}
	return ""
}

// acquire is a new session of one's own. It waits until PID 1 has closed what was released before.
func acquire(n string) (session int) {
	c := dial()
	defer c.close()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		r := c.call("Acquire", object{"name": n, "replace": true})
		if !r.is("NameTaken") || time.Now().After(end) {
			return r.session()
		}
	}
}

func preserve(session, memory int) {
	dup := must1(unix.FcntlInt(uintptr(session), unix.F_DUPFD_CLOEXEC, 3))
	s := must1(liveupdate.FromFD(dup))
	defer s.Close()
	must(s.PreserveFD(name.Token(memoryName), memory))
}

// reset parks it anew.
func (v *victim) reset() {
	if r := release(sessionName); !r.is("NoSuchSession") {
		r.ok()
	}
	if v.session != 0 {
		closeFDs([]int{v.session, v.memory})
	}
	v.session = acquire(sessionName)
	v.memory = memory(secret(v.owner))
	preserve(v.session, v.memory)
	c := dial()
	defer c.close()
	c.park(v.session, []string{memoryName}, v.memory).ok()
}

func (v *victim) check() {
	c := dial()
	defer c.close()
	r := c.call("Reclaim", object{"name": sessionName}).ok()
	defer closeFDs(r.fds)
	content := must1(r.file(memoryName))
	if !strings.HasPrefix(content, secret(v.owner)) || len(r.Parameters.Files) != 1 {
		panic(wrong("it got back other memory: %s", r.text))
	}
	if n := len(c.call("List", object{}).ok().Parameters.Sessions); n != 1 {
		panic(wrong("it has %d sessions parked", n))
	}
}

// bystander is served, all of it.
func (v *victim) bystander() {
	v.next++
	n := fmt.Sprintf("by%d", v.next)
	c := dial()
	defer c.close()
	session := c.call("Acquire", object{"name": n}).session()
	defer unix.Close(session)
	m := memory(secret(n))
	defer unix.Close(m)
	preserve(session, m)
	c.park(session, []string{memoryName}, m).ok()
	back := c.call("Reclaim", object{"name": n}).ok()
	defer closeFDs(back.fds)
	if content := must1(back.file(memoryName)); !strings.HasPrefix(content, secret(n)) {
		panic(wrong("it got back other memory"))
	}
	if r := c.call("List", object{}).ok(); !strings.Contains(r.text, n) {
		panic(wrong("its session isn't listed: %s", r.text))
	}
	c.call("Release", object{"name": n}).ok()
}

// gifts are what a victim is careless with: descriptors of its session and its memory, and a connection of a process of
// its unit that has ended.
func (v *victim) gifts(self string) {
	os.Remove(giftsSocket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: giftsSocket, Net: "unix"})
	if err != nil {
		panic(err)
	}
	os.Chmod(giftsSocket, 0o666)
	for {
		c, err := listener.AcceptUnix()
		if err != nil {
			panic(err)
		}
		what, _ := readLine(c)
		raw := -1
		switch what {
		case "session":
			raw = v.session
		case "memory":
			raw = v.memory
		case "connection":
			raw, err = connectionOfTheDead(self)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
		if raw >= 0 {
			c.WriteMsgUnix([]byte{0}, unix.UnixRights(raw), nil)
		}
		c.Close()
	}
}

// connectionOfTheDead is one of a process that has ended and that nobody has waited for.
func connectionOfTheDead(self string) (int, error) {
	cmd, raw, err := connectionOf(self, "connect-and-end")
	if err != nil {
		return -1, err
	}
	// It's a zombie then.
	var info unix.Siginfo
	return raw, unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
}

// connectionOf starts a process that gives its connection to holdfastd to this one, and goes on as the command says.
func connectionOf(self, command string) (*exec.Cmd, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	cmd := exec.Command(self, command)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if command == "connect-and-su" {
		if _, err := cmd.StdinPipe(); err != nil { // it asks for a password there
			return nil, -1, err
		}
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, -1, err
	}
	raw, err := receiveFD(os.NewFile(uintptr(pair[0]), "pair"))
	return cmd, raw, err
}

func receiveFD(f *os.File) (int, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return -1, err
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(patience))
	control := make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:oobn])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("no descriptor came: %v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// gift asks the victim for one.
func gift(what string) int {
	c := must1(net.Dial("unix", giftsSocket))
	defer c.Close()
	fmt.Fprintln(c, what)
	f := must1(c.(*net.UnixConn).File())
	return must1(receiveFD(f))
}

// giveConnection connects, gives its parent the connection and ends, or becomes a program that is root.
func giveConnection(su bool) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return err
	}
	f, err := c.File()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return err
	}
	if !su {
		return nil
	}
	path, err := exec.LookPath("su")
	if err != nil {
		return err
	}
	return syscall.Exec(path, []string{"su"}, os.Environ())
}

// enterCgroup makes a cgroup and goes there.
func enterCgroup(dir string) {
	must(os.MkdirAll(dir, 0o755))
	must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0))
}

// below is a cgroup in one's own.
func below(rest string) string {
	own := must1(os.ReadFile("/proc/self/cgroup"))
	return filepath.Join("/sys/fs/cgroup", strings.TrimSpace(strings.TrimPrefix(string(own), "0::")), rest)
}
