// SPDX-License-Identifier: MIT

package kimage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/decompress"
)

func readImage(t testing.TB, image []byte) (*Image, error) {
	t.Helper()
	return Read(context.Background(), bytes.NewReader(image), int64(len(image)))
}

// packed are images of the same kernel.
func packed(t testing.TB) map[string]struct {
	image       []byte
	kind        Kind
	compression decompress.Method
} {
	// What was whole once, since gzip data in it may change with Go: xz --check=crc32 --x86 --lzma2=dict=128MiB.
	xz, err := os.ReadFile("testdata/vmlinux.xz")
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := decompress.NewReader(bufio.NewReader(bytes.NewReader(xz)), decompress.XZ)
	if err != nil {
		t.Fatal(err)
	}
	once, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]struct {
		image       []byte
		kind        Kind
		compression decompress.Method
	}{
		"bzImage, gzip": {bzImage(gzipped(whole)), BzImage, decompress.Gzip},
		"bzImage, zstd": {bzImage(sized(zstandard(whole), whole)), BzImage, decompress.Zstd},
		"bzImage, xz":   {bzImage(sized(xz, once)), BzImage, decompress.XZ},
		"vmlinux":       {whole, Vmlinux, decompress.None},
		"vmlinux, gzip": {gzipped(whole), Vmlinux, decompress.Gzip},
		"Image":         {arm64(whole), Arm64, decompress.None},
		"Image, gzip":   {gzipped(arm64(whole)), Arm64, decompress.Gzip},
		"zboot, zstd":   {zboot(zstandard(arm64(whole))), Zboot, decompress.Zstd},
		"UKI, bzImage":  {pe(false, part{".linux", bzImage(gzipped(whole))}), Unified, decompress.Gzip},
		"UKI, zboot":    {pe(false, part{".linux", zboot(gzipped(arm64(whole)))}), Unified, decompress.Gzip},
	}
}

func TestAKernelInWhateverItIsPacked(t *testing.T) {
	for name, c := range packed(t) {
		i, err := readImage(t, c.image)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if i.Kind != c.kind || i.Compression != c.compression {
			t.Errorf("%s: is taken for %s, %s", name, i.Kind, i.Compression)
		}
		if i.Release != release || i.Banner != banner {
			t.Errorf("%s: release %q, banner %q", name, i.Release, i.Banner)
		}
		if !slices.Equal(i.Formats, formats) || !i.Complete {
			t.Errorf("%s: formats %v", name, i.Formats)
		}
		if i.Config["CONFIG_LOCALVERSION"] != "-test" || i.ConfigFrom != "the image" {
			t.Errorf("%s: configuration %v from %q", name, i.Config, i.ConfigFrom)
		}
		if i.Signed {
			t.Errorf("%s: is taken for signed", name)
		}
	}
}

// A match is found wherever the borders of what is looked at at once are.
func TestFormatsAtEachPlace(t *testing.T) {
	for offset := windowSize - 2*ahead; offset < windowSize+2*behind; offset += 7 {
		kernel := append(make([]byte, offset), vmlinuxTail()...)
		s := &scan{}
		if err := s.read(context.Background(), bytes.NewReader(kernel), unpackedMax); err != nil {
			t.Fatal(err)
		}
		if len(s.formats) != len(formats) || s.banner != banner {
			t.Fatalf("at %d: %v, %q", offset, s.formats, s.banner)
		}
		if c, err := s.config(); err != nil || c[LiveUpdate] != "y" {
			t.Fatalf("at %d: %v, %v", offset, c, err)
		}
	}
}

func vmlinuxTail() []byte { return whole[bytes.Index(whole, []byte(weak)):] }

func TestTheHeaderOfABzImage(t *testing.T) {
	i, err := readImage(t, bzImage(gzipped(whole)))
	if err != nil {
		t.Fatal(err)
	}
	s := i.Setup
	if s.Protocol != 0x020f || !s.Relocatable || s.InitSize != 32<<20 || !strings.HasPrefix(s.Version, release+" (somebody") {
		t.Errorf("%+v", s)
	}
	if err := s.KexecFile(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		at   int
		to   byte
		says string
	}{
		{0x206, 0x0b, "2.11"}, {0x211, 0, "zImage"}, {0x236, aboveFourGiB, "64-bit"}, {0x236, kernel64, "CONFIG_RELOCATABLE"},
	} {
		image := bzImage(gzipped(whole))
		image[c.at] = c.to
		i, err := readImage(t, image)
		if err != nil {
			t.Errorf("%#x: %v", c.at, err)
		} else if err := i.Setup.KexecFile(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%#x: %v", c.at, err)
		}
	}
}

