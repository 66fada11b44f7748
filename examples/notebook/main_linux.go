// SPDX-License-Identifier: MIT

// Command notebook is a small service that keeps its memory over live updates of the kernel: the example of how a
// program uses Holdfast. Its data lives in a memfd of 64 MiB.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
)

const (
	sessionName = "notes"
	fileName    = "memory"
	stopTimeout = 30 * time.Second
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("notebook: ")
	hold := flag.Bool("hold", false, "there is no fd store here: hold the session in this process until the kexec. If it ends before that, the notes are lost")
	socket := flag.String("socket", cmp.Or(os.Getenv("NOTEBOOK_SOCKET"), "/run/notebook/socket"), "the unix socket to serve, or to ask; $NOTEBOOK_SOCKET")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, `notebook is a service that keeps what it is told in 64 MiB of memory, over crashes, restarts and live updates.

Usage:
  notebook [-socket PATH]                serve (as a service of systemd)
  notebook [-socket PATH] -hold          serve (where there is no systemd)
  notebook [-socket PATH] REQUEST...     ask the service: put KEY VALUE, get KEY, sum, status
  notebook [-socket PATH] fill           fill what room it has with random values

`)
		flag.PrintDefaults()
	}
	flag.Parse()
	var err error
	switch {
	case flag.NArg() == 0:
		err = serve(*socket, *hold)
	case flag.Arg(0) == "fill":
		err = fill(*socket)
	default:
		err = ask(*socket, strings.Join(flag.Args(), " "))
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(socket string, hold bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	committed, err := comeBack(ctx, client, hold)
	if err != nil {
		return err
	}
	var pages *notes
	var session *holdfast.Session
	came := "fresh"
	if committed == nil {
		pages, session, err = begin(ctx, client, hold)
	} else {
		came = "store"
		if committed.Incoming() {
			came = "update"
		}
		pages, session, err = goOn(ctx, client, committed, hold)
	}
	if err != nil {
		return err
	}
	defer session.Close()

	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	status := func() string {
		return fmt.Sprintf("came=%s generation=%d kernel-name=%s owner=%s bytes=%d",
			came, session.Generation(), session.KernelName(), session.Owner(), size)
	}
	go pages.serve(listener, status)
	if _, err := daemon.SdNotify(false, "READY=1\nSTATUS="+status()); err != nil {
		return err
	}
	<-ctx.Done()
	listener.Close()

	if hold {
		return nil
	}
	// The commit at the stop. All is in the store since the start, so that a crash loses nothing either; this makes
	// sure that it still is.
	stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return session.Store(stopping)
}

// begin is the first start: new memory, in a session of its own, in the fd store.
func begin(ctx context.Context, client *holdfast.Client, hold bool) (*notes, *holdfast.Session, error) {
	raw, err := unix.MemfdCreate(fileName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	memory := os.NewFile(uintptr(raw), fileName)
	if err := memory.Truncate(size); err != nil {
		return nil, nil, err
	}
	pages, err := newNotes(memory)
	if err != nil {
		return nil, nil, err
	}
	session, err := client.Acquire(ctx, sessionName)
	if err != nil {
		return nil, nil, err
	}
	if err := session.Preserve(fileName, memory); err != nil {
		return nil, nil, err
	}
	if hold {
		return pages, session, session.Commit()
	}
	return pages, session, session.Store(ctx)
}

// comeBack is what was committed before: there is something at every start but the first, after a crash, a restart or an
// update. Without it and without an error, nothing came back: only then is it the first start.
func comeBack(ctx context.Context, client *holdfast.Client, hold bool) (*holdfast.Committed, error) {
	if hold {
		committed, err := client.Reclaim(ctx, sessionName)
		if errors.Is(err, holdfast.ErrNoSuchSession) {
			return nil, nil
		}
		return committed, err
	}
	restored, err := holdfast.Restored(ctx, client)
	if err != nil {
		return nil, err
	}
	for _, committed := range restored {
		if committed.Name() == sessionName {
			return committed, nil
		}
		committed.Close()
	}
	return nil, nil
}

// goOn takes up what was committed. It ends with a session for the next update.
func goOn(ctx context.Context, client *holdfast.Client, committed *holdfast.Committed, hold bool) (*notes, *holdfast.Session, error) {
	files, err := committed.Retrieve()
	if err != nil {
		return nil, nil, err
	}
	pages, err := openNotes(files[fileName])
	if err != nil {
		return nil, nil, err
	}
	options := []holdfast.RenewOption{holdfast.WithProgress(func(step holdfast.RenewStep) {
		daemon.SdNotify(false, "STATUS=renewing: "+string(step))
		dieAfter(string(step))
	})}
	if hold {
		options = append(options, holdfast.WithoutStore())
	}
	session, err := holdfast.Renew(ctx, client, committed, options...)
	return pages, session, err
}

// ask sends one request and prints the answer.
func ask(socket, request string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := exchange(conn, bufio.NewReader(conn), request)
	if err == nil {
		fmt.Println(answer)
	}
	return err
}

func exchange(conn io.Writer, answers *bufio.Reader, request string) (string, error) {
	if _, err := io.WriteString(conn, request+"\n"); err != nil {
		return "", err
	}
	answer, err := answers.ReadString('\n')
	if err != nil {
		return "", err
	}
	answer = strings.TrimSuffix(answer, "\n")
	if text, failed := strings.CutPrefix(answer, "error "); failed {
		return "", errors.New(text)
	}
	return answer, nil
}

// fill puts random values until none fits any more, first large and then small ones.
func fill(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	random := make([]byte, 768<<10)
	for i := 0; len(random) > 0; i++ {
		rand.Read(random)
		_, err := exchange(conn, answers, fmt.Sprintf("put random-%d %s", i, base64.RawURLEncoding.EncodeToString(random)))
		if err != nil && err.Error() == errFull.Error() {
			random = random[:len(random)/2]
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
