// SPDX-License-Identifier: MIT

package initrd

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/decompress"
	"github.com/klauspost/compress/zstd"
)

// node is a file in an archive: a path, then "/" for a directory, " -> " and a target for a symbolic link, or " = " and the
// content of a file.
type node string

func cpio(nodes ...node) []byte {
	var b bytes.Buffer
	add := func(name string, mode uint32, data string) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.Write(make([]byte, 1+-(b.Len()+1)&3))
		b.WriteString(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, n := range nodes {
		if name, target, ok := strings.Cut(string(n), " -> "); ok {
			add(name, typeLink|0o777, target)
		} else if name, data, ok := strings.Cut(string(n), " = "); ok {
			add(name, typeFile|0o755, data)
		} else {
			add(strings.TrimSuffix(string(n), "/"), typeDir|0o755, "")
		}
	}
	add("TRAILER!!!", 0, "")
	return b.Bytes()
}

func gzipped(plain []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(plain)
	z.Close()
	return b.Bytes()
}

func zstandard(plain []byte) []byte {
	z, _ := zstd.NewWriter(nil)
	return z.EncodeAll(plain, nil)
}

// stored is an lz4 stream of one block, with nothing but literals in it.
func stored(plain []byte) []byte {
	block := []byte{0xf0}
	n := len(plain) - 15
	for ; n >= 255; n -= 255 {
		block = append(block, 255)
	}
	block = append(append(block, byte(n)), plain...)
	return append(binary.LittleEndian.AppendUint32([]byte{0x02, 0x21, 0x4c, 0x18}, uint32(len(block))), block...)
}

// image puts archives one after the other, each at a multiple of 4.
func image(archives ...[]byte) []byte {
	var b []byte
	for _, a := range archives {
		b = append(b, a...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	return b
}

var (
	microcode = cpio("kernel/", "kernel/x86/", "kernel/x86/microcode/", "kernel/x86/microcode/GenuineIntel.bin = 070701 is in here too")
	dracut    = cpio("bin -> usr/bin", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/systemd/", "init -> usr/lib/systemd/systemd",
		"usr/lib/systemd/systemd = \x7fELF", "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-262.so = \x7fELF",
		"etc/initrd-release -> ../usr/lib/initrd-release", "usr/lib/initrd-release = NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION=dracut-112-7\n# no\n")
	mkosi = cpio("usr/lib/systemd/systemd = \x7fELF", "usr/bin/init -> ../lib/systemd/systemd", "sbin -> usr/bin", "usr/sbin -> bin",
		"init -> /usr/sbin/init", "usr/lib64/systemd/libsystemd-shared-258.1-1.fc43.so = \x7fELF")
	script  = cpio("init = #!/bin/sh", "usr/lib/systemd/systemd-udevd = \x7fELF", "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so = \x7fELF")
	busybox = cpio("init -> bin/busybox", "bin/busybox = \x7fELF")
	nixos   = cpio("init -> nix/store/abc-systemd-257.6/lib/systemd/systemd", "nix/store/abc-systemd-257.6/lib/systemd/systemd = \x7fELF",
		"nix/store/abc-systemd-257.6/lib/systemd/libsystemd-shared-257.so = \x7fELF", "nix/store/def-systemd-minimal-260/lib/systemd/libsystemd-shared-260.so = \x7fELF")
	modules = cpio("usr/", "usr/lib/", "usr/lib/systemd/", "usr/lib/modules/7.3.4/kernel.ko = \x7fELF")
)

var ofDracut = Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Version: 262, Library: "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-262.so",
	Release: map[string]string{"NAME": "Debian GNU/Linux", "ID": "debian", "VERSION": "dracut-112-7"}}

func with(c Contents, archives ...string) Contents {
	c.Archives = archives
	return c
}

func TestWhatIsInAnInitrd(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		want  Contents
	}{
		"uncompressed":                       {dracut, with(ofDracut, "")},
		"gzip, behind microcode":             {image(microcode, gzipped(dracut)), with(ofDracut, "", "gzip")},
		"zstd, with modules behind it":       {image(microcode, zstandard(dracut), gzipped(modules)), with(ofDracut, "", "zstd", "gzip")},
		"lz4, uncompressed modules":          {image(stored(dracut), modules), with(ofDracut, "lz4", "")},
		"zeros in front, between and behind": {image(make([]byte, 512), microcode, make([]byte, 512), zstandard(dracut), make([]byte, 4096)), with(ofDracut, "", "zstd")},
		"two archives in one stream":         {gzipped(image(microcode, make([]byte, 100), dracut)), with(ofDracut, "gzip")},
		"no trailer":                         {dracut[:bytes.Index(dracut, []byte("TRAILER!!!"))-headerSize], with(ofDracut, "")},
		"links over links": {mkosi, Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Version: 258,
			Library: "usr/lib64/systemd/libsystemd-shared-258.1-1.fc43.so", Archives: []string{""}}},
		"a script": {zstandard(script), Contents{Init: "init", Version: 257,
			Library: "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", Archives: []string{"zstd"}}},
		"another program": {busybox, Contents{Init: "bin/busybox", Elsewhere: true, Archives: []string{""}}},
		"systemd outside of /usr": {nixos, Contents{Init: "nix/store/abc-systemd-257.6/lib/systemd/systemd", Elsewhere: true, Systemd: true, Version: 257,
			Library: "nix/store/abc-systemd-257.6/lib/systemd/libsystemd-shared-257.so", Archives: []string{""}}},
		"a bootconfig behind it":           {bootconfig(image(microcode, gzipped(dracut)), "kernel.quiet = 1\n"), with(ofDracut, "", "gzip")},
		"a bootconfig, at a multiple of 4": {append(bootconfig(dracut, "kernel.quiet=\n"), 0, 0, 0), with(ofDracut, "")},
		"no init":                          {image(microcode, modules), Contents{Archives: []string{"", ""}}},
		"a link to what isn't there":       {cpio("init -> usr/lib/systemd/systemd"), Contents{Archives: []string{""}}},
		"a link to itself":                 {cpio("init -> sbin/init", "sbin/init -> ../init"), Contents{Archives: []string{""}}},
		"a link that leads out":            {cpio("init -> ../../../../usr/lib/systemd/systemd", "./usr/lib/systemd/systemd = x"), Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Archives: []string{""}}},
		"a later archive replaces the init": {image(dracut, cpio("init = #!/bin/sh")), func() Contents {
			c := with(ofDracut, "", "")
			c.Init, c.Systemd = "init", false
			return c
		}()},
	} {
		got, err := Read(context.Background(), bytes.NewReader(c.image), int64(len(c.image)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, *got, c.want)
		}
	}
}

