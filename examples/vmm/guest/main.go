// SPDX-License-Identifier: MIT

// Command guest is the only program of a machine that vmm runs: the /init of its initrd. It draws a word, fills memory
// with what follows from it, and says on the console at each tick whether that is still so.
package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"time"
)

const block = 1 << 20 / 8 // numbers

func main() {
	mebibytes, err := strconv.Atoi(os.Getenv("FILL_MIB")) // from the kernel's command line
	if err != nil || mebibytes < 1 {
		mebibytes = 8
	}
	var random [8]byte
	rand.Read(random[:])
	word := binary.BigEndian.Uint64(random[:])
	blocks := make([][]uint64, mebibytes)
	filled := make([]uint64, mebibytes) // the tick at which a block was written
	for i := range blocks {
		blocks[i] = make([]uint64, block)
		fill(blocks[i], word^uint64(i))
	}
	tick := time.NewTicker(time.Second)
	for n := uint64(1); ; n++ {
		<-tick.C
		wrong := 0
		for i, b := range blocks {
			wrong += differ(b, word^uint64(i)^filled[i]<<32)
		}
		said := fmt.Sprintf("ram %d MiB ok", mebibytes)
		if wrong > 0 {
			said = fmt.Sprintf("ram %d numbers WRONG", wrong)
		}
		fmt.Printf("tick %d word %016x %s\n", n, word, said)
		// Some of it is always new, so that an old copy is told from the memory itself.
		i := n % uint64(mebibytes)
		filled[i] = n
		fill(blocks[i], word^i^n<<32)
	}
}

func fill(b []uint64, seed uint64) {
	for i := range b {
		b[i] = mix(seed + uint64(i)*0x9e3779b97f4a7c15)
	}
}

func differ(b []uint64, seed uint64) (wrong int) {
	for i := range b {
		if b[i] != mix(seed+uint64(i)*0x9e3779b97f4a7c15) {
			wrong++
		}
	}
	return wrong
}

// mix is the output function of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
