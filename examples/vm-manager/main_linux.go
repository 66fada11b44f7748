// SPDX-License-Identifier: MIT

// Command vm-manager shows delegation: a manager asks for the sessions of the virtual machines that it starts, and passes
// them on unretrieved. Its machines are small programs with some memory, each in a scope of its own.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	sessionName = "ram"
	fileName    = "memory"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("vm-manager: ")
	socket := flag.String("socket", "/run/vm-manager/socket", "the unix socket to serve, or to ask")
	user := flag.String("user", "root", "whom machines run as")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, `vm-manager runs machines whose memory crosses updates of the kernel.

Usage:
  vm-manager [-socket PATH] [-user USER] serve    manage machines (as a service of systemd)
  vm-manager [-socket PATH] start NAME            have one started; says its scope, where its memory
                                                  came from (fresh, parked, update), and the SHA-256 of it
  vm-manager guest                                what serve runs in each scope

`)
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch verb := flag.Arg(0); {
	case verb == "serve" && flag.NArg() == 1:
		err = serve(ctx, *socket, *user)
	case verb == "start" && flag.NArg() == 2:
		err = ask(*socket, flag.Arg(1))
	case verb == "guest" && flag.NArg() == 1:
		err = guest(ctx)
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve starts the machine whose name comes in a line, and answers with a line.
func serve(ctx context.Context, socket, user string) error {
	m, err := newManager(ctx, user)
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
		name, err := bufio.NewReader(conn).ReadString('\n')
		var answer string
		if err == nil {
			answer, err = m.start(ctx, strings.TrimSuffix(name, "\n"))
		}
		if err != nil {
			answer = "error " + err.Error()
		}
		fmt.Fprintln(conn, answer)
		conn.Close()
	}
}

func ask(socket, name string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, name); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if text, failed := strings.CutPrefix(answer, "error "); failed {
		return errors.New(strings.TrimSpace(text))
	}
	fmt.Print(answer)
	return nil
}