// bootconfig appends one as "bootconfig -a" does.
func bootconfig(image []byte, text string) []byte {
	var sum uint32
	for _, c := range []byte(text) {
		sum += uint32(c)
	}
	image = append(bytes.Clone(image), text...)
	image = binary.LittleEndian.AppendUint32(image, uint32(len(text)))
	image = binary.LittleEndian.AppendUint32(image, sum)
	return append(image, "#BOOTCONFIG\n"...)
}

// TestWhatAKernelMayTake: of some initrds only the kernel can tell what is in them. They are not the same as damaged ones.
func TestWhatAKernelMayTake(t *testing.T) {
	wrong := bootconfig(dracut, "kernel.quiet\n")
	wrong[len(wrong)-len("#BOOTCONFIG\n")-1]++
	for name, c := range map[string]struct {
		image  []byte
		notAll bool
	}{
		"lzma":                                 {append(image(microcode), "\x5d\x00\x00\x80\x00 and so on"...), true},
		"bzip2":                                {[]byte("BZh91AY&SY"), true},
		"lzo":                                  {[]byte("\x89LZO\x00\r\n\x1a\n"), true},
		"junk behind what it starts":           {image(microcode, gzipped(dracut), []byte("something")), true},
		"a bootconfig that isn't one, so junk": {wrong, true},
		"junk behind microcode":                {image(microcode, []byte("something")), false},
		"cut off":                              {image(microcode, gzipped(dracut)[:200]), false},
		"junk":                                 {[]byte("something"), false},
	} {
		_, err := Read(t.Context(), bytes.NewReader(c.image), int64(len(c.image)))
		if err == nil || errors.Is(err, ErrNotAll) != c.notAll {
			t.Errorf("%s: %v", name, err)
		}
	}
	large := gzipped(cpio("init = " + node(strings.Repeat("\x00", 4<<20))))
	if _, err := read(t.Context(), bytes.NewReader(large), int64(len(large)), 1<<20); !errors.Is(err, ErrNotAll) {
		t.Errorf("a large one: %v", err)
	}
	if _, err := read(t.Context(), zeroed{nil, 2 << 20}, 2<<20, 1<<20); err == nil || errors.Is(err, ErrNotAll) {
		t.Errorf("zeros: %v", err)
	}
}

