// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/test/fuse"
)

// Who attacks.
const (
	unit      = "unit"      // a service with a user of its own and a delegated cgroup, which a rule lets have sessions and act for mallory/…
	login     = "login"     // a user's login session
	manager   = "manager"   // a unit of that user's own manager, called as the victim is; a rule lets it have sessions
	crontab   = "crontab"   // that user's crontab
	container = "container" // root in a container with user namespaces, of systemd-nspawn
	hostRoot  = "host-root" // root in one without, in box0.service: the host's root, but for its namespaces
	machine   = "machine"   // a virtual machine's scope, whose name somebody else has chosen
	docker    = "docker"    // a container with cgroups below no slice, whose own manager runs a unit called as the victim is
)

// owners are those that the victims are, by the agent's role.
var owners = map[string]string{
	"victim":   "/victim.service",
	"rootcron": "/cron.service",
	"vm":       "qemu/vm-1",
	"lxc":      "qemu/lxc/c1",
}

// An attempt is to be refused by holdfastd, and to succeed where that lacks a check.
type attempt struct {
	id     string
	who    string
	wants  string
	mutant string // that lets it
	victim string // the role; "victim" if empty
	scope  string // machine: the name of its scope
	do     func() verdict
}

var attempts = []attempt{
	// To get another's session, with its memory.
	{id: "same-name", who: unit, wants: "the victim's session by asking for its name", mutant: "one-digest", do: func() verdict {
		return reclaims(object{"name": sessionName}, "victim", "NoSuchSession")
	}},
	{id: "kernel-name", who: unit, wants: "it by giving its kernel name for a name", mutant: "raw-names", do: func() verdict {
		return reclaims(object{"name": name.Kernel(owners["victim"], sessionName)}, "victim", "NoSuchSession")
	}},
	{id: "inner-unit", who: hostRoot, wants: "to be taken for the victim in a cgroup victim.service of its own", mutant: "innermost-unit", do: func() verdict {
		enterCgroup(below("victim.service"))
		return reclaims(object{"name": sessionName}, "victim", "NotPermitted")
	}},
	{id: "users-unit", who: manager, wants: "the same by a unit victim.service of the user's manager", mutant: "innermost-unit", do: func() verdict {
		return reclaims(object{"name": sessionName}, "victim", "NoSuchSession")
	}},
	{id: "other-tree", who: docker, wants: "the same by a unit victim.service in a container's tree", mutant: "any-place", do: func() verdict {
		return reclaims(object{"name": sessionName}, "victim", "NotPermitted")
	}},
	{id: "inner-machine", who: unit, wants: "a machine's session in a cgroup machine.slice/machine-….scope of its own", mutant: "part-of-a-path", victim: "vm", do: func() verdict {
		enterCgroup(below(vmPath))
		return reclaims(object{"name": sessionName}, "vm", "NotPermitted")
	}},
	{id: "users-machine", who: manager, wants: "the same below the user's manager", mutant: "part-of-a-path", victim: "vm", do: func() verdict {
		enterCgroup(filepath.Join(below(""), "../..", vmPath))
		return reclaims(object{"name": sessionName}, "vm", "NotPermitted")
	}},
	{id: "containers-machine", who: container, wants: "the same in the container's cgroups", mutant: "part-of-a-path", victim: "vm", do: func() verdict {
		enterCgroup(below(vmPath))
		return reclaims(object{"name": sessionName}, "vm", "NotPermitted")
	}},
	{id: "needless-escape", who: machine, scope: `machine-qemu\x2d7\x2dvm\x2d\x31.scope`, wants: `vm-1's session as a machine called vm\x2d\x31`, mutant: "escaped-without-need", victim: "vm", do: reclaimsVM},
	{id: "capital-escape", who: machine, scope: `machine-qemu\x2d7\x2dvm\x2D1.scope`, wants: `the same as vm\x2D1`, mutant: "capital-escapes", victim: "vm", do: reclaimsVM},
	{id: "no-escape", who: machine, scope: `machine-qemu\x2d7\x2dvm-1.scope`, wants: "the same as vm-1 with nothing escaped", mutant: "not-escaped", victim: "vm", do: reclaimsVM},
	{id: "escaped-slash", who: machine, scope: `machine-qemu\x2d7\x2dlxc\x2fc1.scope`, wants: "another rule's owner qemu/lxc/c1 as a machine called lxc/c1", mutant: "slash-in-a-capture", victim: "lxc", do: func() verdict {
		return reclaims(object{"name": sessionName}, "lxc", "NotPermitted")
	}},
	{id: "connection-of-the-dead", who: unit, wants: "it by the connection of a process of the victim's that has ended", mutant: "the-dead", do: byDeadConnection},
	{id: "connection-in-a-login", who: login, wants: "the same from a login session", mutant: "the-dead", do: byDeadConnection},
	{id: "set-uid-program", who: crontab, wants: "the session of root's crontab, by a connection of a process that has become su", mutant: "uid-of-now", victim: "rootcron", do: bySetUID},
	{id: "users-crontab", who: crontab, wants: "the session of root's crontab, which is in the same unit", mutant: "any-uid", victim: "rootcron", do: func() verdict {
		return reclaims(object{"name": sessionName}, "rootcron", "NotPermitted")
	}},
	{id: "root-of-ones-own", who: crontab, wants: "the same as root of a user namespace of its own", mutant: "any-uid", victim: "rootcron", do: func() verdict {
		return inUserNamespace("root-of-ones-own-inside")
	}},
	{id: "containers-root", who: container, wants: "a session of the unit that the container runs in", mutant: "any-uid", do: acquires},
	{id: "any-session", who: login, wants: "any session at all", mutant: "no-policy", do: acquires},
	{id: "subject-pidfd", who: unit, wants: "it by showing the victim's pidfd, with a rule to act for others", mutant: "act-for-anybody", do: byPIDFD},
	{id: "subject-pidfd-no-rule", who: manager, wants: "the same with no rule to act for anybody", mutant: "act-for-anybody", do: byPIDFD},
	{id: "subject-owner", who: unit, wants: "it by naming the victim's owner, with a rule to act for others", mutant: "act-for-anybody", do: byOwner},
	{id: "subject-owner-no-rule", who: hostRoot, wants: "the same with no rule to act for anybody", mutant: "act-for-anybody", do: byOwner},
	{id: "subject-not-a-pidfd", who: hostRoot, wants: "to have holdfastd ask its FUSE file who it is", mutant: "subject-of-anything", do: func() verdict {
		f := must1(fuse.Open(fuse.Poll, fuse.Ioctl))
		defer f.End()
		c := dial()
		defer c.close()
		must(c.write(message("Identify", object{"sessionFileDescriptor": 0, "subject": object{"pidFileDescriptor": 1}}), gift("session"), int(f.Fd())))
		if f.Asked(fuse.Poll, 2*time.Second) {
			return got("its file was asked")
		}
		r := must1(c.receive())
		return r.unless("InvalidParameter")
	}},

	// To keep or to squat what is another's.
	{id: "parks-anothers", who: unit, wants: "to park the victim's session as its own", mutant: "anybody-parks", do: parksAnothers},
	{id: "parks-anothers-too", who: manager, wants: "the same, as a second one", mutant: "anybody-parks", do: parksAnothers},
	{id: "parks-anothers-as-root", who: hostRoot, wants: "the same, as root", mutant: "anybody-parks", do: parksAnothers},
	{id: "is-it-mine", who: login, wants: "holdfastd to say that the victim's session is its own", mutant: "everybodys", do: func() verdict {
		r := dial().call("Identify", object{"sessionFileDescriptor": 0}, gift("session")).ok()
		if r.Parameters.Yours {
			return got("%s", r.text)
		}
		return not("%s", r.text)
	}},
	{id: "squats-a-name", who: unit, wants: "the victim to find a name taken that it hasn't used yet", mutant: "one-digest", do: func() verdict {
		c := dial()
		defer c.close()
		r := c.call("Acquire", object{"name": "later"}).ok()
		defer closeFDs(r.fds)
		return unlessTrouble("victim acquires later")
	}},
	{id: "squats-memory", who: unit, wants: "the victim not to be able to park memory that it shares with it", mutant: "a-file-once", do: func() verdict {
		mustBeWell("victim unpark")
		shared := gift("memory")
		own := acquire("own")
		defer unix.Close(own)
		c := dial()
		defer c.close()
		c.park(own, []string{memoryName}, shared).ok()
		v := unlessTrouble("victim parks again")
		release("own")
		return v
	}},
	{id: "replaces", who: unit, wants: "to replace the victim's parked session by a new one of its own", mutant: "one-digest", do: func() verdict {
		c := dial()
		defer c.close()
		closeFDs(c.call("Acquire", object{"name": sessionName, "replace": true, "fresh": true}).fds)
		return unlessTrouble("victim check")
	}},

	// To delete what is another's, or to learn of it.
	{id: "releases-by-name", who: manager, wants: "to release the victim's session by its name", mutant: "one-digest", do: func() verdict {
		return dial().call("Release", object{"name": sessionName}).unless("NoSuchSession")
	}},
	{id: "releases-by-kernel-name", who: login, wants: "to release it by its kernel name", mutant: "anybody-sees-all", do: releasesByKernelName},
	{id: "container-releases", who: container, wants: "the same as root in a container", mutant: "anybody-sees-all", do: releasesByKernelName},
	{id: "host-root-releases", who: hostRoot, wants: "the same as the host's root in a container", mutant: "containers-administer", do: releasesByKernelName},
	{id: "releases-for-another", who: unit, wants: "to release it in the victim's name", mutant: "act-for-anybody", do: func() verdict {
		return dial().call("Release", object{"name": sessionName, "subject": object{"owner": owners["victim"]}}).unless("NotPermitted")
	}},
	{id: "lists-all", who: manager, wants: "to see all sessions", mutant: "anybody-sees-all", do: func() verdict {
		return dial().call("List", object{"all": true}).unless("NotPermitted")
	}},
	{id: "host-root-lists-all", who: hostRoot, wants: "the same as the host's root in a container", mutant: "containers-administer", do: func() verdict {
		return dial().call("List", object{"all": true}).unless("NotPermitted")
	}},
	{id: "lists", who: unit, wants: "others' sessions in its own list", mutant: "list-of-all", do: func() verdict {
		r := dial().call("List", object{}).ok()
		if strings.Contains(r.text, name.Kernel(owners["victim"], sessionName)) {
			return got("%s", r.text)
		}
		return not("%s", r.text)
	}},

	// More than its share.
	{id: "other-names", who: unit, wants: "sessions of names that its rule hasn't", mutant: "any-name", do: func() verdict {
		return dial().call("Acquire", object{"name": "forbidden"}).unless("NotPermitted")
	}},
	{id: "quota", who: unit, wants: "to park more sessions than its rule says", mutant: "no-quota", do: func() verdict {
		c := dial()
		defer c.close()
		for i := range maxParked + 1 {
			n := fmt.Sprintf("own%d", i)
			defer release(n)
			s := acquire(n)
			defer unix.Close(s)
			if r := c.park(s, nil); i == maxParked || r.Error != "" {
				return r.unless("QuotaExceeded")
			}
		}
		panic("unreachable")
	}},
	{id: "quota-at-once", who: unit, wants: "the same with all of them at once", mutant: "quota-of-what-is-done", do: func() verdict {
		const all = 2 * maxParked
		c := dial()
		defer c.close()
		var sessions []int
		for i := range all {
			n := fmt.Sprintf("own%d", i)
			defer release(n)
			sessions = append(sessions, acquire(n))
			defer unix.Close(sessions[i])
		}
		replies, errors := make([]*reply, all), make([]error, all)
		var done sync.WaitGroup
		for i, s := range sessions {
			c := dial()
			defer c.close()
			done.Go(func() {
				replies[i], errors[i] = c.try("Park", object{"sessionFileDescriptor": 0, "files": []object{}}, s)
			})
		}
		done.Wait()
		parked := 0
		for i, r := range replies {
			must(errors[i])
			if r.Error == "" {
				parked++
			} else if !r.is("QuotaExceeded") {
				return wrong("got %s", r.text)
			}
		}
		if parked > maxParked {
			return got("%d are parked", parked)
		}
		return not("%d are parked", parked)
	}},
	{id: "fills-the-store", who: unit, wants: "the store to be full of its own", mutant: "no-share", do: func() verdict {
		c := dial()
		defer c.close()
		n := 128
		for i := 0; i < maxParked && n > 0; {
			session := fmt.Sprintf("own%d", i)
			s := acquire(session)
			defer unix.Close(s)
			var names []string
			var fds []int
			for i := range n {
				names = append(names, fmt.Sprintf("f%d", i))
				fds = append(fds, memory(""))
			}
			r := c.park(s, names, fds...)
			closeFDs(fds)
			if r.is("KeeperFull") {
				n /= 2
				unix.Close(s)
				continue
			}
			r.ok()
			defer release(session)
			i++
		}
		return othersServed()
	}},
	{id: "too-fast", who: manager, wants: "sessions faster than its rule says", mutant: "no-rate", do: func() verdict {
		c := dial()
		defer c.close()
		for range burst + 1 {
			if r := c.call("Reclaim", object{"name": "none"}); !r.is("NoSuchSession") {
				return r.unless("RateLimited")
			}
		}
		return got("%d at once", burst+1)
	}},
	{id: "too-fast-in-many", who: manager, wants: "the same from many units of its own", mutant: "inner-units-count", do: func() verdict {
		apps := filepath.Join(below(""), "..")
		c := dial()
		defer c.close()
		for i := range 2 * burst {
			if i%burst == 0 {
				enterCgroup(fmt.Sprintf("%s/many%d.service", apps, i))
			}
			if r := c.call("Reclaim", object{"name": "none"}); !r.is("NoSuchSession") {
				return r.unless("RateLimited")
			}
		}
		return got("%d at once", 2*burst)
	}},
	{id: "many-connections", who: crontab, wants: "all places for connections", mutant: "any-number-of-connections", do: func() verdict {
		for range 4096 + 64 {
			defer dial().close()
		}
		return othersServed()
	}},
	{id: "connections-in-many", who: unit, wants: "more places than a unit has, from many units of its own", mutant: "inner-units-count", do: func() verdict {
		own := below("")
		admitted := 0
		for i := range 3 {
			enterCgroup(fmt.Sprintf("%s/many%d.service", own, i))
			for range 60 {
				c := dial()
				defer c.close()
				if r, err := c.try("Describe", object{}); err == nil && r.Error == "" {
					admitted++
				}
			}
		}
		if admitted > 64 {
			return got("it has %d", admitted)
		}
		return not("it has %d", admitted)
	}},
	{id: "says-nothing", who: login, wants: "others to wait while it says nothing", mutant: "one-connection-at-a-time", do: func() verdict {
		defer dial().close()
		return othersServed()
	}},
	{id: "half-a-message", who: login, wants: "to keep what half messages take for longer than is allowed", mutant: "slow-messages", do: func() verdict {
		c := dial()
		defer c.close()
		must(c.write([]byte(`{"method":`)))
		began := time.Now()
		c.c.SetReadDeadline(began.Add(8 * time.Second))
		if _, err := c.c.Read(make([]byte, 1)); os.IsTimeout(err) {
			return got("holdfastd still waits")
		}
		return not("holdfastd hung up after %.0f s", time.Since(began).Seconds())
	}},
	{id: "long-message", who: crontab, wants: "to have a message of 8 MiB taken", mutant: "long-messages", do: func() verdict {
		c := dial()
		defer c.close()
		m := append([]byte(strings.Repeat(" ", 8<<20)), message("Describe", object{})...)
		if err := c.write(m); err != nil {
			return not("%v", err)
		}
		return must1(c.receive()).unless("InvalidParameter")
	}},
	{id: "descriptors", who: login, wants: "descriptors that no method takes to stay open in holdfastd", mutant: "descriptors-stay", do: func() verdict {
		pipe := make([]int, 2)
		must(unix.Pipe2(pipe, unix.O_CLOEXEC))
		var fds []int
		for range 100 {
			fds = append(fds, pipe[1])
		}
		c := dial()
		c.call("Describe", object{}, fds...).ok()
		c.close()
		unix.Close(pipe[1])
		if n := must1(unix.Poll([]unix.PollFd{{Fd: int32(pipe[0])}}, 3000)); n == 0 { // POLLHUP, without being asked for
			return got("they stay open")
		}
		return not("they are closed")
	}},
	{id: "all-descriptors", who: hostRoot, wants: "holdfastd to have no descriptors left", mutant: "few-descriptors", do: allDescriptors},

	// By what it sends along.
	{id: "not-memory", who: unit, wants: "to have a pipe kept as a file", mutant: "any-file", do: func() verdict {
		pipe := make([]int, 2)
		must(unix.Pipe2(pipe, unix.O_CLOEXEC))
		return parksWith(memoryName, pipe[1])
	}},
	{id: "path-to-memory", who: unit, wants: "to have a path to memory kept, which keeps none", mutant: "paths-too", do: func() verdict {
		m := memory("")
		return parksWith(memoryName, must1(unix.Open(fmt.Sprintf("/proc/self/fd/%d", m), unix.O_PATH|unix.O_CLOEXEC, 0)))
	}},
	{id: "file-of-its-own", who: hostRoot, wants: "the keeper to wait for its FUSE file, and others for the keeper", mutant: "any-file", do: func() verdict {
		f := must1(fuse.Open(fuse.Getattr))
		defer f.End()
		session := acquire("own")
		defer unix.Close(session)
		c := dial()
		defer c.close()
		must(c.write(message("Park", object{"sessionFileDescriptor": 0, "files": files([]string{"f"})}), session, int(f.Fd())))
		f.Asked(fuse.Getattr, time.Second)
		return othersServed()
	}},
	{id: "session-of-its-own", who: hostRoot, wants: "holdfastd to ask its FUSE file as if it were a session", mutant: "any-session", do: func() verdict {
		f := must1(fuse.Open(fuse.Ioctl))
		defer f.End()
		c := dial()
		defer c.close()
		must(c.write(message("Identify", object{"sessionFileDescriptor": 0}), int(f.Fd())))
		if f.Asked(fuse.Ioctl, 2*time.Second) {
			return got("its file was asked")
		}
		return must1(c.receive()).unless("NotASession")
	}},
	{id: "lines-in-a-name", who: unit, wants: "to end holdfastd by a file's name that PID 1 reads as a request", mutant: "any-file-name", do: func() verdict {
		session := acquire("own")
		defer unix.Close(session)
		defer release("own")
		r, err := dial().try("Park", object{"sessionFileDescriptor": 0, "files": files([]string{"x\nWATCHDOG=trigger"})}, session, memory(""))
		if err != nil {
			return got("%v", err)
		}
		return r.unless("InvalidParameter")
	}},
	{id: "leased-memory", who: unit, wants: "the keeper to wait for its lease on a file, and others for the keeper", mutant: "waits-for-a-lease", do: func() verdict {
		signal.Ignore(unix.SIGIO) // that somebody wants it
		first := memory("")
		m := must1(unix.Open(fmt.Sprintf("/proc/self/fd/%d", first), unix.O_RDWR|unix.O_CLOEXEC, 0))
		unix.Close(first)
		must1(unix.FcntlInt(uintptr(m), unix.F_SETLEASE, unix.F_WRLCK))
		session := acquire("own")
		defer unix.Close(session)
		c := dial()
		defer c.close()
		must(c.write(message("Park", object{"sessionFileDescriptor": 0, "files": files([]string{"a", "b"})}), session, m, m))
		return othersServed()
	}},
	{id: "spoils-the-batch", who: unit, wants: "others' parking to fail along with its own", mutant: "one-fails-all-fail", do: spoilsTheBatch},
}

