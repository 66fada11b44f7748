// SPDX-License-Identifier: MIT

// Command differential compares luosim with the real kernel. It has random sequences of operations, made from seeds
// alone, done by the same program (agent) under luosim and, by hfvm, on real kernels over two updates (7.2, 7.3, 7.2),
// and compares every result. Differences that must stay are in differences.go; any other fails the run, and is printed
// with the command that shows it again. How often each (operation, errno) was met is printed at the end.
//
//	go run ./test/differential -count 240                       # 240 sequences, and the regression cases
//	go run ./test/differential -seed 17                         # one, with all its results if they differ
//	go run ./test/differential -script my.ops                   # operations of one's own
//	go run ./test/differential -first 1 -count 5000 -coverage   # the big run: every reachable pair 10 times
//	go run ./test/differential -count 500 -record DIR           # keep the real kernel's results in DIR
//	go run ./test/differential -check DIR [-luosim PATH]        # compare luosim with those; needs no machine
//
// It needs bin/hfvm and bin/luosim ("make build").
package main
