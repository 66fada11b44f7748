// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	daemon      = "/usr/libexec/holdfastd"
	runtimeUnit = "/run/systemd/system/holdfastd.service"

	// served is how long a bystander may have to wait, for all that it asks for.
	served = 10 * time.Second
)

// roles are those that agents are there for.
var roles = []string{unit, login, manager, crontab, container, hostRoot, "victim", "rootcron", "vm", "lxc", "bystander"}

// driving has the agents.
type driving struct {
	mutants string // the directory
	agents  map[string]*place
}

// place is where attempts are made, or a victim is.
type place struct {
	who  string
	conn net.Conn
	in   *bufio.Reader
}

// row is of the table.
type row struct {
	attempt
	product, mutated verdict
	others           string // what was wrong with others during or after it
}

// drive makes all attempts, or those that are named.
func drive(mutants string, only []string) error {
	attempts := attempts
	if len(only) > 0 {
		attempts = slices.DeleteFunc(slices.Clone(attempts), func(a attempt) bool { return !slices.Contains(only, a.id) })
	}
	d := &driving{mutants, map[string]*place{}}
	if err := d.gather(); err != nil {
		return err
	}
	rows := make([]row, len(attempts))
	began := time.Now()
	for i, a := range attempts {
		rows[i].attempt = a
		rows[i].product, rows[i].others = d.make(a)
		fmt.Printf("%5.1f s %-24s %v\n", time.Since(began).Seconds(), a.id, rows[i].product)
		if rows[i].others != "" {
			fmt.Printf("      others: %s\n", rows[i].others)
		}
	}
	for _, m := range needed(attempts) {
		if err := d.install(m); err != nil {
			fmt.Printf("mutant %s: %v\n", m, err)
			continue
		}
		for i, a := range attempts {
			if a.mutant == m {
				rows[i].mutated, _ = d.make(a)
				fmt.Printf("%5.1f s %-24s without the check, %s: %v\n", time.Since(began).Seconds(), a.id, m, rows[i].mutated)
			}
		}
	}
	return table(rows)
}

// table prints what came of it. The error says what is wrong.
func table(rows []row) error {
	words := map[int]string{succeeded: "SUCCEEDED", refused: "refused", broken: "BROKEN"}
	bad := 0
	fmt.Println("attempt                  | attacker  | product | others | without its check           | wanted")
	for _, r := range rows {
		others, without := "served", "succeeds"
		if r.others != "" {
			others = "HARMED"
		}
		if r.mutated.status != succeeded {
			without = strings.ToUpper(words[r.mutated.status])
		}
		if r.product.status != refused || r.others != "" || r.mutated.status != succeeded {
			bad++
		}
		fmt.Printf("%-24s | %-9s | %-7s | %-6s | %-27s | %s\n", r.id, r.who, words[r.product.status], others, without+": "+r.mutant, r.wants)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d attempts did not end as they should", bad, len(rows))
	}
	fmt.Printf("%d attempts: all were refused, others were served, and each succeeds where its check is missing\n", len(rows))
	return nil
}

// needed are the names of the mutants that attempts need, in their order.
func needed(attempts []attempt) (names []string) {
	for _, a := range attempts {
		if !slices.Contains(names, a.mutant) {
			names = append(names, a.mutant)
		}
	}
	return names
}

// gather waits until all agents are there.
func (d *driving) gather() error {
	os.Remove(driverSocket)
	if err := os.MkdirAll(filepath.Dir(driverSocket), 0o755); err != nil {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: driverSocket, Net: "unix"})
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := os.Chmod(driverSocket, 0o666); err != nil {
		return err
	}
	listener.SetDeadline(time.Now().Add(90 * time.Second))
	for len(d.agents) < len(roles) {
		c, err := listener.Accept()
		if err != nil {
			var missing []string
			for _, r := range roles {
				if d.agents[r] == nil {
					missing = append(missing, r)
				}
			}
			return fmt.Errorf("waiting for %s: %w", strings.Join(missing, ", "), err)
		}
		p := &place{conn: c, in: bufio.NewReader(c)}
		hello, err := p.in.ReadString('\n')
		if err != nil {
			return err
		}
		role, _, _ := strings.Cut(hello, " ")
		p.who = role
		d.agents[role] = p
		fmt.Print(hello)
	}
	return nil
}