// What the rules say.
const (
	maxParked = 8
	burst     = 100
	vmPath    = `machine.slice/machine-qemu\x2d1\x2dvm\x2d1.scope`
)

func find(id string) *attempt {
	if id == "root-of-ones-own-inside" {
		return &attempt{do: func() verdict { return reclaims(object{"name": sessionName}, "rootcron", "NotPermitted") }}
	}
	for i := range attempts {
		if attempts[i].id == id {
			return &attempts[i]
		}
	}
	return nil
}

// reclaims tries to get the memory of a victim.
func reclaims(parameters object, role string, errors ...string) verdict {
	c := dial()
	defer c.close()
	return c.call("Reclaim", parameters).unlessMemory(owners[role], errors...)
}

func reclaimsVM() verdict { return reclaims(object{"name": sessionName}, "vm", "NotPermitted") }

func acquires() verdict { return dial().call("Acquire", object{"name": "own"}).unless("NotPermitted") }

func byDeadConnection() verdict {
	c := connOf(gift("connection"))
	defer c.close()
	return c.call("Reclaim", object{"name": sessionName}).unlessMemory(owners["victim"], "NotPermitted")
}

// bySetUID uses the connection of a process that executes su, which is root while it waits for a password.
func bySetUID() verdict {
	cmd, raw, err := connectionOf(must1(os.Executable()), "connect-and-su")
	must(err)
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		status := string(must1(os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))))
		if strings.Contains(status, "\nUid:\t1000\t0\t") {
			break
		}
		if time.Now().After(end) {
			return wrong("su isn't root: %s", status)
		}
	}
	c := connOf(raw)
	defer c.close()
	return c.call("Reclaim", object{"name": sessionName}).unlessMemory(owners["rootcron"], "NotPermitted")
}