// TestTheLastLibraryCounts, however many there are before it.
func TestTheLastLibraryCounts(t *testing.T) {
	nodes := []node{"init -> usr/lib/systemd/systemd", "usr/lib/systemd/systemd = x"}
	for i := range 2 * librariesMax {
		nodes = append(nodes, node(fmt.Sprintf("usr/lib/%d/libsystemd-shared-262.so = x", i)))
	}
	image := cpio(append(nodes, "usr/lib/systemd/libsystemd-shared-257.so = x")...)
	if c, err := Read(t.Context(), bytes.NewReader(image), int64(len(image))); err != nil || c.Version != 257 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDamagedInitrds(t *testing.T) {
	long := cpio("init -> " + node(strings.Repeat("x", nameMax+1)))
	badField := bytes.Clone(dracut)
	copy(badField[6+8*6:], "zzzzzzzz")
	noName := bytes.Clone(dracut)
	copy(noName[6+8*11:], "00000000")
	for name, c := range map[string]struct {
		image []byte
		says  string
	}{
		"empty":                      {nil, "neither a cpio archive"},
		"zeros":                      {make([]byte, 4096), "neither a cpio archive"},
		"another file":               {[]byte("#!/bin/sh\n"), "neither a cpio archive"},
		"cut off":                    {dracut[:len(dracut)-10], "unexpected EOF"},
		"cut off in the stream":      {gzipped(dracut)[:200], "unexpected EOF"},
		"something behind":           {image(dracut, []byte("something")), "archive 1: neither"},
		"something in the stream":    {gzipped(image(dracut, []byte("something"))), "archive 1: "},
		"no number":                  {badField, "zzzzzzzz"},
		"no name":                    {noName, "name of 0 bytes"},
		"a target beyond PATH_MAX":   {long, "symbolic link of"},
		"compressed with bzip2":      {[]byte("BZh91AY&SY"), "bzip2: this compression isn't supported"},
		"more archives than any has": {bytes.Repeat(cpio(), archivesMax+1), "more than 256 archives"},
	} {
		_, err := Read(context.Background(), bytes.NewReader(c.image), int64(len(c.image)))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, which doesn't say %q", name, err, c.says)
		}
	}
	if _, err := Read(context.Background(), bytes.NewReader([]byte("BZh91AY&SY")), 10); !errors.Is(err, decompress.ErrUnsupported) {
		t.Errorf("bzip2: %v", err)
	}
}

// What comes before the damage counts for the kernel, too.
func TestADamagedInitrdIsKnownUpToTheDamage(t *testing.T) {
	damaged := image(dracut, []byte("something"))
	got, err := Read(context.Background(), bytes.NewReader(damaged), int64(len(damaged)))
	if err == nil || got == nil || got.Version != 262 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAnInitrdMayNotUnpackToTooMuch(t *testing.T) {
	bomb := gzipped(cpio("init = " + node(strings.Repeat("\x00", 4<<20))))
	if _, err := read(context.Background(), bytes.NewReader(bomb), int64(len(bomb)), 1<<20); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%v", err)
	}
	zeros := gzipped(make([]byte, 4<<20))
	if _, err := read(context.Background(), bytes.NewReader(zeros), int64(len(zeros)), 1<<20); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("zeros: %v", err)
	}
}

func TestReadingEndsWhenNobodyWaits(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Read(ctx, bytes.NewReader(dracut), int64(len(dracut))); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestHugeFiles: what nobody can have for an initrd isn't read, and empty blocks without end only as long as somebody waits.
func TestHugeFiles(t *testing.T) {
	for what, begins := range map[string][]byte{
		"nothing": nil, "cpio": dracut[:200], "an entry of 4 GiB": cpio("init = " + node("x"))[:100],
		"zstd": {0x28, 0xb5, 0x2f, 0xfd, 0, 0},
	} {
		for _, size := range []int64{1 << 40, unpackedMax} {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			begin := time.Now()
			c, err := Read(ctx, zeroed{begins, size}, size)
			if took := time.Since(begin); err == nil || took > 10*time.Second {
				t.Errorf("%s, %d bytes: %+v, %v, after %v", what, size, c, err, took)
			}
			cancel()
		}
	}
}

// zeroed is a file that begins so, and has zeros up to its size.
type zeroed struct {
	begins []byte
	size   int64
}

func (z zeroed) ReadAt(p []byte, at int64) (int, error) {
	n := int(min(int64(len(p)), z.size-at))
	clear(p[:n])
	if at < int64(len(z.begins)) {
		copy(p[:n], z.begins[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func FuzzRead(f *testing.F) {
	for _, i := range [][]byte{dracut, mkosi, script, image(microcode, gzipped(mkosi)), image(zstandard(script), stored(busybox))} {
		f.Add(i)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		c, err := read(context.Background(), bytes.NewReader(image), int64(len(image)), 4<<20)
		if c == nil || err == nil && len(c.Archives) == 0 {
			t.Errorf("%+v, %v", c, err)
		}
	})
}
