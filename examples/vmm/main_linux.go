// SPDX-License-Identifier: MIT

// Command vmm runs virtual machines in QEMU that go on after an update of their host's kernel: RAM and state lie in a session
// of each machine's own, and each is in a scope of its own.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/holdfast-project/holdfast/examples/vmm/qemu"
)

// What a machine's session holds.
const (
	sessionName = "vm"
	ramName     = "ram"
	stateName   = "state"
)

// options are the same for all machines.
type options struct {
	user, consoles string
	mebibytes      int64
	kernel         string
	initrd         string
	append         string
}

// flags are those that a machine's own process needs.
func (o *options) flags() []string {
	return []string{fmt.Sprintf("-memory=%d", o.mebibytes), "-kernel=" + o.kernel, "-initrd=" + o.initrd, "-append=" + o.append}
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("vmm: ")
	var o options
	socket := flag.String("socket", "/run/vmm/socket", "the unix socket to serve, or to ask")
	flag.StringVar(&o.user, "user", "root", "whom machines run as")
	flag.StringVar(&o.consoles, "consoles", "/var/log/vmm", "the directory with what each machine says, in NAME.log")
	flag.Int64Var(&o.mebibytes, "memory", 128, "RAM of a machine, in MiB")
	flag.StringVar(&o.kernel, "kernel", "", "the machines' kernel; the same file before and after an update")
	flag.StringVar(&o.initrd, "initrd", "", "the machines' initrd")
	flag.StringVar(&o.append, "append", "console=ttyS0 panic=-1 quiet no_timer_check", "the command line of the machines' kernel")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, `vmm runs machines of QEMU that go on after updates of their host's kernel.

Usage:
  vmm [-json] start NAME      have a machine started; says its scope, and whether it is fresh, and why, or goes on from
                              where it was parked, or was when the kernel was updated, and for how long it stood still
  vmm [-json] list            the machines, and which of them run
  vmm stop NAME               have it saved, and ended; it goes on when it is started again, after an update too
  vmm destroy NAME            give up what is saved of one that doesn't run: it starts afresh then
  vmm initrd INIT >FILE       make an initrd of one program, for a machine that has nothing else
  vmm [FLAGS] serve [NAME...] manage machines (as a service of systemd, by root), and start these
  vmm [FLAGS] machine NAME    what serve runs in each scope

An update by "holdfast update" asks each machine that runs: first its RAM is made ready while it goes on, then it is stopped
and saved. Called off, it goes on at once. Afterwards "vmm start" has it go on; serve does so for those that it is given. What
a machine says on its serial line is in /var/log/vmm/NAME.log.

Flags (those of the machines, -memory, -kernel, -initrd and -append, must be the same before and after an update):
`)
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := notified()
	defer stop()
	var err error
	switch verb := flag.Arg(0); {
	case verb == "serve":
		err = serve(ctx, *socket, o, flag.Args()[1:])
	case (verb == "start" || verb == "stop" || verb == "destroy") && flag.NArg() == 2:
		err = ask(*socket, request{verb, flag.Arg(1)}, *asJSON)
	case verb == "list" && flag.NArg() == 1:
		err = ask(*socket, request{Verb: verb}, *asJSON)
	case verb == "initrd" && flag.NArg() == 2:
		err = initrd(flag.Arg(1))
	case verb == "machine" && flag.NArg() == 2:
		log.SetPrefix("vmm: " + flag.Arg(1) + ": ")
		err = runMachine(ctx, o, flag.Arg(1))
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// notified ends with the process's being stopped. SIGWINCH is what a machine's scope is stopped by: see manager.scope.
func notified() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGWINCH)
}

func initrd(path string) error {
	init, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := qemu.WriteInitrd(&out, init); err != nil {
		return err
	}
	_, err = out.WriteTo(os.Stdout)
	return err
}

// request is a line of JSON, and reply another one.
type request struct {
	Verb string `json:"verb"`
	Name string `json:"name,omitempty"`
}

type reply struct {
	Error    string  `json:"error,omitempty"`
	Machine  *answer `json:"machine,omitempty"`
	Machines []entry `json:"machines,omitempty"`
	Text     string  `json:"text,omitempty"`
}

// serve answers requests, one at a time.
func serve(ctx context.Context, socket string, o options, names []string) error {
	m, err := newManager(ctx, o)
	if err != nil {
		return err
	}
	defer m.close()
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	for _, name := range names {
		came, err := m.start(ctx, name)
		var running *runningError
		switch {
		case errors.As(err, &running): // this service was started again, and they run on meanwhile
		case err != nil:
			log.Print(err)
		default:
			log.Print(came)
		}
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil // the machines run on, and park by themselves when they are stopped
		}
		if err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(requestTimeout))
		var in request
		var out reply
		if err = json.NewDecoder(conn).Decode(&in); err == nil {
			out, err = m.do(ctx, in)
		}
		if err != nil {
			out = reply{Error: err.Error()}
		}
		json.NewEncoder(conn).Encode(out)
		conn.Close()
	}
}

// requestTimeout is for a request that doesn't come: others wait.
const requestTimeout = 5 * time.Second

func (m *manager) do(ctx context.Context, in request) (out reply, err error) {
	switch in.Verb {
	case "start":
		out.Machine, err = m.start(ctx, in.Name)
	case "list":
		out.Machines, err = m.list(ctx)
	case "stop":
		var scope string
		scope, err = m.stop(ctx, in.Name)
		out.Text = scope + " has ended"
	case "destroy":
		err = m.destroy(ctx, in.Name)
		out.Text = "what was saved of " + in.Name + " is given up"
	default:
		err = fmt.Errorf("%q is unknown", in.Verb)
	}
	return out, err
}

func ask(socket string, in request, asJSON bool) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("%w; does vmm.service run?", err)
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(in); err != nil {
		return err
	}
	var out reply
	if err := json.NewDecoder(conn).Decode(&out); err != nil {
		return fmt.Errorf("the answer of vmm serve: %w", err)
	}
	var print any
	switch {
	case out.Error != "":
		return errors.New(out.Error)
	case out.Machine != nil:
		print = out.Machine
	case in.Verb == "list":
		print = append([]entry{}, out.Machines...)
	default:
		print = out.Text
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(print)
	}
	if in.Verb != "list" {
		_, err := fmt.Println(print)
		return err
	}
	for _, e := range out.Machines {
		came := ""
		if e.Came != nil {
			came = e.Came.String()
		} else {
			came = e.Scope
		}
		fmt.Println(strings.TrimSpace(fmt.Sprintf("%-16s %-9s %s", e.Name, e.State, came)))
	}
	return nil
}
