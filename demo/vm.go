// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// silence is for how long nothing may be seen.
const silence = 5 * time.Second

// showMachine runs vm.sh: on real kernels and systemd, in QEMU, with a QEMU inside of that.
func showMachine(ctx context.Context) error {
	fmt.Print("A virtual machine of QEMU runs on a host, which is a virtual machine here too. Its guest has drawn a word, has filled 16 MiB\n" +
		"of its memory with what follows from it, and at each tick looks at all of that. The host's kernel is changed twice, under it.\n\n")
	t := &guestStory{doing: "the root file system, the kernels and the programs are made, where they aren't there yet", changed: time.Now()}
	m, err := start(ctx, nested)
	if err != nil {
		return err
	}
	defer m.stop()
	t.doing = "the host boots"
	lines := m.told(ctx)
	quiet := time.NewTicker(silence)
	defer quiet.Stop()
	for open := true; open; {
		var line string
		select {
		case line, open = <-lines:
			if !open {
				break
			}
			printed, err := t.hear(line, time.Now())
			if err != nil {
				return err
			}
			if printed {
				quiet.Reset(silence)
			}
		case <-quiet.C:
			fmt.Printf("  … %s (%.0f s)\n", t.doing, time.Since(t.changed).Seconds())
		}
	}
	if err := m.cmd.Wait(); ctx.Err() != nil {
		return errors.New("stopped")
	} else if err != nil {
		return fmt.Errorf("the machine did not get to the end: %w", err)
	}
	if t.kernels != updates+1 || t.chapters != updates {
		return fmt.Errorf("the host told of %d kernels and %d updates, and not of %d and %d", t.kernels, t.chapters, updates+1, updates)
	}
	return nil
}

// nested is the host, with what it needs to run a machine.
func nested(ctx context.Context, dir string) (*exec.Cmd, error) {
	initrd, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	var built strings.Builder
	for i, command := range [][]string{
		{"make", "-s", "install", "DESTDIR=" + dir + "/root"},
		{"install", "-D", "bin/vmm", dir + "/root/usr/bin/vmm"},
		{"install", "-D", "-m", "0644", "examples/vmm/vmm.service", dir + "/root/etc/systemd/system/vmm.service"},
		{"install", "-D", "-m", "0644", "examples/vmm/50-vmm.toml", dir + "/root/etc/holdfast/policy.d/50-vmm.toml"},
		{"bin/vmm", "initrd", "bin/guest"},
		{"bin/hfvm", "build", "--kernel", "7.2"},
	} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stderr = os.Stderr
		switch i {
		case 4:
			cmd.Stdout = initrd
		case 5:
			cmd.Stderr = &built
		}
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, &built)
		}
	}
	// The guest's kernel is that of the host at its start.
	kernel := regexp.MustCompile(`(?m)^hfvm: kernel 7\.2: (.*)$`).FindStringSubmatch(built.String())
	if kernel == nil {
		return nil, fmt.Errorf("hfvm build doesn't say where the kernel is: %s", &built)
	}
	return exec.CommandContext(ctx, "bin/hfvm", "run", "--kernel", "7.2", "--next-kernel", "7.3", "--os", "forky", "--package", "qemu-system-x86",
		"--memory", "2048", "--quiet-console", "--add", dir+"/root:/", "--add", kernel[1]+":/var/lib/vmm/kernel", "--add", initrd.Name()+":/var/lib/vmm/initrd",
		"--timeout", "900", "demo/vm.sh"), nil
}

// guestStory checks what the guest says on its console, and shows what is new of that.
type guestStory struct {
	doing   string // what goes on while nothing is seen
	changed time.Time

	kernels, chapters int
	kernel            string
	word              string
	next              int // the tick that this boot's look at the console comes to
	seen              int // the last tick that was shown
	at                time.Time
	pause             time.Duration // from the last tick before the update to the first one after it
	switched          bool
	report            string
	said              []string // by vmm, of the last pause
}

var guestTick = regexp.MustCompile(`^tick (\d+) word ([0-9a-f]{16}) (ram .*)$`)

