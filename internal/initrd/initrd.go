// SPDX-License-Identifier: MIT

// Package initrd tells what an initrd will run as PID 1, from the image alone. Where that is systemd, it and not the host's
// restores the file descriptor stores after a live update, and one older than 261 restores nothing.
//
// An initrd is one or several cpio archives ("newc"), each compressed or not, with zeros between them; what a later one has
// replaces what an earlier one had (unpack_to_rootfs() in init/initramfs.c, Linux 7.2.13). The image is read once from front
// to back, nothing is written, and the memory needed doesn't grow with it.
package initrd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-project/holdfast/internal/decompress"
)

// Contents is what was found in an initrd.
type Contents struct {
	// Init is the file that the kernel will run as PID 1, after symbolic links, without the leading slash:
	// "usr/lib/systemd/systemd", or "init" where that is a program or script of its own. Empty: there is none, and the
	// kernel goes on without the initrd's.
	Init string
	// Elsewhere says that Init is where no program was looked for, so that it may be anything, or not there at all.
	Elsewhere bool
	// Systemd says whether Init is systemd.
	Systemd bool
	// Version is systemd's, the number in the name of libsystemd-shared, which PID 1 is linked to. 0: no such library was
	// found. It may be there though Init isn't systemd.
	Version int
	// Library is the path which Version is from. What follows the number is the distribution's.
	Library string
	// Release are the fields of etc/initrd-release, which is there in an initrd with systemd.
	Release map[string]string
	// Archives are the cpio archives by how each is compressed ("" for not at all), in their order.
	Archives []string
}

// ErrNotAll is wrapped by the error for an initrd that a kernel may well take, and that was not read to its end.
var ErrNotAll = errors.New("it was not read to its end")

// Limits for what may be hostile. An initrd with a distribution's firmware unpacks to less than 1 GiB.
const (
	unpackedMax  = 2 << 30
	sizeMax      = 4 << 30 // KEXEC_FILE_SIZE_MAX, kernel/kexec_file.c, Linux 7.2.13
	librariesMax = 64
	archivesMax  = 256
	nameMax      = 4096 // PATH_MAX, as in the kernel; for the targets of symbolic links too
	releaseMax   = 64 << 10
	textMax      = 32767 // XBC_DATA_MAX, include/linux/bootconfig.h, Linux 7.2.13
	headerSize   = 110
)

// errJunk is for what is no archive.
var errJunk = errors.New("neither a cpio archive nor compressed data")

// Read reads the initrd of size bytes in r. A kernel takes what comes before a fault, so with an error the contents up to
// there are returned too.
func Read(ctx context.Context, r io.ReaderAt, size int64) (*Contents, error) {
	return read(ctx, r, size, unpackedMax)
}

func read(ctx context.Context, r io.ReaderAt, size, limit int64) (*Contents, error) {
	var t tree
	c := &Contents{}
	if size > sizeMax {
		return c, fmt.Errorf("reading the initrd: it has %d MiB, which is more than can be loaded", size>>20)
	}
	size = withoutBootconfig(r, size)
	in := bufio.NewReaderSize(decompress.Until(ctx, io.NewSectionReader(r, 0, size)), 64<<10)
	budget := &budget{ctx: ctx, left: limit}
	err := func() error {
		for {
			if err := skipZeros(budget, in); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			if len(c.Archives) == archivesMax {
				return fmt.Errorf("more than %d archives", archivesMax)
			}
			head, _ := in.Peek(decompress.HeadSize)
			if bytes.HasPrefix(head, []byte("07070")) {
				c.Archives = append(c.Archives, "")
				if err := t.archive(&entries{r: in, budget: budget}); err != nil {
					return err
				}
				continue
			}
			method := decompress.Detect(head)
			if method == decompress.None {
				return errJunk
			}
			c.Archives = append(c.Archives, string(method))
			plain, err := decompress.NewReader(in, method)
			if err != nil {
				return err
			}
			if err := t.compressed(bufio.NewReaderSize(plain, 64<<10), budget); err != nil {
				return err
			}
		}
	}()
	t.describe(c)
	if err == nil && len(c.Archives) == 0 {
		err = errJunk
	}
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, decompress.ErrUnsupported), errors.Is(err, errJunk) && c.Init != "":
		// Of junk behind a whole archive the kernel says a line, and goes on with what it has.
		err = fmt.Errorf("%w: %w", err, ErrNotAll)
	case errors.Is(err, ErrNotAll) && len(c.Archives) == 0:
		err = errJunk // zeros alone
	}
	return c, fmt.Errorf("reading the initrd: archive %d: %w", max(len(c.Archives), 1), err)
}

