// SPDX-License-Identifier: MIT

package decompress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

// sample is what the files in testdata hold. The calls in it are what xz's filter for x86 works on.
func sample() []byte {
	var b bytes.Buffer
	for i := range 6000 {
		fmt.Fprintf(&b, "kexec %d\x00", i*i)
		b.Write(binary.LittleEndian.AppendUint32([]byte{0xe8}, uint32(-b.Len())))
	}
	return b.Bytes()
}

func file(t testing.TB, name string) []byte {
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// streams are sample() in each way of compressing.
func streams(t testing.TB) map[string][]byte {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(sample())
	z.Close()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"gzip":                      packed.Bytes(),
		"zstd":                      encoder.EncodeAll(sample(), nil),
		"zstd, of a known size":     file(t, "sample.zst"),       // zstd -22 --ultra
		"zstd, as of a kernel":      file(t, "sample.cat.zst"),   // cat sample | zstd -22 --ultra
		"xz, as of a kernel":        file(t, "sample.x86.xz"),    // xz --check=crc32 --x86 --lzma2=dict=128MiB
		"xz, as of an initrd":       file(t, "sample.xz"),        // xz --check=crc32 -1
		"xz, several blocks, crc64": file(t, "sample.blocks.xz"), // xz --block-size=20000
		"lz4":                       file(t, "sample.lz4"),       // lz4 -l
	}
}

func read(stream io.Reader) (plain []byte, rest []byte, err error) {
	r := bufio.NewReader(stream)
	head, _ := r.Peek(HeadSize)
	z, err := NewReader(r, Detect(head))
	if err != nil {
		return nil, nil, err
	}
	if plain, err = io.ReadAll(z); err != nil {
		return plain, nil, err
	}
	rest, err = io.ReadAll(r)
	return plain, rest, err
}

func TestAStreamIsReadToItsEndAndNoFurther(t *testing.T) {
	for name, stream := range streams(t) {
		for _, follows := range []string{"", "070701", "\x1f\x8b\x08\x00", "(\xb5/\xfd0000", "\xfd7zXZ\x00\x00\x01"} {
			if name == "lz4" && strings.HasPrefix(follows, "\x1f") {
				continue // it may be a block's size, for the kernel too
			}
			plain, rest, err := read(strings.NewReader(string(stream) + follows))
			if err != nil {
				t.Fatalf("%s, followed by %q: %v", name, follows, err)
			}
			if !bytes.Equal(plain, sample()) {
				t.Errorf("%s, followed by %q: %d bytes came out, which aren't those that went in", name, follows, len(plain))
			}
			if string(rest) != follows {
				t.Errorf("%s, followed by %q: %q is left", name, follows, rest)
			}
		}
		if plain, _, err := read(iotest.OneByteReader(bytes.NewReader(stream))); err != nil || !bytes.Equal(plain, sample()) {
			t.Errorf("%s, byte by byte: %d bytes, %v", name, len(plain), err)
		}
	}
}

func TestACutStreamIsAnError(t *testing.T) {
	for name, stream := range streams(t) {
		for _, n := range []int{1, 5, 8, 13, len(stream) / 2, len(stream) - 1} {
			if name == "lz4" && n == 5 {
				continue // nothing marks its end; between two blocks it may be padding that is cut
			}
			if plain, _, err := read(bytes.NewReader(stream[:n])); err == nil {
				t.Errorf("%s: with %d of %d bytes, %d came out and no error", name, n, len(stream), len(plain))
			}
		}
	}
}

func TestADamagedStreamDoesNoHarm(t *testing.T) {
	for name, stream := range streams(t) {
		if strings.Contains(name, "kernel") {
			continue // their windows take a while to get, many times over
		}
		for at := 0; at < len(stream); at += 1 + len(stream)/40 {
			damaged := bytes.Clone(stream)
			damaged[at] ^= 0xff
			plain, _, err := read(bytes.NewReader(damaged))
			if err == nil && len(plain) > 1<<20 {
				t.Errorf("%s: a damaged stream unpacks to %d bytes", name, len(plain))
			}
		}
	}
}

func TestWhatIsRecognisedAndCannotBeRead(t *testing.T) {
	for head, method := range map[string]Method{"BZh91AY": Bzip2, "\x5d\x00\x00\x80\x00": LZMA, "\x89LZO\x00\r\n": LZO} {
		if found := Detect([]byte(head)); found != method {
			t.Errorf("%q is taken for %q, not %q", head, found, method)
		}
		_, _, err := read(strings.NewReader(head))
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), string(method)) {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestAStreamMayNotAskForMuchMemory(t *testing.T) {
	// A frame with a window of 1 GiB, and one block of one byte.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (30 - 10) << 3, 0x09, 0, 0, 'x'}
	if _, _, err := read(bytes.NewReader(frame)); err == nil {
		t.Error("a zstd window of 1 GiB was taken")
	}
	// A frame in one segment of 1 GiB.
	frame = []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40, 0x09, 0, 0, 'x'}
	if _, _, err := read(bytes.NewReader(frame)); err == nil {
		t.Error("a zstd segment of 1 GiB was taken")
	}
	// The dictionary's size is in the block header's sixth byte: 36 stands for 1 GiB.
	stream := streams(t)["xz, as of an initrd"]
	header := stream[12 : 12+(int(stream[12])+1)*4]
	header[4] = 36
	binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	if _, _, err := read(bytes.NewReader(stream)); err == nil {
		t.Error("an xz dictionary of 1 GiB was taken")
	}
}

func FuzzNewReader(f *testing.F) {
	for _, name := range []string{"small.gz", "small.xz", "small.zst", "small.lz4"} {
		f.Add(file(f, name))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		// A small window, since to get one takes longer than all the rest.
		z, err := newReader(bufio.NewReader(bytes.NewReader(stream)), Detect(stream), 64<<10)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, io.LimitReader(z, 4<<20)); err != nil && strings.Contains(err.Error(), "gave up") {
			t.Error(err) // it is caught, but worth knowing
		}
	})
}
