// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// How many operations a sequence has in each boot.
var partLengths = []int{32, 18, 12}

// A generator makes a sequence from its seed alone. It keeps in mind roughly what each slot holds, so that most
// operations mean something; it never sees a result.
type generator struct {
	*rand.Rand
	id     string
	ops    []op
	slots  [slotCount]slot
	flying []slot             // sessions that are in flight at the kexec
	known  map[string][]int64 // sessions that the previous boot left, and their tokens
}

// A slot is what the generator believes to be in a slot.
type slot struct {
	holds  holding
	name   string
	tokens []int64
	size   int64
}

type holding int

const (
	nothing holding = iota
	openDevice
	outgoing
	incoming
	memory // a memfd
	otherFile
)

func generate(seed int64) sequence {
	g := &generator{Rand: rand.New(rand.NewPCG(uint64(seed), 0x6b656c70)), id: fmt.Sprint(seed)}
	s := sequence{ID: g.id}
	for _, n := range partLengths {
		g.ops = nil
		left := map[string][]int64{}
		for _, slot := range g.slots {
			if slot.holds == outgoing {
				left[slot.name] = slot.tokens
			}
		}
		for _, slot := range g.flying {
			left[slot.name] = slot.tokens
		}
		g.flying = nil
		g.known = left
		g.slots = [slotCount]slot{}
		for len(g.ops) < n {
			g.step()
		}
		s.Parts = append(s.Parts, g.ops)
	}
	return s
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) add(kind string, o op) op {
	o.Kind = kind
	o = o.confined()
	g.ops = append(g.ops, o)
	return o
}

// find is a slot with such a thing, or any of its range if there is none.
func (g *generator) find(what holding) (int, bool) {
	var found []int
	for i, s := range g.slots {
		if s.holds == what {
			found = append(found, i)
		}
	}
	if len(found) == 0 {
		switch what {
		case openDevice:
			return g.IntN(sessionSlot), false
		case outgoing, incoming:
			return sessionSlot + g.IntN(fileSlot-sessionSlot), false
		}
		return fileSlot + g.IntN(slotCount-fileSlot), false
	}
	return pick(g, found...), true
}

// free is an empty slot from a range, or any of it.
func (g *generator) free(from, to int) int {
	for i := from; i < to; i++ {
		if g.slots[i].holds == nothing {
			return i
		}
	}
	return from + g.IntN(to-from)
}

// any is mostly a slot that holds something.
func (g *generator) any() int {
	if g.chance(4) {
		return g.IntN(slotCount)
	}
	for range 5 {
		if i, ok := g.find(pick(g, openDevice, outgoing, outgoing, incoming, incoming, memory, otherFile)); ok {
			return i
		}
	}
	return g.IntN(slotCount)
}

// name is a session's name, of this sequence only.
func (g *generator) name() string {
	stem := "d" + g.id + "-"
	switch g.IntN(20) {
	case 0:
		return stem + strings.Repeat("x", 63-len(stem))
	case 1:
		return stem + strings.Repeat("y", 62-len(stem))
	case 2:
		return stem + strings.Repeat("z", 64-len(stem))
	case 3:
		return ""
	case 4:
		return stem + "\xff\n/% \\"
	case 5:
		return stem + strings.Repeat("w", 38-len(stem)+g.IntN(3))
	}
	return stem + string(rune('a'+g.IntN(4)))
}

func (g *generator) token() int64 {
	return pick[int64](g, 0, 1, 1, 2, 2, 3, 4, 5, -1, -1<<63, 1<<40)
}

// deviation is how an ioctl isn't as it should be, mostly not at all.
func (g *generator) deviation(contents ...int64) int64 {
	return g.deviate(28, contents...)
}

func (g *generator) deviate(percent int, contents ...int64) int64 {
	if !g.chance(percent) {
		return 0
	}
	var n int64
	for range 1 + g.IntN(4)/3 {
		switch k := g.IntN(10); {
		case k < 4:
			n += int64(g.IntN(sizes)) - n%perPlace
		case k < 8:
			n += (int64(g.IntN(places)) - n/perPlace%100) * perPlace
		case k < 9:
			n += (int64(g.IntN(commands)) - n/perCommand%10) * perCommand
		default:
			if len(contents) > 0 {
				n += (pick(g, contents...) - n/perContent%10) * perContent
			}
		}
	}
	if n/perPlace%100 == placeAtEnd && n%perPlace >= sizePage || n%perPlace == sizeTwoPages && n/perPlace%100 != placeNormal {
		n -= n % perPlace
	}
	if n/perPlace%100 > placeNormal && n%perPlace > sizeRight {
		n -= n % perPlace // one thing at a time
	}
	return n
}

