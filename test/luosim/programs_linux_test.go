// SPDX-License-Identifier: MIT

package luosim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programs are what runs under luosim, by name.
var programs map[string]func(args []string)

func init() {
	programs = map[string]func([]string){
		"script": script, "file": file, "threads": threads, "daemon": daemon, "between": between, "hold": hold,
		"stubborn": stubborn, "forks": forks, "rabbits": rabbits, "rabbit": rabbit, "pass": pass, "around": around, "deny": deny,
		"listener": listener, "filter": filter, "io_uring": ioUring, "wait": wait,
		"rude": rude, "polite": polite, "standard": standard,
		"killed": killed, "busy": busy, "pointers": pointers, "limits": limits,
	}
}

// must ends a program that can't go on.
func must(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s (boot %s): %s: %v\n", os.Args[2], os.Getenv("LUOSIM_BOOT"), what, err)
		os.Exit(99)
	}
}

func boot() int {
	n, err := strconv.Atoi(os.Getenv("LUOSIM_BOOT"))
	must("LUOSIM_BOOT", err)
	return n
}

// script does what its argument number LUOSIM_BOOT says, and prints "BOOT:RESULT" of each step: the name of the
// errno, or ok.
func script(args []string) {
	sessions := map[string]int{}
	for _, step := range strings.Fields(args[boot()-1]) {
		words := append(strings.Split(step, ":"), "", "")
		name := words[1]
		token, _ := strconv.ParseUint(words[2], 10, 64)
		content := name + words[2]
		var err error
		switch words[0] {
		case "open":
			var fd int
			if fd, err = openDevice(); err == nil {
				unix.Close(fd)
			}
		case "create":
			sessions[name], err = withDevice(createSession, name)
		case "retrieve":
			sessions[name], err = withDevice(retrieveSession, name)
		case "preserve":
			var fd int
			fd, err = memfd(content)
			must("memfd", err)
			err = preserve(sessions[name], fd, token)
			unix.Close(fd)
		case "get":
			var fd int
			if fd, err = retrieve(sessions[name], token); err == nil {
				got, readErr := contentOf(fd)
				must("reading", readErr)
				if got != content {
					err = fmt.Errorf("content:%q", got)
				}
				unix.Close(fd)
			}
		case "name":
			var got string
			if got, err = nameOf(sessions[name]); err == nil && got != name {
				err = fmt.Errorf("name:%q", got)
			}
		case "finish":
			err = finish(sessions[name])
		case "close":
			err = unix.Close(sessions[name])
		case "kexec":
			err = kexec()
		case "load":
			err = load()
		case "loadOld":
			err = loadOld()
		case "unload":
			err = unload()
		case "loaded":
			var text []byte
			if text, err = os.ReadFile("/sys/kernel/kexec_loaded"); err == nil && string(text) != words[1]+"\n" {
				err = fmt.Errorf("loaded:%q", text)
			}
		case "reboot":
			err = unix.Reboot(map[string]int{
				"kexec": unix.LINUX_REBOOT_CMD_KEXEC, "restart": unix.LINUX_REBOOT_CMD_RESTART,
				"poweroff": unix.LINUX_REBOOT_CMD_POWER_OFF, "halt": unix.LINUX_REBOOT_CMD_HALT,
			}[name])
		default:
			err = fmt.Errorf("no such step: %s", step)
		}
		result := "ok"
		if err != nil {
			result = err.Error()
		}
		if errno, ok := err.(unix.Errno); ok {
			result = unix.ErrnoName(errno)
		}
		fmt.Printf("%d:%s\n", boot(), result)
	}
}

const sentence = "what a memfd said before the update"

