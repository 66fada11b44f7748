// SPDX-License-Identifier: MIT

package kimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"strings"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
)

const (
	release  = "7.2.13-test"
	builtBy  = "(somebody@somewhere) (gcc 15, GNU ld 2.46) "
	banner   = "Linux version " + release + " " + builtBy + "#5 SMP PREEMPT Mon Nov 23 11:22:46 UTC 2026"
	weak     = "Linux version " + release + " " + builtBy + "# SMP PREEMPT \n"
	proc     = "%s version %s " + builtBy + "%s\n"
	luoWords = "luo-session\x00LUO state is incompatible with '%s'\n\x00not-v1this\x00other-v7\x00A-v1\x00"
)

// vmlinux is what is looked for in a kernel, in the surroundings that it has there, and 2 MiB of something else.
func vmlinux(strs []string, handlers []string, config string) []byte {
	b := bytes.NewBufferString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 57))
	for b.Len() < 2<<20 {
		b.WriteString("-version \x00Linux version %s\x00IKCFG_ST\x00")
		b.Write([]byte{0xe8, 0xff, 0x2d, 0x76, 0x33, 0})
	}
	b.WriteString("\x00" + weak + "\x00" + proc + "\x00" + banner + "\n\x00preserved-data\x00" + luoWords)
	for _, s := range strs {
		b.WriteString(s + "\x00")
	}
	for _, h := range handlers {
		b.Write(make([]byte, -b.Len()&7))
		b.Write(binary.LittleEndian.AppendUint64(nil, 0xffffffff81a28820))
		b.WriteString(h)
		b.Write(make([]byte, handlerLength-len(h)+32))
	}
	if config != "" {
		b.WriteString("IKCFG_ST")
		b.Write(gzipped([]byte(config)))
		b.WriteString("IKCFG_ED")
	}
	b.WriteString("the end")
	return b.Bytes()
}

const config = "#\n# Linux/x86 7.2.13 Kernel Configuration\n#\nCONFIG_KEXEC_FILE=y\n# CONFIG_KEXEC_SIG is not set\n" +
	"CONFIG_KEXEC_HANDOVER=y\nCONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\nCONFIG_LIVEUPDATE=y\nCONFIG_LIVEUPDATE_MEMFD=y\nCONFIG_LOCALVERSION=\"-test\"\n"

var (
	strs     = []string{"kho-v4", "luo-v5", "memblock-v1", "reserve-mem-v1"}
	handlers = []string{"memfd-v2", "vfio-pci-v12"}
	whole    = vmlinux(strs, handlers, config)
	formats  = []Format{{"kho", "kho-v4"}, {"luo", "luo-v5"}, {"memblock", "memblock-v1"}, {"memfd", "memfd-v2"},
		{"reserve-mem", "reserve-mem-v1"}, {"vfio-pci", "vfio-pci-v12"}}
)

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

// sized appends the unpacked size, as the build does for all but gzip.
func sized(packed, plain []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(len(plain)))
}

// bzImage has three sectors of setup code, and code before the payload and behind it.
func bzImage(payload []byte) []byte {
	const sectors, text, before, behind = 3, 0x600, 100, 9000
	b := append(make([]byte, (sectors+1)*512), code(before)...)
	put16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
	put32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	b[0x1f1] = sectors
	put16(0x1fe, 0xaa55)
	copy(b[0x202:], "HdrS")
	put16(0x206, 0x020f)
	put16(0x20e, text-0x200)
	copy(b[text:], release+" (somebody@somewhere) #5 SMP PREEMPT Mon Nov 23 11:22:46 UTC 2026")
	b[0x211] = loadedHigh
	b[0x234] = 1
	put16(0x236, kernel64|aboveFourGiB)
	put32(0x1f4, uint32(before+len(payload)+behind)/16)
	put32(0x238, 2047)
	put32(0x248, before)
	put32(0x24c, uint32(len(payload)))
	put32(0x260, 32<<20)
	return append(append(b, payload...), code(behind)...)
}

// code is so many bytes that aren't zero.
func code(n int) []byte { return bytes.Repeat([]byte{0x90}, n) }

type part struct {
	name string
	data []byte
}

// pe is a PE file of these sections, with a signature if wanted.
func pe(signed bool, parts ...part) []byte {
	const header, optionalSize, align = 128, 240, 512
	b := make([]byte, header+24+optionalSize+40*len(parts))
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[60:], header)
	copy(b[header:], "PE\x00\x00\x64\x86")
	binary.LittleEndian.PutUint16(b[header+6:], uint16(len(parts)))
	binary.LittleEndian.PutUint16(b[header+20:], optionalSize)
	optional := header + 24
	binary.LittleEndian.PutUint16(b[optional:], 0x20b)
	binary.LittleEndian.PutUint32(b[optional+108:], 16)
	var body []byte
	start := (len(b) + align - 1) / align * align
	for i, p := range parts {
		at := optional + optionalSize + 40*i
		copy(b[at:at+8], p.name)
		padded := (len(p.data) + align - 1) / align * align
		binary.LittleEndian.PutUint32(b[at+8:], uint32(len(p.data)))
		binary.LittleEndian.PutUint32(b[at+16:], uint32(padded))
		binary.LittleEndian.PutUint32(b[at+20:], uint32(start+len(body)))
		body = append(body, p.data...)
		body = append(body, make([]byte, padded-len(p.data))...)
	}
	b = append(append(b, make([]byte, start-len(b))...), body...)
	if signed {
		binary.LittleEndian.PutUint32(b[optional+144:], uint32(len(b)))
		binary.LittleEndian.PutUint32(b[optional+148:], 256)
		b = append(b, make([]byte, 256)...)
	}
	return b
}

// zboot is an EFI zboot image, without its PE headers' content.
func zboot(payload []byte) []byte {
	b := pe(false, part{".text", payload})
	at := bytes.Index(b, payload)
	copy(b, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(b[8:], uint32(at))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	return b
}

// arm64 turns a vmlinux into an arm64 Image.
func arm64(vmlinux []byte) []byte {
	b := bytes.Clone(vmlinux)
	copy(b, make([]byte, 60))
	copy(b[56:], "ARM\x64")
	return b
}

// host is a root directory with these files.
func host(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{
		"proc/sys/kernel/osrelease": {Data: []byte(release + "\n")},
		"proc/version":              {Data: []byte(banner + "\n")},
	}
	for name, data := range files {
		root[name] = &fstest.MapFile{Data: []byte(data)}
	}
	return root
}

func lines(words ...string) string { return strings.Join(words, "\n") + "\n" }