// inUserNamespace makes another attempt as root of a user namespace.
func inUserNamespace(id string) verdict {
	cmd := exec.Command(must1(os.Executable()), "try", id)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
	}
	out, err := cmd.Output()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		return wrong("%v", err)
	}
	return verdict{cmd.ProcessState.ExitCode(), strings.TrimSpace(strings.TrimPrefix(string(out), "verdict "))}
}

func byPIDFD() verdict {
	// Whose connection it was is no secret, and a pidfd of it may be had by anybody.
	c := must1(net.Dial("unix", giftsSocket))
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	must(err)
	pidfd := -1
	must(raw.Control(func(s uintptr) { pidfd, err = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD) }))
	must(err)
	h := dial()
	defer h.close()
	return h.call("Reclaim", object{"name": sessionName, "subject": object{"pidFileDescriptor": 0}}, pidfd).unlessMemory(owners["victim"], "NotPermitted")
}

func byOwner() verdict {
	return reclaims(object{"name": sessionName, "subject": object{"owner": owners["victim"]}}, "victim", "NotPermitted")
}

func parksAnothers() verdict {
	c := dial()
	defer c.close()
	return c.park(gift("session"), []string{memoryName + "-of-another"}, memory("other memory")).unless("NotOwner")
}

func releasesByKernelName() verdict {
	return dial().call("Release", object{"kernelName": name.Kernel(owners["victim"], sessionName)}).unless("NotPermitted")
}