// file carries a memfd with all that a memfd has, and looks at what else there is in the next kernel.
func file([]string) {
	const size, position, seals = 3*4096 + 77, 1234, unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	descriptors := func() string {
		entries, err := os.ReadDir("/proc/self/fd")
		must("descriptors", err)
		var list []string
		for _, e := range entries {
			// The directory itself, and the poller of Go, are of this process's own making.
			link, err := os.Readlink("/proc/self/fd/" + e.Name())
			if err == nil && !strings.Contains(link, "/fd") && !strings.HasPrefix(link, "anon_inode:[event") {
				list = append(list, e.Name())
			}
		}
		return strings.Join(list, ",")
	}
	if boot() == 1 {
		fmt.Println("descriptors", descriptors())
		fd, err := memfd(sentence)
		must("memfd", err)
		must("truncate", unix.Ftruncate(fd, size))
		_, err = unix.Seek(fd, position, io.SeekStart)
		must("seek", err)
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		must("seal", err)
		s, err := withDevice(createSession, "file")
		must("create", err)
		must("preserve", preserve(s, fd, 7))
		other, err := memfd("nobody preserves this")
		must("memfd", err)
		// Descriptors that an exec would keep don't survive a kernel either.
		_, err = unix.FcntlInt(uintptr(other), unix.F_SETFD, 0)
		must("keep", err)
		must("kexec", kexec())
	}
	fmt.Println("descriptors", descriptors())
	s, err := withDevice(retrieveSession, "file")
	must("retrieve session", err)
	fd, err := retrieve(s, 7)
	must("retrieve", err)
	position1, err := unix.Seek(fd, 0, io.SeekCurrent)
	must("seek", err)
	content, err := contentOf(fd)
	must("read", err)
	rest := strings.TrimPrefix(content, sentence)
	seals1, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	must("seals", err)
	fmt.Println("content", len(rest) == size-len(sentence) && strings.Trim(rest, "\x00") == "", "size", len(content) == size,
		"position", position1 == position, "seals", seals1 == seals)
	must("finish", finish(s))
	fmt.Println("older processes", olderProcesses())
}

// olderProcesses counts those of this tree that are from an earlier boot.
func olderProcesses() (n int) {
	for _, p := range processes(os.Getenv(treeVariable)) {
		if p.boot != "" && p.boot != os.Getenv("LUOSIM_BOOT") {
			n++
		}
		unix.Close(p.pidfd)
	}
	return n
}

// threads makes 200 threads do everything at once, while the Go runtime preempts them and a profile is taken by
// SIGPROF, both signals that come at any moment.
func threads([]string) {
	const many = 200
	must("profile", pprof.StartCPUProfile(io.Discard))
	var busy atomic.Bool
	busy.Store(true)
	for range 2 {
		go func() {
			for n := 0; busy.Load(); n++ {
				if n%1e8 == 0 {
					runtime.GC()
				}
			}
		}()
	}
	var mu sync.Mutex
	failed := map[string]int{}
	all := func(do func(i int) error) {
		var threads sync.WaitGroup
		for i := range many {
			threads.Go(func() {
				runtime.LockOSThread()
				if err := do(i); err != nil {
					mu.Lock()
					failed[err.Error()]++
					mu.Unlock()
				}
			})
		}
		threads.Wait()
	}
	// One opener at a time, and everybody's turn comes.
	var inside atomic.Int32
	all(func(int) error {
		for {
			fd, err := openDevice()
			if err == unix.EBUSY {
				runtime.Gosched()
				continue
			}
			if err != nil {
				return err
			}
			if inside.Add(1) != 1 {
				return errors.New("two have the device open")
			}
			inside.Add(-1)
			return unix.Close(fd)
		}
	})
	fmt.Println("opens", failed)
	device, err := openDevice()
	must("open", err)
	clear(failed)
	sessions := make([]int, many)
	all(func(i int) (err error) {
		sessions[i], err = session(device, createSession, fmt.Sprint("s", i))
		return err
	})
	fmt.Println("own names", failed)
	clear(failed)
	all(func(i int) error {
		fd, err := memfd(fmt.Sprint("content", i))
		if err == nil {
			err = preserve(sessions[i], fd, uint64(i))
		}
		name, nameErr := nameOf(sessions[i])
		if nameErr == nil && name != fmt.Sprint("s", i) {
			nameErr = fmt.Errorf("session %d is named %s", i, name)
		}
		return errors.Join(err, nameErr, unix.Close(fd))
	})
	fmt.Println("preserves", failed)
	clear(failed)
	all(func(int) error {
		_, err := session(device, createSession, "one")
		return err
	})
	fmt.Println("one name", failed)
	clear(failed)
	all(func(i int) error { return unix.Close(sessions[i]) })
	all(func(i int) error {
		_, err := session(device, createSession, fmt.Sprint("s", i))
		return err
	})
	fmt.Println("own names again", failed)
	busy.Store(false)
	pprof.StopCPUProfile()
}

