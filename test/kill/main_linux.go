// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// deadline is how long a client may take from its start to its last step. The library's own deadlines are shorter.
const deadline = 30 * time.Second

func main() {
	log.SetFlags(0)
	log.SetPrefix("kill: ")
	c := &client{}
	d := &death{}
	flag.StringVar(&c.name, "name", "ram", "the session's `NAME`")
	flag.StringVar(&c.seed, "seed", "kelp", "of the memory's content")
	flag.StringVar(&c.nonce, "nonce", newNonce(), "of the content of memory that is begun afresh: 16 `CHARACTERS`")
	flag.Uint64Var(&c.epoch, "epoch", 0, "the `NUMBER` that is written to the memory once it is parked")
	flag.StringVar(&d.step, "die-at", "", "once that `STEP` was told; \"sent\" is when Park is on its way, and holdfastd hasn't read it")
	flag.StringVar(&d.victim, "victim", "self", "who dies: self or daemon")
	flag.StringVar(&d.then, "then", "restart", "what comes before the next start: restart (nothing) or update")
	flag.StringVar(&d.marker, "once", "", "die only if that `FILE` isn't there, which is made then")
	held := flag.Bool("held", false, "wait for a line on standard input before the first step, and for its end after the last one")
	service := flag.Bool("service", false, "tell systemd after the last step, and stay until SIGTERM")
	toJudge := flag.Bool("judge", false, "judge what was told into the `FILES` that are named instead of actions")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: kill [options] ACTION...\nActions: park, back, release. Options:")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *toJudge {
		if err := judge(flag.Args()); err != nil {
			log.Fatal(err)
		}
		return
	}
	if _, err := os.Stat(d.marker); err == nil {
		d.step = ""
	}
	c.told = func(step string) {
		tell(step)
		if word, _, _ := strings.Cut(step, " "); word == d.step {
			d.die()
		}
	}
	in := bufio.NewReader(os.Stdin)
	if *held {
		tell("ready")
		in.ReadString('\n')
	} else {
		tell(strings.TrimSpace(fmt.Sprintf("begin %d %s %s", c.epoch, c.nonce, d)))
	}
	stop := make(chan os.Signal, 1)
	if *service {
		signal.Notify(stop, unix.SIGTERM)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if d.step == "sent" {
		c.parking = d.atSent
	}
	err := c.live(ctx, flag.Args())
	if err != nil {
		tell("error " + err.Error())
		log.Print(err)
	} else {
		tell("done")
	}
	if *held {
		in.ReadString('\n')
	}
	if err != nil {
		os.Exit(1)
	}
	if *service {
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Fatal(err)
		}
		<-stop
	}
}

func tell(step string) { os.Stdout.WriteString(step + "\n") }