// step adds an operation, or several where one alone would mean nothing.
func (g *generator) step() {
	if _, ok := g.find(openDevice); !ok && g.chance(70) {
		g.open(0)
		return
	}
	if len(g.known) > 0 && g.chance(35) {
		g.retrieve()
		return
	}
	if s, ok := g.find(outgoing); ok && len(g.slots[s].tokens) < 3 && g.chance(16) {
		g.preserve()
		return
	}
	g.choose()
}

func (g *generator) open(flags int64) {
	slot := g.free(0, sessionSlot)
	_, busy := g.find(openDevice)
	o := g.add("open", op{A: slot, N: flags})
	g.slots[o.A].holds = nothing
	if !busy && (flags < 4 || flags == 5 || flags >= 8) {
		g.slots[o.A].holds = openDevice
	}
}

func (g *generator) create() {
	d, _ := g.find(openDevice)
	if g.chance(4) {
		d = g.any()
	}
	if g.chance(3) {
		g.add("create", op{A: d, B: sessionSlot, N: g.deviation(contentNoFD, contentTail), M: 1, Name: pick(g, "k", "\x01", "\xff")})
		return
	}
	name := g.name()
	if s, ok := g.find(outgoing); ok && g.chance(12) {
		name = g.slots[s].name
	}
	deviation := g.deviation(contentNoFD, contentTail)
	o := g.add("create", op{A: d, B: g.free(sessionSlot, fileSlot), N: deviation, Name: name})
	if deviation%perContent == 0 && len(name) > 0 && len(name) < 64 {
		g.slots[o.B] = slot{holds: outgoing, name: name}
	}
}

func (g *generator) retrieve() {
	d, _ := g.find(openDevice)
	if g.chance(4) {
		d = g.any()
	}
	var names []string
	for name := range g.known {
		names = append(names, name)
	}
	slices.Sort(names)
	name := g.name()
	if len(names) > 0 && g.chance(92) {
		name = pick(g, names...)
	}
	if s, ok := g.find(incoming); ok && g.chance(10) {
		name = g.slots[s].name
	}
	deviation := g.deviation(contentNoFD, contentTail)
	o := g.add("retrieve", op{A: d, B: g.free(sessionSlot, fileSlot), N: deviation, Name: name})
	if tokens, ok := g.known[name]; ok && deviation%perContent == 0 {
		g.slots[o.B] = slot{holds: incoming, name: name, tokens: tokens}
		delete(g.known, name)
	}
}

func (g *generator) memfd() {
	flags := pick[int64](g, 0, unix.MFD_CLOEXEC, unix.MFD_ALLOW_SEALING, unix.MFD_ALLOW_SEALING, unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC,
		unix.MFD_EXEC|unix.MFD_ALLOW_SEALING, unix.MFD_NOEXEC_SEAL, unix.MFD_NOEXEC_SEAL|unix.MFD_CLOEXEC)
	size := pick[int64](g, 0, 1, 4095, 4096, 4097, 4097, 10000, 10000, 20000, 65536, 65536, 100000)
	switch k := g.IntN(100); {
	case k < 2:
		size = 1 << 20
	case k < 4:
		size = 2 << 40
	case k < 6:
		size = 17 << 40
	case k < 7:
		size = 16<<40 - 4096 // the last size that is not too large
	case k < 8:
		size = 16<<40 - 4095
	}
	data := min(size, 1<<17)
	if g.chance(35) {
		data = pick(g, 0, data/2, min(data, 1))
	}
	if g.chance(3) {
		flags = pick[int64](g, unix.MFD_HUGETLB, unix.MFD_HUGETLB|unix.MFD_ALLOW_SEALING)
		size, data = pick[int64](g, 0, 0, 2<<20), 0
	}
	o := g.add("memfd", op{A: g.free(fileSlot, slotCount), N: flags, M: size, L: data})
	g.slots[o.A] = slot{holds: memory, size: size}
}