// make makes an attempt, and looks what became of others.
func (d *driving) make(a attempt) (v verdict, others string) {
	victim := a.victim
	if victim == "" {
		victim = "victim"
	}
	if trouble := d.tell(victim, "reset", time.Minute); trouble != "" {
		return wrong("%s could not be made ready: %s", victim, trouble), ""
	}
	v, err := d.try(a)
	if err != nil {
		v = wrong("%v", err)
	}
	if v.status != refused {
		return v, "" // what is left of it is another matter
	}
	if trouble := d.tell("bystander", "bystander", served); trouble != "" {
		others = "bystander: " + trouble
	} else if trouble := d.tell(victim, "check", served); trouble != "" {
		others = victim + ": " + trouble
	}
	return v, others
}

// tell has an agent do something; "" is that all went well.
func (d *driving) tell(role, what string, within time.Duration) (trouble string) {
	p := d.agents[role]
	fmt.Fprintln(p.conn, what)
	p.conn.SetReadDeadline(time.Now().Add(within))
	line, err := p.in.ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// Its answer still comes.
		p.conn.SetReadDeadline(time.Now().Add(time.Minute))
		late, err := p.in.ReadString('\n')
		return fmt.Sprintf("nothing within %v (then: %q, %v)", within, late, err)
	}
	if err != nil {
		return err.Error()
	}
	return strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "done ")
}

// try makes an attempt in its attacker's place.
func (d *driving) try(a attempt) (verdict, error) {
	var in *bufio.Reader
	var out io.Writer
	var status func() (int, error)
	switch p := d.agents[a.who]; {
	case p != nil:
		p.conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
		fmt.Fprintf(p.conn, "try %s\n", a.id)
		in, out = p.in, p.conn
		status = func() (int, error) {
			line, err := p.in.ReadString('\n')
			if err != nil {
				return 0, err
			}
			return strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), "exit "))
		}
	default:
		cmd := exec.Command("attack", "try", a.id)
		if a.who == machine {
			cmd = exec.Command("systemd-run", "--quiet", "--scope", "--slice=machine.slice", "--unit="+a.scope, "--uid=qemu", "attack", "try", a.id)
		} else {
			cmd.Env = append(os.Environ(), "ATTACK_CGROUP=/docker/0123456789ab/system.slice/victim.service")
		}
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return verdict{}, err
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return verdict{}, err
		}
		if err := cmd.Start(); err != nil {
			return verdict{}, err
		}
		in, out = bufio.NewReader(stdout), stdin
		status = func() (int, error) {
			cmd.Wait()
			return cmd.ProcessState.ExitCode(), nil
		}
	}
	text := ""
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			status()
			return verdict{}, fmt.Errorf("it ended without a verdict: %w", err)
		}
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "exit ") {
			return verdict{}, fmt.Errorf("it ended without a verdict: %s", line)
		}
		if verdict, is := strings.CutPrefix(line, "verdict "); is {
			text = verdict
			break
		}
		if what, is := strings.CutPrefix(line, "ask "); is {
			role, what, _ := strings.Cut(what, " ")
			if what == "" {
				what = role
			}
			fmt.Fprintln(out, d.tell(role, what, served))
			if p := d.agents[a.who]; p != nil {
				p.conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
			}
		}
	}
	n, err := status()
	if n > refused {
		n = broken
	}
	return verdict{n, text}, err
}

// install has another holdfastd run, with nothing parked.
func (d *driving) install(mutant string) error {
	run := func(args ...string) error {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	// The socket too: it would start the one before for those who are in its queue.
	if err := run("systemctl", "stop", "holdfastd.socket", "holdfastd.service"); err != nil {
		return err
	}
	if err := run("systemctl", "clean", "--what=fdstore", "holdfastd.service"); err != nil {
		return err
	}
	program := filepath.Join(d.mutants, mutant)
	if _, err := os.Stat(program); err != nil {
		program = daemon + ".product"
		// It is the unit that is another.
		text, err := os.ReadFile(filepath.Join(d.mutants, mutant+".service"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(runtimeUnit, text, 0o644); err != nil {
			return err
		}
		defer run("systemctl", "daemon-reload")
		defer os.Remove(runtimeUnit)
		if err := run("systemctl", "daemon-reload"); err != nil {
			return err
		}
	}
	os.Remove(daemon)
	if err := os.Symlink(program, daemon); err != nil {
		return err
	}
	return run("systemctl", "start", "holdfastd.socket", "holdfastd.service")
}