// withoutBootconfig is the size of what comes before a bootconfig, which the kernel cuts off first (get_boot_config_from_initrd() in
// init/main.c, Linux 7.2.13): the text, its size and checksum in 4 bytes each, and this word, behind which up to 3 bytes may be.
func withoutBootconfig(r io.ReaderAt, size int64) int64 {
	const word = "#BOOTCONFIG\n"
	tail := make([]byte, min(size, textMax+8+int64(len(word))+3))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return size
	}
	at := bytes.LastIndex(tail, []byte(word))
	if at < 8 || len(tail)-at-len(word) > 3 {
		return size
	}
	length, sum := int(binary.LittleEndian.Uint32(tail[at-8:])), binary.LittleEndian.Uint32(tail[at-4:])
	if length > min(at-8, textMax) {
		return size
	}
	for _, c := range tail[at-8-length : at-8] {
		sum -= uint32(c)
	}
	if sum != 0 {
		return size
	}
	return size - int64(len(tail)-(at-8-length))
}

// compressed reads the archives in one compressed stream, to its end.
func (t *tree) compressed(plain *bufio.Reader, budget *budget) error {
	for {
		switch err := skipZeros(budget, plain); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
		if err := t.archive(&entries{r: plain, budget: budget}); err != nil {
			return err
		}
	}
}

// budget ends the reading of what unpacks to too much, and when nobody waits for it any more.
type budget struct {
	ctx  context.Context
	left int64
}

func (b *budget) take(n int64) error {
	if b.left -= n; b.left < 0 {
		return fmt.Errorf("%w: it unpacks to more than an initrd has", ErrNotAll)
	}
	return b.ctx.Err()
}

func skipZeros(budget *budget, r *bufio.Reader) error {
	for {
		if _, err := r.Peek(1); err != nil {
			return err
		}
		seen, _ := r.Peek(r.Buffered())
		zeros := len(seen) - len(bytes.TrimLeft(seen, "\x00"))
		if err := budget.take(int64(zeros)); err != nil {
			return err
		}
		r.Discard(zeros) // they are in the buffer
		if zeros < len(seen) {
			return nil
		}
	}
}

// entries reads one cpio archive. Offsets within it count from its start, which is a multiple of 4 in the image.
type entries struct {
	r      *bufio.Reader
	budget *budget
	pos    int64
}

type entry struct {
	name string
	mode uint32
	size int64
}

const (
	typeMask = 0o170000
	typeLink = 0o120000
	typeFile = 0o100000
	typeDir  = 0o040000
)

// next reads the header of the next entry and its name, and returns io.EOF after the last.
func (e *entries) next() (entry, error) {
	if _, err := e.r.Peek(1); err == io.EOF {
		return entry{}, io.EOF // the trailer is optional
	}
	head := make([]byte, headerSize)
	if err := e.full(head); err != nil {
		return entry{}, err
	}
	if magic := string(head[:6]); magic != "070701" && magic != "070702" {
		return entry{}, fmt.Errorf("no cpio header at %d of the archive, but %q", e.pos-headerSize, magic)
	}
	field := func(n int) (uint32, error) {
		v, err := strconv.ParseUint(string(head[6+8*n:14+8*n]), 16, 32)
		if err != nil {
			err = fmt.Errorf("the cpio header at %d of the archive has a field %q", e.pos-headerSize, head[6+8*n:14+8*n])
		}
		return uint32(v), err
	}
	mode, err1 := field(1)
	size, err2 := field(6)
	length, err3 := field(11)
	if err := errors.Join(err1, err2, err3); err != nil {
		return entry{}, err
	}
	if length == 0 || length > nameMax {
		return entry{}, fmt.Errorf("the cpio header at %d of the archive has a name of %d bytes", e.pos-headerSize, length)
	}
	name := make([]byte, length)
	if err := e.full(name); err != nil {
		return entry{}, err
	}
	name, _, _ = bytes.Cut(name, []byte{0})
	if err := e.skip(-e.pos & 3); err != nil {
		return entry{}, err
	}
	if string(name) == "TRAILER!!!" {
		return entry{}, io.EOF
	}
	return entry{name: string(name), mode: mode, size: int64(size)}, nil
}

func (e *entries) full(p []byte) error {
	if err := e.budget.take(int64(len(p))); err != nil {
		return err
	}
	e.pos += int64(len(p))
	if _, err := io.ReadFull(e.r, p); err == io.EOF {
		return io.ErrUnexpectedEOF
	} else if err != nil {
		return err
	}
	return nil
}

func (e *entries) skip(n int64) error {
	for n > 0 {
		// In pieces, so that the budget is looked at in between.
		c := min(n, 1<<20)
		if err := e.budget.take(c); err != nil {
			return err
		}
		if _, err := e.r.Discard(int(c)); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		e.pos += c
		n -= c
	}
	return nil
}