func TestAUKI(t *testing.T) {
	kernel := bzImage(gzipped(whole))
	image := pe(true, part{".text", []byte("stub")}, part{".osrel", []byte("ID=debian\n")}, part{".uname", []byte(release)},
		part{".cmdline", []byte("kho=on liveupdate=on root=LABEL=x\n\x00")}, part{".initrd", []byte("070701")}, part{".linux", kernel})
	i, err := readImage(t, image)
	if err != nil {
		t.Fatal(err)
	}
	u := i.UKI
	if !i.Signed || u.LinuxSigned || u.CommandLine != "kho=on liveupdate=on root=LABEL=x" || u.Uname != release || u.OSRelease != "ID=debian" || u.Profiles != 0 {
		t.Errorf("signed %v, %+v", i.Signed, u)
	}
	if got := image[u.Initrd.Offset:][:u.Initrd.Size]; string(got) != "070701" {
		t.Errorf("initrd %q", got)
	}
	if got := image[u.Linux.Offset:][:u.Linux.Size]; !bytes.Equal(got, kernel) {
		t.Error("the kernel isn't where it is said to be")
	}
	if i.Setup == nil || i.Setup.KexecFile() != nil {
		t.Errorf("%+v", i.Setup)
	}
}

func TestTheFirstProfileOfAUKI(t *testing.T) {
	i, err := readImage(t, pe(false, part{".linux", bzImage(gzipped(whole))}, part{".cmdline", []byte("for all")},
		part{".profile", []byte("ID=main")}, part{".cmdline", []byte("main")},
		part{".profile", []byte("ID=rescue")}, part{".cmdline", []byte("rescue")}))
	if err != nil || i.UKI.Profiles != 2 || i.UKI.CommandLine != "main" {
		t.Errorf("%+v, %v", i.UKI, err)
	}
}

func TestDamagedImages(t *testing.T) {
	good := bzImage(gzipped(whole))
	change := func(image []byte, f func(image []byte)) []byte {
		image = bytes.Clone(image)
		f(image)
		return image
	}
	itself := pe(false, part{".linux", nil})
	table := 128 + 24 + 240
	binary.LittleEndian.PutUint32(itself[table+8:], uint32(len(itself)))
	binary.LittleEndian.PutUint32(itself[table+16:], uint32(len(itself)))
	binary.LittleEndian.PutUint32(itself[table+20:], 0)
	for name, c := range map[string]struct {
		image []byte
		says  string
	}{
		"empty":                      {nil, "no kernel image"},
		"text":                       {[]byte(strings.Repeat("text ", 1000)), "no kernel image"},
		"an initrd":                  {gzipped([]byte("070701")), "no kernel image"},
		"another program":            {[]byte("\x7fELF" + strings.Repeat("\x00", 1000)), "no kernel image"},
		"cut off":                    {good[:len(good)/2], "is it cut off?"},
		"cut off in the header":      {good[:0x220], "no kernel image"},
		"a damaged stream":           {change(good, func(i []byte) { i[len(i)-9200] ^= 0xff }), "unpacking the kernel: gzip: "},
		"a stream that ends early":   {bzImage(gzipped(whole)[:3000]), "unexpected EOF"},
		"another size":               {bzImage(sized(zstandard(whole), whole[1:])), "is it damaged?"},
		"no kernel in it":            {bzImage(gzipped([]byte("\x7fELF and no more"))), "no kernel"},
		"two releases":               {change(good, func(i []byte) { copy(i[0x600:], "6.1.0") }), "the kernel itself says"},
		"LZMA":                       {bzImage([]byte("\x5d\x00\x00\x80\x00 and so on")), "lzma: this compression isn't supported"},
		"an old protocol":            {change(good, func(i []byte) { i[0x206] = 7 }), "2.7"},
		"a wrong payload":            {change(good, func(i []byte) { copy(i[0x248:], "\xff\xff\xff\xff") }), "is it cut off?"},
		"a configuration of nothing": {bzImage(gzipped(vmlinux(strs, handlers, "nothing"))), "no option"},
		"a PE header nowhere":        {change(itself, func(i []byte) { copy(i[60:], "\xff\xff\xff\xff") }), "beyond the end"},
		"a section nowhere":          {change(itself, func(i []byte) { copy(i[table+20:], "\xff\xff\xff\xff") }), `".linux" is said to be`},
		"a signature nowhere":        {change(pe(true, part{".linux", good}), func(i []byte) { copy(i[152+144:], "\xff\xff\xff\xff") }), "certificate table is said"},
		"sections without end":       {change(itself, func(i []byte) { copy(i[128+6:], "\xff\xff") }), "65535 sections"},
		"a UKI in itself":            {itself, "there is a UKI in it"},
		"a UKI of another release":   {pe(false, part{".linux", good}, part{".uname", []byte("6.1.0")}), "section .uname"},
		"an endless command line":    {pe(false, part{".linux", good}, part{".cmdline", make([]byte, textMax+1)}), "section .cmdline"},
	} {
		i, err := readImage(t, c.image)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, which doesn't say %q", name, err, c.says)
		}
		if kernelIsRead := name == "a configuration of nothing" || name == "a UKI of another release"; i != nil && i.Complete != kernelIsRead {
			t.Errorf("%s: that the formats are known is said to be %v", name, i.Complete)
		}
	}
}