// again prepares another program of this package, in a new session of processes as daemons are.
func again(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{"program"}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// forever waits for nothing, with no deadlock for the Go runtime to find.
func forever() {
	for {
		unix.Poll(nil, -1)
	}
}

// daemonize leaves a process that holds a session, and comes back when it does. The process between is gone by then.
func daemonize(name string) {
	r, w, err := os.Pipe()
	must("pipe", err)
	between := again("between", name)
	between.ExtraFiles = []*os.File{w}
	must("between", between.Run())
	w.Close()
	_, err = r.Read(make([]byte, 1))
	must("waiting for the daemon", err)
}

// between is what ends between a daemon and who wants one.
func between(args []string) {
	hold := again("hold", args[0])
	hold.ExtraFiles = []*os.File{os.NewFile(3, "ready")}
	must("hold", hold.Start())
}

// hold holds a session with a file under token 1, says so on descriptor 3, and never ends. With one argument more it
// is stopped, too.
func hold(args []string) {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	fd, err := memfd(args[0] + "1")
	must("memfd", err)
	s, err := withDevice(createSession, args[0])
	must("create", err)
	must("preserve", preserve(s, fd, 1))
	for _, fd := range []int{0, 1, 2, fd} {
		unix.Close(fd)
	}
	_, err = unix.Write(3, []byte("!"))
	if err != nil {
		os.Exit(99)
	}
	if len(args) > 1 {
		must("stop", unix.Kill(os.Getpid(), unix.SIGSTOP))
	}
	forever()
}

// daemon leaves a daemon that holds a session, and ends or does an update, after which the session is there.
func daemon(args []string) {
	if boot() == 1 {
		daemonize("daemon")
		if args[0] == "exit" {
			return
		}
		must("kexec", kexec())
	}
	s, err := withDevice(retrieveSession, "daemon")
	must("retrieve session", err)
	fd, err := retrieve(s, 1)
	must("retrieve", err)
	content, err := contentOf(fd)
	must("read", err)
	fmt.Println(content, olderProcesses())
}

// stubborn has a child and a daemon, and none of them ends when asked to. It says that it is ready, and then waits,
// or does an update.
func stubborn(args []string) {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	if boot() > 1 {
		fmt.Println("older processes", olderProcesses())
		return
	}
	daemonize("stubborn")
	r, w, err := os.Pipe()
	must("pipe", err)
	child := exec.Command(os.Args[0], "program", "hold", "child", "and stop")
	child.ExtraFiles = []*os.File{w}
	must("child", child.Start())
	w.Close()
	_, err = r.Read(make([]byte, 1))
	must("waiting for the child", err)
	fmt.Println("ready")
	if args[0] == "kexec" {
		must("kexec", kexec())
	}
	forever()
}

// forks starts processes that start processes. Each makes a session of its own.
func forks(args []string) {
	name, depth := args[0], args[1]
	device, err := openDevice()
	for err == unix.EBUSY {
		runtime.Gosched()
		device, err = openDevice()
	}
	must("open", err)
	s, err := session(device, createSession, name)
	must("create", err)
	must("close", unix.Close(device))
	got, err := nameOf(s)
	must("name", err)
	if got != name {
		must("name", errors.New(got+" instead of "+name))
	}
	if n, _ := strconv.Atoi(depth); n > 0 {
		var children sync.WaitGroup
		for i := range 4 {
			children.Go(func() { must("child", again("forks", fmt.Sprint(name, i), fmt.Sprint(n-1)).Run()) })
		}
		children.Wait()
	}
	fmt.Println(name)
}

// rabbits runs away from whoever wants to kill it: it starts its successor and ends, and that does the same. After
// some generations it says ready, and then waits for ever, or does an update.
func rabbits(args []string) {
	if boot() > 1 {
		fmt.Println("older processes", olderProcesses())
		return
	}
	r, w, err := os.Pipe()
	must("pipe", err)
	for range 4 {
		first := again("rabbit", "0")
		first.ExtraFiles = []*os.File{w}
		must("rabbit", first.Start())
	}
	_, err = io.ReadFull(r, make([]byte, 4))
	must("waiting for generations", err)
	fmt.Println("ready")
	if args[0] == "kexec" {
		must("kexec", kexec())
	}
	forever()
}

func rabbit(args []string) {
	const some, enough = 20, 10000 // so that those whom nobody kills don't run for ever
	n, err := strconv.Atoi(args[0])
	must("generation", err)
	next := again("rabbit", strconv.Itoa(n+1))
	if n == some {
		unix.Write(3, []byte("!"))
	}
	if n < some {
		next.ExtraFiles = []*os.File{os.NewFile(3, "ready")}
	}
	if n < enough {
		next.Stdout, next.Stderr = nil, nil
		next.Start()
	}
}

// pass gives a session to another process. Its name is taken as long as anybody has it, on the way too.
func pass(args []string) {
	if len(args) > 0 {
		// The other process: take it when told to, and drop it when told to.
		control := os.NewFile(4, "control")
		control.Read(make([]byte, 1))
		oob := make([]byte, unix.CmsgSpace(4))
		_, oobn, _, _, err := unix.Recvmsg(3, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		must("receive", err)
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		must("message", err)
		fds, err := unix.ParseUnixRights(&messages[0])
		must("rights", err)
		name, err := nameOf(fds[0])
		must("name", err)
		fmt.Println("received", name)
		control.Read(make([]byte, 1))
		return
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must("socketpair", err)
	r, w, err := os.Pipe()
	must("pipe", err)
	other := again("pass", "other")
	other.Stdout = nil
	said, err := other.StdoutPipe()
	must("pipe", err)
	other.ExtraFiles = []*os.File{os.NewFile(uintptr(pair[1]), "other"), r}
	must("start", other.Start())
	other.ExtraFiles[0].Close()
	s, err := withDevice(createSession, "passed")
	must("create", err)
	must("send", unix.Sendmsg(pair[0], []byte("!"), unix.UnixRights(s), nil, 0))
	must("close", unix.Close(s))
	try := func(when string) {
		s, err := withDevice(createSession, "passed")
		if err == nil {
			unix.Close(s)
		}
		fmt.Println(when, err)
	}
	try("on its way:")
	w.Write([]byte("!"))
	line, err := bufio.NewReader(said).ReadString('\n')
	must("other", err)
	fmt.Print(line)
	try("with the other:")
	w.Close()
	must("other", other.Wait())
	try("dropped:")
}

// around opens the device in all ways that there are, and what only looks like it. A symbolic link to it in some other
// place is the one way that doesn't lead there: to see that would cost a look at the file system at every open.
func around([]string) {
	must("directory", os.Chdir("/dev"))
	dev, err := unix.Open("/dev", unix.O_PATH|unix.O_CLOEXEC, 0)
	must("open /dev", err)
	scratch, err := os.MkdirTemp("", "luosim-around-")
	must("scratch", err)
	defer os.RemoveAll(scratch)
	must("file", os.WriteFile(scratch+"/liveupdate", []byte("a file"), 0o644))
	var failed []string
	ways := map[string]func() (int, error){
		"open":        func() (int, error) { return unix.Open("/dev/liveupdate", unix.O_RDWR, 0) },
		"openat":      func() (int, error) { return unix.Openat(dev, "liveupdate", unix.O_RDWR, 0) },
		"working dir": func() (int, error) { return unix.Open("liveupdate", unix.O_RDWR, 0) },
		"dots":        func() (int, error) { return unix.Open("/dev/../dev/./liveupdate", unix.O_RDWR, 0) },
		"slashes":     func() (int, error) { return unix.Open("//dev//liveupdate", unix.O_RDWR, 0) },
		"root":        func() (int, error) { return unix.Open("/proc/self/root/dev/liveupdate", unix.O_RDWR, 0) },
		"create":      func() (int, error) { return unix.Open("/dev/liveupdate", unix.O_RDWR|unix.O_CREAT, 0o644) },
		"openat2": func() (int, error) {
			return unix.Openat2(dev, "liveupdate", &unix.OpenHow{Flags: unix.O_RDWR | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH})
		},
	}
	if runtime.GOARCH == "amd64" {
		ways["open(2)"] = func() (int, error) {
			path, err := unix.BytePtrFromString("/dev/liveupdate")
			must("path", err)
			const open = 2 // newer architectures haven't got it, nor has the package unix there
			fd, _, errno := unix.Syscall(open, uintptr(unsafe.Pointer(path)), unix.O_RDWR, 0)
			if errno != 0 {
				return -1, errno
			}
			return int(fd), nil
		}
	}
	for name, open := range ways {
		fd, err := open()
		if err == nil {
			_, err = session(fd, createSession, name)
			unix.Close(fd)
		}
		if err != nil {
			failed = append(failed, name+": "+err.Error())
		}
	}
	slices.Sort(failed)
	fmt.Println("failed", failed)
	must("directory", os.Chdir(scratch))
	content, err := os.ReadFile("liveupdate")
	fmt.Println(string(content), err)
	var stat unix.Stat_t
	must("stat", unix.Stat("/dev/liveupdate", &stat))
	fmt.Println("character device", stat.Mode&unix.S_IFMT == unix.S_IFCHR, unix.Access("/dev/liveupdate", unix.R_OK|unix.W_OK))
}

// install adds a filter that does something to some calls, to this thread and all that come of it.
func install(action uint32, flags uintptr, calls ...uint32) error {
	must("no new privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	code := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	for _, call := range calls {
		code = append(code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: call},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
	}
	code = append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	if errno != 0 {
		return errno
	}
	return nil
}

// deny becomes another program, some of whose calls fail: deny ERRNO CALL,CALL COMMAND ARG...
func deny(args []string) {
	runtime.LockOSThread()
	errno, err := strconv.ParseUint(args[0], 10, 16)
	must("errno", err)
	var calls []uint32
	for _, call := range strings.Split(args[1], ",") {
		n, err := strconv.ParseUint(call, 10, 32)
		must("call", err)
		calls = append(calls, uint32(n))
	}
	must("filter", install(unix.SECCOMP_RET_ERRNO|uint32(errno), 0, calls...))
	must("exec", unix.Exec(args[2], args[2:], os.Environ()))
}

// deviceStillOpens is what a program does after something that luosim had to refuse.
func deviceStillOpens() {
	fd, err := openDevice()
	must("open", err)
	must("close", unix.Close(fd))
	fmt.Println("the device opens")
}

// listener wants to be told of its own calls.
func listener([]string) {
	runtime.LockOSThread()
	fmt.Println(install(unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, unix.SYS_GETPRIORITY))
	deviceStillOpens()
}

// filter has a seccomp filter of its own that needs no listener.
func filter([]string) {
	runtime.LockOSThread()
	must("filter", install(unix.SECCOMP_RET_ERRNO|uint32(unix.EXDEV), 0, unix.SYS_GETPRIORITY))
	_, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	fmt.Println(err)
	deviceStillOpens()
}

func ioUring([]string) {
	var params [120]byte // struct io_uring_params
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 8, uintptr(unsafe.Pointer(&params)), 0)
	fmt.Println(unix.ErrnoName(errno))
	deviceStillOpens()
}

// busy makes and drops sessions for ever, all of one name. It says so once on descriptor 3.
func busy([]string) {
	for n := 0; ; n++ {
		s, err := withDevice(createSession, "busy")
		if err != nil && err != unix.EBUSY {
			must("create", err)
		}
		if err == nil {
			unix.Close(s)
		}
		if n == 20 {
			unix.Write(3, []byte("!"))
		}
	}
}

// killed kills processes in the middle of their calls. What they had is free when they are gone, as their
// descriptors are.
func killed([]string) {
	for range 40 {
		r, w, err := os.Pipe()
		must("pipe", err)
		victim := again("busy")
		victim.ExtraFiles = []*os.File{w}
		must("start", victim.Start())
		w.Close()
		_, err = r.Read(make([]byte, 1))
		must("waiting for the victim", err)
		r.Close()
		must("kill", victim.Process.Kill())
		victim.Wait()
		s, err := withDevice(createSession, "busy")
		must("create", err)
		must("close", unix.Close(s))
	}
	fmt.Println("all free")
}

// page is memory of its own, so that it can be made read-only.
func page() []byte {
	p, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must("mmap", err)
	return p
}

// pointers hands out bad addresses.
func pointers([]string) {
	device, err := openDevice()
	must("open", err)
	call := func(what string, number, a, b, c uintptr) {
		_, _, errno := unix.Syscall6(number, a, b, c, 0, 0, 0)
		fmt.Println(what, unix.ErrnoName(errno))
	}
	fd := uintptr(device)
	call("no argument", unix.SYS_IOCTL, fd, createSession, 0)
	call("argument nowhere", unix.SYS_IOCTL, fd, createSession, 8)
	call("path nowhere", unix.SYS_OPENAT, 0, 8, unix.O_RDWR)

	// Only the size is in memory that is there: the argument crosses into memory that isn't.
	address, err := unix.MmapPtr(-1, 0, nil, uintptr(2*unix.Getpagesize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must("mmap", err)
	must("munmap", unix.MunmapPtr(unsafe.Add(address, unix.Getpagesize()), uintptr(unix.Getpagesize())))
	edge := unsafe.Add(address, unix.Getpagesize()-8)
	*(*uint32)(edge) = uint32(unsafe.Sizeof(sessionArg{}))
	call("argument half there", unix.SYS_IOCTL, fd, createSession, uintptr(edge))

	// The kernel reads the argument, makes the session, can't say so, and drops it.
	readOnly := page()
	arg := (*sessionArg)(unsafe.Pointer(&readOnly[0]))
	arg.size = uint32(unsafe.Sizeof(*arg))
	copy(arg.name[:], "read-only")
	must("mprotect", unix.Mprotect(readOnly, unix.PROT_READ))
	call("argument read-only", unix.SYS_IOCTL, fd, createSession, uintptr(unsafe.Pointer(arg)))
	_, err = session(device, createSession, "read-only")
	fmt.Println("its name is free", err == nil)
}

// limits runs out of descriptors. A session that can't be handed out isn't made.
func limits([]string) {
	device, err := openDevice()
	must("open", err)
	next, err := unix.Dup(device)
	must("dup", err)
	must("close", unix.Close(next))
	var limit unix.Rlimit
	must("limit", unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = uint64(next)
	must("limit", unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	_, err = session(device, createSession, "limits")
	fmt.Println(err)
	_, err = openDevice()
	fmt.Println(err)
	must("limit", unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	_, err = session(device, createSession, "limits")
	fmt.Println(err)
}

// rude ends as the kernel has it when there is a signal, and leaves a child.
func rude([]string) {
	must("child", exec.Command("sleep", "inf").Start())
	fmt.Println("ready")
	forever()
}

// polite ends by itself when there is a signal.
func polite([]string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	fmt.Println("ready")
	<-signals
	os.Exit(7)
}

// standard says what the standard descriptors are.
func standard([]string) {
	for fd := range 3 {
		link, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
		fmt.Fprintln(os.Stderr, fd, link, err)
	}
}

// wait says ready and waits for the end of its input.
func wait([]string) {
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}