func (g *generator) file() {
	o := g.add("file", op{A: g.free(fileSlot, slotCount), N: int64(g.IntN(fileKinds)), M: 7, L: pick[int64](g, 0, 100, 5000)})
	g.slots[o.A] = slot{holds: otherFile}
	if o.N == unlinkedTmpfs || o.N == tmpfile {
		g.slots[o.A] = slot{holds: memory, size: o.L}
	}
}

func (g *generator) preserve() {
	s, ok := g.find(outgoing)
	if !ok {
		g.create()
		return
	}
	if k := g.IntN(100); k < 8 {
		s, _ = g.find(incoming)
	} else if k < 12 {
		s = g.any()
	}
	f, ok := g.find(memory)
	if !ok && g.chance(80) {
		g.memfd()
		return
	}
	if k := g.IntN(100); k < 14 {
		f = g.any()
	} else if k < 20 {
		if _, ok := g.find(otherFile); !ok {
			g.file()
		}
		f, _ = g.find(otherFile)
	}
	token := g.token()
	o := g.add("preserve", op{A: s, B: f, N: g.deviation(), M: token})
	if o.N == 0 && g.slots[s].holds == outgoing && g.slots[f].holds == memory && !slices.Contains(g.slots[s].tokens, token) {
		g.slots[s].tokens = append(slices.Clone(g.slots[s].tokens), token)
	}
}

func (g *generator) retrieveFD() {
	s, _ := g.find(incoming)
	if k := g.IntN(100); k < 8 {
		s, _ = g.find(outgoing)
	} else if k < 12 {
		s = g.any()
	}
	token := g.token()
	if t := g.slots[s].tokens; len(t) > 0 && g.chance(88) {
		token = pick(g, t...)
	}
	o := g.add("retrievefd", op{A: s, B: g.free(fileSlot, slotCount), N: g.deviation(contentNoFD), M: token})
	if o.N%perContent == 0 && g.slots[s].holds == incoming {
		g.slots[o.B] = slot{holds: memory, size: 4096}
	}
}

// copied keeps in mind that slot b now holds what a does.
func (g *generator) copied(a, b int) { g.slots[b] = g.slots[a] }

