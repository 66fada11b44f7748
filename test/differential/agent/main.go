// SPDX-License-Identifier: MIT

//go:build linux

// Command agent runs sequences of operations on /dev/liveupdate, over several boots, and records what each gave. It is
// the same program under luosim and on a real kernel: what it does depends on nothing but the seeds.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Sequences that once showed a difference. They always run too.
//
//go:embed regressions
var regressions embed.FS

func main() {
	first := flag.Int64("first", 1, "first seed")
	count := flag.Int64("count", 1, "how many seeds")
	boot := flag.Int("boot", 0, "the number of this boot (default $LUOSIM_BOOT)")
	boots := flag.Int("boots", 3, "how many boots")
	out := flag.String("out", "", "write the results of boot N to FILE.N (default: compressed, to standard output)")
	tmpfs := flag.String("tmpfs", "/dev/shm", "a directory on tmpfs")
	kernel := flag.String("kernel", "/proc/self/exe", "the next kernel")
	initrd := flag.String("initrd", "", "its initrd")
	cmdline := flag.String("cmdline", "", "the file with its command line")
	scripts := flag.Bool("regressions", false, "run the regression cases too")
	only := flag.String("script", "", "run this script too")
	show := flag.Bool("show", false, "print the sequences, run nothing")
	hold := flag.Bool("hold", false, "do nothing until killed: hold what was inherited")
	flag.Parse()
	if *hold {
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		unix.Pause()
		return
	}
	if os.Getenv("GODEBUG") == "" { // a preempting signal would interrupt system calls at random
		os.Setenv("GODEBUG", "asyncpreemptoff=1")
		fmt.Fprintln(os.Stderr, "agent: start again:", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
		os.Exit(1)
	}
	if *boot == 0 {
		*boot, _ = strconv.Atoi(os.Getenv("LUOSIM_BOOT"))
	}
	sequences, err := sequences(*first, *count, *scripts, *only)
	if err == nil {
		if *show {
			for _, s := range sequences {
				for _, part := range s.Parts {
					fmt.Println("boot")
					for _, o := range part {
						fmt.Println(o)
					}
				}
			}
			return
		}
		err = run(sequences, *boot, *out, *kernel, *tmpfs)
	}
	if err == nil && *boot < *boots {
		err = kexec(*kernel, *initrd, *cmdline)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func sequences(first, count int64, scripts bool, only string) ([]sequence, error) {
	var all []sequence
	if only != "" {
		text, err := os.ReadFile(only)
		if err != nil {
			return nil, err
		}
		s, err := parseSequence(path.Base(only), string(text))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if scripts {
		files, err := regressions.ReadDir("regressions")
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			text, err := regressions.ReadFile("regressions/" + f.Name())
			if err != nil {
				return nil, err
			}
			if f.Name() == "seeds" {
				for _, word := range strings.Fields(string(text)) {
					seed, err := strconv.ParseInt(word, 10, 64)
					if err != nil {
						return nil, fmt.Errorf("regressions/seeds: %w", err)
					}
					if seed < first || seed >= first+count {
						all = append(all, generate(seed))
					}
				}
				continue
			}
			s, err := parseSequence(strings.TrimSuffix(f.Name(), ".ops"), string(text))
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
	}
	for seed := first; seed < first+count; seed++ {
		all = append(all, generate(seed))
	}
	sort.SliceStable(all, func(i, j int) bool { return len(all[i].ID) < len(all[j].ID) })
	return all, nil
}

// run does this boot's part of every sequence. The sessions that a sequence leaves open stay open.
func run(all []sequence, boot int, out, kernel, tmpfs string) error {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	debug.SetGCPercent(400)
	limit := unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		limit.Cur = limit.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	// Without the device, opening it with O_CREAT would leave a file in its place.
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return fmt.Errorf("stat %s: %w; run it under luosim or on a kernel with live update", device, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("%s is not a device; run it under luosim or on a kernel with live update", device)
	}
	var text bytes.Buffer
	w, err := newWorld(kernel, tmpfs)
	if err != nil {
		return err
	}
	defer w.remove()
	for _, s := range all {
		if boot > len(s.Parts) {
			continue
		}
		r := w.sequence(s.ID)
		for i, o := range s.Parts[boot-1] {
			fmt.Fprintf(&text, "%s %d.%d %s -> %s\n", s.ID, boot, i, o, r.do(o))
		}
		r.end()
	}
	if out != "" {
		return os.WriteFile(fmt.Sprintf("%s.%d", out, boot), text.Bytes(), 0o644)
	}
	return show(boot, text.Bytes())
}

// show prints results in a form that a serial console can take.
func show(boot int, text []byte) error {
	var packed bytes.Buffer
	encoder := base64.NewEncoder(base64.StdEncoding, &packed)
	z, _ := gzip.NewWriterLevel(encoder, gzip.BestCompression)
	z.Write(text)
	z.Close()
	encoder.Close()
	w := bufio.NewWriter(os.Stdout)
	line := make([]byte, 160)
	for {
		n, err := io.ReadFull(&packed, line)
		if n > 0 {
			fmt.Fprintf(w, "results %d %s\n", boot, line[:n])
		}
		if err != nil {
			break
		}
	}
	fmt.Fprintf(w, "results %d end\n", boot)
	return w.Flush()
}

// kexec loads the next kernel and switches to it. It returns only on failure.
func kexec(kernel, initrd, cmdline string) error {
	k, err := unix.Open(kernel, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", kernel, err)
	}
	i, flags := -1, unix.KEXEC_FILE_NO_INITRAMFS
	if initrd != "" {
		flags = 0
		if i, err = unix.Open(initrd, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s: %w", initrd, err)
		}
	}
	var words []byte
	if cmdline != "" {
		if words, err = os.ReadFile(cmdline); err != nil {
			return err
		}
	}
	if err := unix.KexecFileLoad(k, i, strings.TrimSpace(string(words)), flags); err != nil {
		return fmt.Errorf("kexec_file_load of %s: %w", kernel, err)
	}
	unix.Sync()
	return fmt.Errorf("reboot(KEXEC): %w", unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC))
}
