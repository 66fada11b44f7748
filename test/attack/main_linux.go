// SPDX-License-Identifier: MIT

// Command attack tries to get, keep, squat, exhaust and delete others' sessions. Each attempt is made twice: against
// holdfastd, where it must be refused while others go on being served, and against a holdfastd that lacks the one
// check that stands in its way, where it must succeed. One that fails there too would prove nothing.
//
//	attack mutants DIRECTORY   builds those without a check, on the host
//	attack agent NAME          waits in an attacker's or victim's place for what the driver wants done there
//	attack try ATTEMPT         makes one; exit status 0: it got what it wants, 1: it was refused, 2: it went wrong
//	attack drive DIRECTORY [ATTEMPT…]   has all of it done, and prints a table
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
)

func main() {
	command, args := "", os.Args[1:]
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	var err error
	switch {
	case command == "mutants" && len(args) == 1:
		err = buildMutants(args[0])
	case command == "agent" && len(args) == 1:
		err = agent(args[0])
	case command == "try" && len(args) == 1:
		os.Exit(try(args[0]))
	case command == "drive" && len(args) > 0:
		err = drive(args[0], args[1:])
	case command == "connect-and-end" || command == "connect-and-su":
		err = giveConnection(command == "connect-and-su")
	default:
		err = errors.New("usage: attack mutants DIRECTORY | agent NAME | try ATTEMPT | drive DIRECTORY [ATTEMPT…]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(2)
	}
}

// What an attempt may come to.
const (
	succeeded = iota
	refused
	broken
)

type verdict struct {
	status int
	text   string
}

func got(format string, args ...any) verdict { return verdict{succeeded, fmt.Sprintf(format, args...)} }
func not(format string, args ...any) verdict { return verdict{refused, fmt.Sprintf(format, args...)} }
func wrong(format string, args ...any) verdict {
	return verdict{broken, fmt.Sprintf(format, args...)}
}

// must ends an attempt that can't be made.
func must(err error) {
	if err != nil {
		panic(wrong("%v", err))
	}
}

func must1[T any](v T, err error) T {
	must(err)
	return v
}

// try makes one attempt. The driver is on standard input and output.
func try(id string) int {
	v := func() (v verdict) {
		defer func() {
			if p := recover(); p != nil {
				var ok bool
				if v, ok = p.(verdict); !ok {
					panic(p)
				}
			}
		}()
		a := find(id)
		if a == nil {
			return wrong("there is no attempt %s", id)
		}
		if cgroup := os.Getenv("ATTACK_CGROUP"); cgroup != "" {
			enterCgroup("/sys/fs/cgroup" + cgroup)
		}
		return a.do()
	}()
	fmt.Printf("verdict %s\n", strings.ReplaceAll(v.text, "\n", " "))
	return v.status
}

var driver = bufio.NewReader(os.Stdin)

// ask has the driver look at something while the attempt goes on; "" is that all is well.
func ask(what string) (trouble string) {
	fmt.Printf("ask %s\n", what)
	line, err := driver.ReadString('\n')
	must(err)
	return strings.TrimSuffix(line, "\n")
}

// othersServed is the verdict of an attempt to keep others from being served.
func othersServed() verdict {
	if trouble := ask("bystander"); trouble != "" {
		return got("others are not served: %s", trouble)
	}
	return not("others are served")
}