func (g *generator) choose() {
	session := func() int {
		s, ok := g.find(pick(g, outgoing, incoming))
		for try := 0; !ok && try < 4; try++ {
			s, ok = g.find(pick(g, outgoing, incoming))
		}
		if g.chance(6) {
			s = g.any()
		}
		return s
	}
	file := func() int {
		f, ok := g.find(memory)
		if !ok && g.chance(70) {
			g.memfd()
			f, _ = g.find(memory)
		}
		if g.chance(6) {
			f = g.any()
		}
		return f
	}
	odd := func() int { return pick(g, g.any(), session()) }
	_, haveIncoming := g.find(incoming)
	if haveIncoming && g.chance(30) {
		switch g.IntN(10) {
		case 0:
			s := session()
			g.add("finish", op{A: s, N: g.deviate(50, contentReserved)})
		default:
			g.retrieveFD()
		}
		return
	}
	switch k := g.IntN(1000); {
	case k < 25:
		g.open(pick[int64](g, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
	case k < 35:
		g.add("path", op{N: int64(g.IntN(9))})
	case k < 75:
		o := g.add("close", op{A: g.any()})
		g.slots[o.A] = slot{}
	case k < 90:
		if s, ok := g.find(outgoing); ok { // the last copy, and the name again
			name := g.slots[s].name
			g.add("close", op{A: s})
			g.slots[s] = slot{}
			if d, ok := g.find(openDevice); ok {
				g.add("create", op{A: d, B: s, Name: name})
				g.slots[s] = slot{holds: outgoing, name: name}
			}
		}
	case k < 130:
		a := g.any()
		b := g.free(sessionSlot, slotCount)
		if g.chance(20) {
			b = g.any()
		}
		o := g.add("dup", op{A: a, B: b, N: int64(g.IntN(3))})
		g.copied(o.A, o.B)
	case k < 150:
		o := g.add("pass", op{A: g.any(), B: g.free(sessionSlot, slotCount), N: int64(g.IntN(2))})
		g.copied(o.A, o.B)
		if o.N == 1 && o.A != o.B {
			g.slots[o.A] = slot{}
		}
	case k < 162:
		o := g.add("park", op{A: session(), N: int64(g.IntN(2))})
		if g.chance(70) {
			g.choose()
			u := g.add("unpark", op{B: g.free(sessionSlot, fileSlot)})
			g.copied(o.A, u.B)
		}
	case k < 167:
		o := g.add("park", op{A: session(), N: 1})
		g.add("keep", op{})
		if g.slots[o.A].holds == outgoing {
			g.flying = append(g.flying, g.slots[o.A])
		}
		g.slots[o.A] = slot{}
	case k < 170:
		g.add("unpark", op{B: g.free(sessionSlot, fileSlot)})
	case k < 182:
		a := session()
		g.add("child", op{A: a})
		if g.chance(60) {
			g.add("close", op{A: a})
			was := g.slots[a]
			g.slots[a] = slot{}
			if d, ok := g.find(openDevice); ok && was.name != "" {
				g.add("create", op{A: d, B: a, Name: was.name})
				g.add("reap", op{})
				g.add("create", op{A: d, B: a, Name: was.name})
				g.slots[a] = slot{holds: outgoing, name: was.name}
			}
		} else if g.chance(50) {
			g.choose()
			g.add("reap", op{})
		}
	case k < 240:
		g.create()
	case k < 275:
		g.retrieve()
	case k < 400:
		g.preserve()
	case k < 440:
		g.retrieveFD()
	case k < 462:
		g.add("finish", op{A: session(), N: g.deviate(40, contentReserved)})
	case k < 485:
		g.add("getname", op{A: session(), N: g.deviate(50, contentReserved)})
	case k < 500:
		g.add("ioctl", op{A: odd(), M: int64(g.IntN(4) / 3), N: pick[int64](g,
			unix.TIOCINQ, unix.TCGETS, 0x5451, 0x5450, 0xBA02, 0xBA3F, 0xBA44, 0xBAFF, createSessionCmd, retrieveSessionCmd,
			preserveFDCmd, retrieveFDCmd, finishCmd, getNameCmd, 0xBB00, 0xBB42, 0x5400, 0x5440, 0xFFFFFFFF, 0x40, 0)})
	case k < 575:
		g.memfd()
	case k < 600:
		g.file()
	case k < 620:
		f := file()
		if g.chance(20) {
			f = odd()
		}
		o := g.add("reopen", op{A: f, B: g.free(fileSlot, slotCount), N: pick[int64](g, unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY, unix.O_PATH, unix.O_RDWR|unix.O_APPEND, unix.O_RDWR|unix.O_TRUNC)})
		g.copied(o.A, o.B)
	case k < 660:
		g.add("sum", op{A: file()})
	case k < 780:
		g.change(file())
	case k < 830:
		f := file()
		g.add("addseals", op{A: f, N: pick[int64](g, unix.F_SEAL_SHRINK, unix.F_SEAL_GROW, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK, unix.F_SEAL_WRITE,
			unix.F_SEAL_FUTURE_WRITE, unix.F_SEAL_SEAL, unix.F_SEAL_EXEC, 0, 0x40)})
	case k < 845:
		g.add("same", op{A: file(), B: file(), N: int64(1 + g.IntN(200)), M: pick[int64](g, 0, 0, 100, 4095)})
	case k < 860:
		f := file()
		g.add("map", op{A: f, N: pick[int64](g, unix.PROT_READ|unix.PROT_WRITE, unix.PROT_READ|unix.PROT_WRITE, unix.PROT_READ)})
		for range 1 + g.IntN(2) {
			g.choose()
		}
		g.add(pick(g, "load", "load", "unmap"), op{A: f, M: g.offset(), L: 64})
		g.add("addseals", op{A: f, N: unix.F_SEAL_WRITE})
	default:
		a := odd()
		switch g.IntN(26) {
		case 0, 1:
			g.add("stat", op{A: a})
		case 2, 3:
			g.add("statfs", op{A: a})
		case 4, 5:
			g.add("link", op{A: a})
		case 6, 7:
			g.add("poll", op{A: a})
		case 8:
			g.add("epoll", op{A: a})
		case 9, 10:
			g.add("read", op{A: a, L: pick[int64](g, 1, 8, 64)})
		case 11:
			g.add("write", op{A: a, N: 3, L: pick[int64](g, 1, 8, 64)})
		case 12:
			g.add("pread", op{A: a, M: g.offset(), L: pick[int64](g, 1, 8, 64)})
		case 13:
			g.add("seek", op{A: a, M: pick[int64](g, 0, 1, 5, -1), N: pick[int64](g, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END)})
		case 14:
			g.add(pick(g, "map", "mapwrite"), op{A: a, N: unix.PROT_READ, L: 8})
		case 15:
			g.add(pick(g, "truncate", "sync", "flock"), op{A: a})
		case 16:
			g.add("sockopt", op{A: a})
		case 17:
			g.add("getfl", op{A: a})
			if g.chance(30) {
				g.add("setfl", op{A: a, N: pick[int64](g, 0, unix.O_NONBLOCK, unix.O_APPEND)})
				g.add("getfl", op{A: a})
			}
		case 18:
			g.add("getfd", op{A: a})
			if g.chance(30) {
				g.add("setfd", op{A: a, N: int64(g.IntN(2))})
				g.add("getfd", op{A: a})
			}
		case 19:
			g.add("reboot", op{N: int64(g.IntN(4))})
		case 20:
			g.add("load-kernel", op{A: a, N: int64(g.IntN(3))})
		case 22:
			g.add("statx", op{A: a})
		case 23:
			g.add("fdinfo", op{A: a})
		case 24:
			g.add("kcmp", op{A: pick(g, a, file()), B: pick(g, g.any(), file())})
		case 25:
			g.add("linkat", op{A: pick(g, a, file())})
		case 21:
			g.add(pick(g, "loaded", "getseals", "chmod", "pwrite"), op{A: a, N: pick[int64](g, 0o600, 0o700), L: 8})
		}
	}
}

// offset is where an edge may be.
func (g *generator) offset() int64 {
	return pick[int64](g, 0, 0, 1, 100, 4090, 4095, 4096, 5000, 8192, 9999, 65530)
}

// change does something to a file's bytes or size.
func (g *generator) change(f int) {
	size := g.slots[f].size
	around := pick(g, g.offset(), max(size-10, 0), size, size+1, max(size-4096, 0))
	length := pick[int64](g, 1, 10, 20, 100, 4096, 5000)
	if size > 1<<30 {
		around = min(around, 1<<20)
	}
	n := int64(g.IntN(50))
	switch g.IntN(17) {
	case 0, 1:
		g.add("write", op{A: f, N: n, L: length})
	case 2, 3, 4:
		g.add("pwrite", op{A: f, N: n, M: around, L: length})
	case 5:
		g.add("writev", op{A: f, N: n, L: length})
	case 6:
		g.add("pwritev", op{A: f, N: n, M: around, L: length})
	case 7:
		g.add("sendfile", op{A: f, N: n, L: length})
	case 8:
		g.add("copyrange", op{A: f, N: n, M: around, L: length})
	case 9:
		g.add("splice", op{A: f, N: n, M: around, L: length})
	case 10:
		to := pick(g, 0, size, size+1, size/2, around)
		g.add("truncate", op{A: f, M: to})
	case 11, 12:
		g.add("fallocate", op{A: f, M: around, L: length, N: pick[int64](g, 0, unix.FALLOC_FL_KEEP_SIZE,
			unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE,
			unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_COLLAPSE_RANGE)})
		if g.chance(40) {
			g.add("pwrite", op{A: f, N: n, M: around, L: min(length, 64)})
		}
	case 13:
		g.add("seek", op{A: f, M: around, N: pick[int64](g, unix.SEEK_SET, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE)})
	case 14:
		g.add("mapwrite", op{A: f, N: n, M: min(around, 60000), L: 16})
	case 15:
		g.add("setfl", op{A: f, N: pick[int64](g, unix.O_APPEND, unix.O_APPEND, 0)})
		g.add("write", op{A: f, N: n, L: 10})
	case 16:
		g.add("map", op{A: f, N: unix.PROT_READ | unix.PROT_WRITE})
		g.add("store", op{A: f, N: n, M: min(around, 60000), L: 16})
	}
}