// hear says whether it has printed something.
func (s *guestStory) hear(line string, at time.Time) (bool, error) {
	key, value, _ := strings.Cut(line, " ")
	switch key {
	case "kernel":
		s.kernels++
		if s.kernels == 1 {
			fmt.Printf("The host runs kernel %s\n", value)
			s.doing = "the guest boots, in an emulated machine in an emulated machine"
		} else {
			fmt.Printf("The host runs kernel %s, before: %s\n", value, s.kernel)
			if value == s.kernel {
				return true, fmt.Errorf("the host's kernel is %s, as before", value)
			}
			s.doing = "the guest goes on"
		}
		s.kernel, s.next, s.changed = value, 1, at
	case "console":
		return s.tick(value, at)
	case "switching":
		if s.seen == 0 {
			return true, errors.New("no tick of the guest's was seen before the update")
		}
		fmt.Println("holdfast update")
		s.doing, s.changed, s.switched = "the host gets ready, stops and starts the next kernel", at, true
	case "report":
		s.report = value
		return false, nil
	case "vmm":
		s.said = append(s.said, value)
		return false, nil
	case "chapter":
		s.chapters++
		if s.switched {
			return true, errors.New("no tick of the guest's was seen after the update")
		}
		err := s.split()
		s.said = nil
		return true, err
	}
	return true, nil
}

func (s *guestStory) tick(line string, at time.Time) (bool, error) {
	if s.kernels == 0 {
		return false, errors.New("the guest said something before its host")
	}
	match := guestTick.FindStringSubmatch(line)
	if match == nil {
		if line != "" {
			fmt.Printf("  guest | %s\n", line)
		}
		return line != "", nil
	}
	if want := fmt.Sprint(s.next); match[1] != want {
		return true, fmt.Errorf("the guest's console has tick %s, where tick %s belongs", match[1], want)
	}
	if s.word == "" {
		s.word = match[2]
	}
	if match[2] != s.word {
		return true, fmt.Errorf("the guest's word is %s, and was %s", match[2], s.word)
	}
	if !strings.HasSuffix(match[3], " MiB ok") {
		return true, fmt.Errorf("the guest's memory isn't as it was: %s", line)
	}
	n := s.next
	s.next++
	if n <= s.seen { // the console is shown to its end in each boot
		return false, nil
	}
	if s.switched && s.kernels-1 > s.chapters { // the first one after the update
		s.pause, s.switched = at.Sub(s.at), false
	}
	s.seen, s.at = n, at
	fmt.Printf("  guest | %s\n", line)
	return true, nil
}

// split shows what the last pause was made of.
func (s *guestStory) split() error {
	var report struct {
		Spans []struct {
			Name  string
			Begin int64 `json:"beginUSec"`
			End   int64 `json:"endUSec"`
		}
	}
	if err := json.Unmarshal([]byte(s.report), &report); err != nil {
		return fmt.Errorf("the report: %w", err)
	}
	took := map[string]time.Duration{}
	for _, span := range report.Spans {
		took[span.Name] = time.Duration(span.End-span.Begin) * time.Microsecond
	}
	said := strings.Join(s.said, ", ")
	for name, pattern := range map[string]string{
		"guest stops": `stopped in ([^ ,]+)`, "save": `bytes in ([^ ,]+)`, "park": `parked in ([^ ,]+)`,
		"retrieve": `retrieved in ([^ ,]+)`, "restore": `restored in ([^ ,]+)`,
	} {
		match := regexp.MustCompile(pattern).FindStringSubmatch(said)
		if match == nil {
			return fmt.Errorf("vmm doesn't say how long the machine took to %s: %q", name, said)
		}
		d, err := time.ParseDuration(match[1])
		if err != nil {
			return err
		}
		took[name] = d
	}
	bytes := regexp.MustCompile(`saved (\d+) bytes`).FindStringSubmatch(said)
	if bytes == nil {
		return fmt.Errorf("vmm doesn't say how large the state is: %q", said)
	}
	fmt.Printf("\n  %-24s %6.1f s, of which\n", "from tick to tick", s.pause.Seconds())
	for _, part := range []struct {
		name, text string
		took       time.Duration
	}{
		{"stop", "its processor stands", took["guest stops"]},
		{"save", bytes[1] + " bytes, all but the RAM; and parking", took["save"] + took["park"]},
		{"the host stops", "services and scopes end", took["stop"]},
		{"kexec", "", took["kexec"]},
		{"boot", "kernel and systemd, up to holdfastd", took["kernel"] + took["initrd"] + took["userspace"]},
		{"the machine's turn", "the rest of the boot, up to vmm's asking for the session", took["reclaim"]},
		{"restore", "RAM is retrieved, QEMU started, its state loaded", took["retrieve"] + took["restore"]},
	} {
		fmt.Printf("    %-22s %6.2f s  %s\n", part.name, part.took.Seconds(), part.text)
	}
	fmt.Println()
	return nil
}
