// SPDX-License-Identifier: MIT

package update

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// In a virtual machine the daemons are systemd's, and so are the participants: member@NAME.service, which listens on a
// socket of its name in sockets. One process drives them all, since each that it starts costs a slow machine much.
const sockets = "/run/members/"

// twenty are those of the virtual machine.
func twenty() (members []member) {
	for i := range 19 {
		members = append(members, member{name: fmt.Sprintf("m%d", i)})
	}
	return append(members, member{name: "mute", optional: true, lost: true})
}

func inGuest(t *testing.T, boot string) *host {
	t.Helper()
	if os.Getenv("HFVM_BOOT") != boot {
		t.Skipf("it takes boot %s of a virtual machine: test/vm/update.sh", boot)
	}
	os.Setenv("HOLDFAST_ADDRESS", holdfast.Address)
	os.Setenv("HOLDFAST_UPDATE_ADDRESS", holdfast.UpdateAddress)
	h := &host{t: t}
	for _, m := range twenty() {
		h.participants = append(h.participants, h.attach(m.name))
	}
	return h
}

// attach connects to a participant that systemd has started.
func (h *host) attach(name string) *process {
	h.t.Helper()
	p := &process{t: h.t, answers: make(chan string, 16)}
	var conn net.Conn
	h.eventually(name+" listens", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", sockets+name)
		return err == nil
	})
	p.in = conn
	p.attend(conn)
	return p
}

func (h *host) systemctl(args ...string) {
	h.t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		h.t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// killed has systemd start a service anew, and waits until that answers.
func (h *host) killed(unit, address string) {
	h.t.Helper()
	h.systemctl("kill", "--signal=KILL", unit)
	h.eventually(unit+" answers", func() bool {
		conn, err := varlink.Dial(h.t.Context(), address)
		if err != nil {
			return false
		}
		defer conn.Close()
		_, err = conn.Call(h.t.Context(), "org.varlink.service.GetInfo", nil, nil, nil)
		return err == nil
	})
}

// loadNext loads the real one.
func (h *host) loadNext() {
	h.t.Helper()
	image, err := os.Open("/hfvm/kernel-next")
	if err != nil {
		h.t.Fatal(err)
	}
	defer image.Close()
	if err := unix.KexecFileLoad(int(image.Fd()), -1, nextCommandLine(h.t), unix.KEXEC_FILE_NO_INITRAMFS); err != nil {
		h.t.Fatal(err)
	}
}

func nextCommandLine(t *testing.T) string {
	t.Helper()
	line, err := os.ReadFile("/hfvm/cmdline-next")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(line))
}

// step is something that no kernel is switched by, with everybody running on at its end.
func (h *host) step(what string, do func()) {
	h.t.Helper()
	if h.t.Failed() {
		return
	}
	began := time.Now()
	do()
	fmt.Printf("%s: all run on, after %.1f s\n", what, time.Since(began).Seconds())
}

func (h *host) ready(phase string, n int) {
	h.t.Helper()
	h.comesTo(fmt.Sprintf("%d are ready for %s", n, phase), func(s status) bool {
		ready := 0
		for _, p := range s.Participants {
			if p.State == "ready" {
				ready++
			}
		}
		return s.Phase == phase && ready == n
	})
}

