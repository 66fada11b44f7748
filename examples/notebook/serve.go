// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
)

// answer carries out one line of the protocol.
//
//	put KEY VALUE   ok
//	get KEY         value VALUE | none
//	sum             sum SHA-256 of the whole memory, in hex
//	status          status and words of the form name=value
//
// What can't be done is answered with "error" and why.
func (n *notes) answer(line string, status func() string) string {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "put":
		key, value, _ := strings.Cut(rest, " ")
		if err := n.put(key, []byte(value)); err != nil {
			return "error " + err.Error()
		}
		return "ok"
	case "get":
		value, ok, err := n.get(rest)
		if err != nil {
			return "error " + err.Error()
		}
		if !ok {
			return "none"
		}
		return "value " + string(value)
	case "sum":
		sum, err := n.sum()
		if err != nil {
			return "error " + err.Error()
		}
		return "sum " + sum
	case "status":
		return "status " + status()
	}
	return fmt.Sprintf("error %q is none of put, get, sum, status", verb)
}

// serve answers connections until the listener is closed.
func (n *notes) serve(listener net.Listener, status func() string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewScanner(conn)
			lines.Buffer(nil, keyMax+valueMax+16)
			for lines.Scan() {
				if _, err := fmt.Fprintln(conn, n.answer(lines.Text(), status)); err != nil {
					return
				}
			}
		}()
	}
}