// TestTheCodeThatUnpacksTheKernel: it is entered first, and an image without all of it is none, however whole the kernel in it is.
func TestTheCodeThatUnpacksTheKernel(t *testing.T) {
	good := bzImage(sized(zstandard(whole), whole))
	i, err := readImage(t, good)
	if err != nil {
		t.Fatal(err)
	}
	payload := i.Setup.Payload
	behind := int(payload.Offset + payload.Size)
	hole := func(from, to int) []byte {
		image := bytes.Clone(good)
		clear(image[from:to])
		return image
	}
	short := bytes.Clone(good)
	binary.LittleEndian.PutUint32(short[0x1f4:], uint32(payload.Size)/16)
	for name, c := range map[string]struct {
		image []byte
		says  string
	}{
		"cut off behind the payload": {good[:behind], "is it cut off?"},
		"a page too short":           {good[:len(good)-4096], "is it cut off?"},
		"never written to its end":   {hole(behind, len(good)), "only zeros"},
		"not its last 8 KiB":         {hole(len(good)-8<<10, len(good)), "only zeros"},
		"nor its beginning":          {hole(0x800, int(payload.Offset)), "only zeros"},
		"the code ends before it":    {short, "behind the end of the code"},
		"in a UKI":                   {pe(false, part{".linux", good[:behind]}), "is it cut off?"},
	} {
		i, err := readImage(t, c.image)
		if err == nil || !strings.Contains(err.Error(), c.says) || i == nil || i.Complete {
			t.Errorf("%s: %+v, %v, which doesn't say %q", name, i, err, c.says)
		}
	}
	// Between sections there are zeros, and a signature may come behind.
	for name, image := range map[string][]byte{"zeros between sections": hole(len(good)-5<<10, len(good)-2<<10), "signed": append(bytes.Clone(good), make([]byte, 5000)...)} {
		if i, err := readImage(t, image); err != nil || !i.Complete {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnImageThatCannotBeUnpackedStillHasItsHeader(t *testing.T) {
	i, err := readImage(t, bzImage([]byte("\x5d\x00\x00\x80\x00 and so on")))
	if !errors.Is(err, decompress.ErrUnsupported) || i == nil || i.Release != release || i.Compression != decompress.LZMA || i.Complete {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestAKernelMayNotUnpackToTooMuch(t *testing.T) {
	image := bzImage(gzipped(whole))
	if _, err := read(context.Background(), bytes.NewReader(image), int64(len(image)), 1<<20); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Read(ctx, bytes.NewReader(image), int64(len(image))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// sparse is a file of that size that begins so, and has zeros behind that.
func sparse(t *testing.T, size int64, begins []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "sparse")
	if err := os.WriteFile(name, begins, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Skip("no sparse file can be made here:", err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A frame whose window is small, behind which each three zeros are an empty block, and the next follows.
var emptyBlocks = []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0}

// TestHugeFiles: a file of any size ends in an error at once, or when nobody waits any more.
func TestHugeFiles(t *testing.T) {
	for what, begins := range map[string][]byte{
		"nothing": nil, "vmlinux": []byte("\x7fELF\x02\x01\x01"), "zstd": emptyBlocks, "a UKI": pe(false, part{".linux", []byte("x")}),
		"gzip": {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0},
	} {
		const size = 1 << 40
		begin := time.Now()
		i, err := Read(t.Context(), sparse(t, size, begins), size)
		if took := time.Since(begin); err == nil || took > 10*time.Second {
			t.Errorf("%s: %+v, %v, after %v", what, i, err, took)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	const size = unpackedMax
	begin := time.Now()
	_, err := Read(ctx, sparse(t, size, emptyBlocks), size)
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
		t.Errorf("empty blocks: %v, after %v", err, took)
	}
}

func FuzzRead(f *testing.F) {
	small := vmlinuxTail()
	elf := append([]byte("\x7fELF"), small...)
	f.Add(bzImage(gzipped(elf)))
	f.Add(bzImage(sized(zstandard(elf), elf)))
	f.Add(zboot(gzipped(elf)))
	f.Add(elf)
	f.Add(pe(true, part{".linux", bzImage(gzipped(elf))}, part{".cmdline", []byte("quiet")}, part{".uname", []byte(release)}, part{".initrd", []byte("070701")}))
	f.Fuzz(func(t *testing.T, image []byte) {
		i, err := read(context.Background(), bytes.NewReader(image), int64(len(image)), 4<<20)
		if err == nil && (i == nil || i.Release == "" || !i.Complete) {
			t.Errorf("%+v without an error", i)
		}
		if i == nil {
			return
		}
		if u := i.UKI; u != nil && (u.Linux.Offset+u.Linux.Size > int64(len(image)) || u.Initrd.Offset+u.Initrd.Size > int64(len(image))) {
			t.Errorf("%+v is beyond the end of the file", u)
		}
		Compare(&i.Kernel, &i.Kernel)
	})
}