// Called off in each way, and then carried out.
func TestInGuest(t *testing.T) {
	h := inGuest(t, "1")
	h.comesTo("all are there", func(s status) bool { return len(s.Participants) == len(h.participants) })
	const odd = 7 // the one that it hangs on
	begin := func(manner, phase string, args ...string) func() result {
		t.Helper()
		h.participants[odd].manner(manner)
		h.loadNext()
		wait := h.start(append([]string{"update", "--yes"}, args...)...)
		h.ready(phase, len(h.participants)-1)
		return wait
	}

	h.step("nothing loaded", func() {
		h.tool("update", "--yes").failed(t, 1, "no kernel is loaded")
		h.heardNothing()
	})
	h.step("wrong usage", func() {
		h.tool("update", "--yes", "--initrd", "/x").failed(t, 2, "there is none")
		h.heardNothing()
	})
	h.step("something would be lost", func() {
		h.loadNext()
		holding := h.command("holdfast", "acquire", "ram", "--", "sleep", "1000")
		if err := holding.Start(); err != nil {
			t.Fatal(err)
		}
		h.eventually("somebody has a session that isn't committed", func() bool {
			return h.tool("check").status == 3
		})
		h.tool("update", "--yes").failed(t, 3, "not committed")
		kill(holding)
		h.heardNothing()
	})
	h.step("a veto", func() {
		h.participants[odd].manner("veto")
		h.loadNext()
		h.tool("update", "--yes").failed(t, 4, "vetoes: not today")
		h.runsOn("vetoes: not today")
	})
	h.step("a deadline", func() {
		h.participants[odd].manner("hang")
		h.loadNext()
		h.tool("update", "--yes", "--timeout", "5s").failed(t, 4, "m7 (/member@m7.service) is late")
		h.runsOn("did not answer to preparing in time")
	})
	h.step("a participant is killed", func() {
		wait := begin("hang", "preparing")
		h.kill(odd)
		wait().failed(t, 4, "m7 (/member@m7.service) is gone")
		h.participants[odd] = h.attach("m7")
		others := h.participants
		h.participants = append(append([]*process{}, others[:odd]...), others[odd+1:]...)
		h.eachRunsOn("the connection of m7 (/member@m7.service) ended")
		h.participants = others
		h.over()
	})
	for _, c := range []struct{ manner, phase string }{{"hang", "preparing"}, {"hang-quiesce", "quiescing"}} {
		h.step("holdfast cancel while "+c.phase, func() {
			wait := begin(c.manner, c.phase)
			if got := h.tool("cancel", "--reason", "second thoughts"); got.status != 0 {
				t.Errorf("cancel: %+v", got)
			}
			wait().failed(t, 1, "second thoughts")
			h.runsOn("second thoughts")
		})
		h.step("holdfastd is killed while "+c.phase, func() {
			wait := begin(c.manner, c.phase)
			h.killed("holdfastd.service", holdfast.Address)
			wait().failed(t, 1, "holdfastd ended")
			h.runsOn("holdfastd ended")
		})
		h.step("holdfast-updated is killed while "+c.phase, func() {
			wait := begin(c.manner, c.phase)
			h.killed("holdfast-updated.service", holdfast.UpdateAddress)
			wait().failed(t, 1, "holdfast-updated ended")
			h.runsOn("the connection to holdfast-updated broke")
		})
	}
	h.step("a late vote, and a closed terminal", func() {
		const stale = "io.holdfast.Update.StaleVote"
		late := h.joinRaw("late")
		h.loadNext()
		ended := h.onTerminal("update", "--yes")
		first := late.hears("preparing")
		ended()
		h.ready("preparing", len(h.participants)) // it goes on
		cancelled := h.start("cancel", "--reason", "enough")
		late.hears("aborted")
		if got := late.votes(first.Round, "preparing", true); got != stale {
			t.Errorf("a vote of an aborted round: %q", got)
		}
		late.votes(first.Round, "aborted", true)
		late.hears("resumed")
		cancelled().is(t, 0)
		h.runsOn("enough")

		h.loadNext()
		wait := h.start("update", "--yes")
		late.hears("preparing")
		h.ready("preparing", len(h.participants))
		if got := late.votes(first.Round, "preparing", true); got != stale {
			t.Errorf("a vote of an earlier round: %q", got)
		}
		if got := h.phase("preparing"); got.of("late") != "waiting" {
			t.Errorf("a late vote counts: %+v", got)
		}
		late.leave()
		wait().failed(t, 4, "late (/hfvm.service) is gone")
		h.runsOn("the connection of late (/hfvm.service) ended")
	})

	if t.Failed() {
		return
	}
	fmt.Println("and now a good one")
	slow, extends, mute := h.participants[3:5], h.participants[5], h.participants[19]
	for _, p := range slow {
		p.manner("hang")
	}
	extends.manner("extend")
	mute.manner("hang")
	ended := h.onTerminal("update", "--yes", "--timeout", "10s", "/hfvm/kernel-next", "--cmdline", nextCommandLine(t))
	extends.sees("extended")
	h.comesTo("all but these are ready", func(s status) bool {
		return s.of("m18") == "ready" && s.of("m3") == "waiting" && s.of("m4") == "waiting" && s.of("m5") == "waiting" && s.of("mute") == "waiting"
	})
	ended()
	for _, p := range slow {
		p.do("go")
	}
	// From here on it is holdfast-updated's alone. PID 1 ends this process.
	signals := make(chan os.Signal)
	<-signals
}

// kill ends the process of a participant, by what its socket says of it.
func (h *host) kill(i int) {
	h.t.Helper()
	raw, err := h.participants[i].in.(*net.UnixConn).SyscallConn()
	if err != nil {
		h.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var who *unix.Ucred
		if who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			err = syscall.Kill(int(who.Pid), syscall.SIGKILL)
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// All whose sessions were committed have them back, each its own.
func TestInNextGuest(t *testing.T) {
	h := inGuest(t, "2")
	back := 0
	for i, m := range twenty() {
		h.participants[i].back(m)
		if !m.lost {
			back++
		}
	}
	// What that one had may have been lost, and nobody else's.
	settled := h.tool("wait", "--settled", "-t", "10s")
	settled.failed(t, 4, "not settled after 10s: waiting for mute of /member@mute.service is waiting (", "which was late")
	if n := strings.Count(settled.stderr, " of /"); n != 1 {
		t.Errorf("%d are waited for: %s", n, settled.stderr)
	}
	if !t.Failed() {
		fmt.Printf("%d of %d got back what they had, byte for byte; the other one never answered\n", back, len(h.participants))
	}
}