// tree is what of the unpacked files matters: what may be on the way from /init to systemd.
type tree struct {
	links     map[string]string // symbolic links, of those in onTheWay
	files     map[string]bool   // files, of those in onTheWay
	libraries []string          // libsystemd-shared, the last ones
	release   []byte
}

// onTheWay are the names that can lead from /init to PID 1's program.
var onTheWay = map[string]bool{
	"init": true, "bin": true, "sbin": true, "lib": true, "usr/sbin": true, "usr/bin": true, "usr/lib": true,
	"bin/init": true, "sbin/init": true, "usr/sbin/init": true, "usr/bin/init": true,
	"lib/systemd": true, "usr/lib/systemd": true, "lib/systemd/systemd": true, "usr/lib/systemd/systemd": true,
	"bin/systemd": true, "usr/bin/systemd": true,
}

// Debian: usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-262.so; Fedora: usr/lib64/systemd/libsystemd-shared-258.1-1.fc43.so.
// NixOS: nix/store/HASH-systemd-257/lib/systemd/libsystemd-shared-257.so.
var shared = regexp.MustCompile(`(?:^|/)lib[^/]*/(?:[^/]+/)*libsystemd-shared-([0-9]{1,6})[^/]*\.so$`)

func (t *tree) archive(e *entries) error {
	for {
		f, err := e.next()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if f.size < 0 || f.mode&typeMask == typeLink && f.size > nameMax {
			return fmt.Errorf("%q is a symbolic link of %d bytes", f.name, f.size)
		}
		name := strings.TrimPrefix(path.Clean("/"+f.name), "/")
		var data []byte
		if isRelease := name == "etc/initrd-release" || name == "usr/lib/initrd-release"; f.mode&typeMask == typeLink && onTheWay[name] ||
			f.mode&typeMask == typeFile && isRelease && f.size > 0 {
			data = make([]byte, min(f.size, releaseMax))
			if err := e.full(data); err != nil {
				return err
			}
			if isRelease {
				t.release = data
			}
		}
		t.add(name, f.mode, string(data))
		if err := e.skip(f.size - int64(len(data))); err != nil {
			return err
		}
		if err := e.skip(-e.pos & 3); err != nil {
			return err
		}
	}
}

func (t *tree) add(name string, mode uint32, target string) {
	if mode&typeMask == typeFile && shared.MatchString(name) {
		t.libraries = append(t.libraries[max(len(t.libraries)-librariesMax+1, 0):], name)
	}
	// A directory is made only where nothing is, and leaves what is there.
	if !onTheWay[name] || mode&typeMask == typeDir {
		return
	}
	if t.links == nil {
		t.links, t.files = map[string]string{}, map[string]bool{}
	}
	delete(t.links, name)
	delete(t.files, name)
	switch mode & typeMask {
	case typeLink:
		t.links[name] = target
	case typeFile:
		t.files[name] = true
	}
}

// resolve follows symbolic links, in the last part of the name and before it.
func (t *tree) resolve(name string) string {
	for range 16 {
		followed := false
		for i := 1; i <= len(name); i++ {
			if i < len(name) && name[i] != '/' {
				continue
			}
			target, ok := t.links[name[:i]]
			if !ok {
				continue
			}
			if !path.IsAbs(target) {
				target = path.Join("/", path.Dir(name[:i]), target)
			}
			name = strings.TrimPrefix(path.Join(target, name[i:]), "/")
			followed = true
			break
		}
		if !followed {
			return name
		}
	}
	return ""
}

func (t *tree) describe(c *Contents) {
	// The kernel runs /init, unless rdinit= says otherwise (init/main.c).
	c.Init = t.resolve("init")
	if c.Elsewhere = c.Init != "" && !onTheWay[c.Init]; !c.Elsewhere && !t.files[c.Init] {
		c.Init = ""
	}
	c.Systemd = path.Base(c.Init) == "systemd"
	c.Library = t.library(c.Init)
	if m := shared.FindStringSubmatch(c.Library); m != nil {
		c.Version, _ = strconv.Atoi(m[1])
	}
	c.Release = osRelease(t.release)
}

// library is the one that a program is linked to: the last in lib or usr/lib, or for a program elsewhere the last in its directory.
func (t *tree) library(program string) (found string) {
	for _, name := range t.libraries {
		first, _, _ := strings.Cut(strings.TrimPrefix(name, "usr/"), "/")
		if onTheWay[program] || program == "" {
			if strings.HasPrefix(first, "lib") {
				found = name
			}
		} else if strings.HasPrefix(name, path.Dir(program)+"/") {
			found = name
		}
	}
	return found
}

// osRelease reads os-release(5).
func osRelease(data []byte) map[string]string {
	var fields map[string]string
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if fields == nil {
			fields = map[string]string{}
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		fields[name] = value
	}
	return fields
}