func release(n string) *reply {
	c := dial()
	defer c.close()
	return c.call("Release", object{"name": n})
}

// unlessTrouble is the verdict of an attempt to bring somebody in trouble.
func unlessTrouble(what string) verdict {
	if trouble := ask(what); trouble != "" {
		return got("%s: %s", what, trouble)
	}
	return not("%s: well", what)
}

func mustBeWell(what string) {
	if trouble := ask(what); trouble != "" {
		panic(wrong("%s: %s", what, trouble))
	}
}

// parksWith tries to have a file kept beside a session of its own.
func parksWith(name string, raw int) verdict {
	c := dial()
	defer c.close()
	session := acquire("own")
	defer unix.Close(session)
	defer release("own")
	return c.park(session, []string{name}, raw).unless("InvalidParameter")
}

// allDescriptors has each of many connections wait for the rest of a message that came with all descriptors that there can
// be, anew when holdfastd hangs up.
func allDescriptors() verdict {
	m := memory("")
	fds := make([]int, 131)
	for i := range fds {
		fds[i] = m
	}
	var there sync.WaitGroup
	for range 700 {
		there.Add(1)
		go func() {
			for first := true; ; first = false {
				c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"})
				if err == nil {
					_, _, err = c.WriteMsgUnix([]byte(`{"method":`), unix.UnixRights(fds...), nil)
				}
				if first {
					there.Done()
				}
				if err != nil {
					return
				}
				c.Read(make([]byte, 1))
				c.Close()
			}
		}()
	}
	there.Wait()
	return othersServed()
}

// spoilsTheBatch parks memory under two names that can't be opened a second time, while others park too.
func spoilsTheBatch() verdict {
	m := memory("")
	must(unix.Fchmod(m, 0))
	stop := make(chan struct{})
	var done sync.WaitGroup
	for i := range maxParked {
		session := acquire(fmt.Sprintf("own%d", i))
		for range 4 {
			c := dial()
			done.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := c.try("Park", object{"sessionFileDescriptor": 0, "files": files([]string{"a", "b"})}, session, m, m); err != nil {
						return
					}
				}
			})
		}
	}
	v := othersServed()
	close(stop)
	done.Wait()
	return v
}
