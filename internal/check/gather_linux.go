// SPDX-License-Identifier: MIT

package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/initrd"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/kimage"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Target is what an update would switch to, and who will take part in it.
type Target struct {
	// Kernel is nil if it isn't known, and nothing is said of it. Initrd is nil if there is none but what a UKI has. The files are
	// read, and neither kept nor closed.
	Kernel, Initrd *os.File
	// CommandLine is nil for a UKI's own, or else this kernel's.
	CommandLine *string
	// Participants are the owners that will be asked to commit what they have.
	Participants []string
}

// Run looks at everything there is. It needs root: what it can't look at it says. Unpacking the kernels takes some seconds. The
// error is the context's, or that of a target that makes no sense.
func Run(ctx context.Context, t Target) ([]Finding, error) {
	s := &System{Participants: t.Participants}
	if err := s.gatherKernels(ctx, t); err != nil {
		return nil, err
	}
	s.gatherHost(ctx)
	s.gatherSessions(ctx)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("checking: %w", err)
	}
	return s.Findings(), nil
}

// RunKernel looks only at what decides whether the next kernel can be loaded and takes over.
func RunKernel(ctx context.Context, t Target) ([]Finding, error) {
	s := &System{}
	if err := s.gatherKernels(ctx, t); err != nil {
		return nil, err
	}
	return s.KernelFindings(), nil
}

const debugKHO = "/sys/kernel/debug/kho"

func (s *System) gatherKernels(ctx context.Context, t Target) error {
	if t.Kernel == nil && (t.Initrd != nil || t.CommandLine != nil) {
		return errors.New("checking: an initrd or a command line is of no use without the kernel that they are for")
	}
	s.Arch = runtime.GOARCH
	s.Device = liveupdate.Device{}.Available()
	s.CommandLine = fact(readText("/proc/cmdline"))
	s.Running = fact(kimage.Running(ctx, os.DirFS("/")))
	s.Lockdown = fact(lockdown())
	off, err := readText("/proc/sys/kernel/kexec_load_disabled")
	s.KexecOff = fact(off == "1", err)
	s.LoadsLeft = fact(loadsLeft())
	s.Scratch = fact(scratchAreas())
	s.Loaded = fact(kexec.Loaded())
	s.Handed = fact(handed())
	if t.Kernel != nil {
		s.Next = s.gatherNext(ctx, t)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("checking: %w", err)
	}
	return nil
}

func (s *System) gatherNext(ctx context.Context, t Target) *Next {
	n := &Next{}
	info, err := t.Kernel.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		n.Err = err
		return n
	}
	n.Size = info.Size()
	n.Image, n.Err = kimage.Read(ctx, t.Kernel, n.Size)
	if i := n.Image; i != nil {
		if i.Config == nil {
			if config, from, err := kimage.FindConfig(os.DirFS("/"), i.Release); err == nil {
				i.Config, i.ConfigFrom = config, from
			}
		}
		if i.UKI != nil {
			n.Size = i.UKI.Linux.Size
			n.Companions = companions(t.Kernel)
		}
		n.Neighbour = neighbour(os.DirFS("/"), i.Release)
	}
	switch uki := n.uki(); {
	case t.CommandLine != nil:
		n.CommandLine, n.From = *t.CommandLine, "as given"
	case uki != nil && uki.CommandLine != "":
		n.CommandLine, n.From = uki.CommandLine, "in the UKI"
	default:
		n.CommandLine, n.From = kexec.Reuse(s.CommandLine.Is), "this kernel's"
	}
	if t.Initrd != nil {
		if info, err := t.Initrd.Stat(); err != nil {
			n.InitrdErr = err
		} else {
			n.InitrdSize = info.Size()
			n.Initrd, n.InitrdErr = initrd.Read(ctx, t.Initrd, n.InitrdSize)
		}
	} else if uki := n.uki(); uki != nil && uki.Initrd.Size > 0 {
		n.InitrdSize = uki.Initrd.Size
		n.Initrd, n.InitrdErr = initrd.Read(ctx, io.NewSectionReader(t.Kernel, uki.Initrd.Offset, uki.Initrd.Size), n.InitrdSize)
	}
	return n
}

// companions are what systemd-stub adds to a unified image, words for the command line and parts of the initrd (systemd-stub(7), systemd
// 262): what is in IMAGE.extra.d, and for all images of a boot partition, in whose EFI/Linux they are, in loader/addons and credentials.
func companions(image *os.File) (found []string) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", image.Fd()))
	if err != nil {
		return nil
	}
	dirs := []string{name + ".extra.d"}
	if dir := filepath.Dir(name); strings.HasSuffix(dir, "/EFI/Linux") {
		loader := filepath.Join(dir, "../../loader")
		dirs = append(dirs, filepath.Join(loader, "addons"), filepath.Join(loader, "credentials"))
	}
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".efi", ".cred", ".raw":
				found = append(found, filepath.Join(dir, e.Name()))
			}
		}
	}
	return found
}

// neighbour looks where distributions have the initrd of a release: Debian, Fedora, SUSE.
func neighbour(root fs.FS, release string) string {
	for _, name := range []string{"boot/initrd.img-" + release, "boot/initramfs-" + release + ".img", "boot/initrd-" + release} {
		if !fs.ValidPath(name) || release == "" {
			continue
		}
		if info, err := fs.Stat(root, name); err == nil && info.Mode().IsRegular() {
			return "/" + name
		}
	}
	return ""
}

func (n *Next) uki() *kimage.UKI {
	if n.Image == nil {
		return nil
	}
	return n.Image.UKI
}

// lockdown is the chosen one of "[none] integrity confidentiality" (security/lockdown/lockdown.c, Linux 7.2.13).
func lockdown() (string, error) {
	text, err := readText("/sys/kernel/security/lockdown")
	if errors.Is(err, fs.ErrNotExist) {
		// A kernel with security modules, of which lockdown is one, practically always has securityfs, and with it this directory.
		var st unix.Statfs_t
		err := unix.Statfs("/sys/kernel/security", &st)
		if err == nil && st.Type != unix.SECURITYFS_MAGIC {
			return "", errors.New("securityfs is not mounted on /sys/kernel/security")
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return "", err
	}
	if _, chosen, found := strings.Cut(text, "["); found {
		text, _, _ = strings.Cut(chosen, "]")
	}
	return text, err
}

// loadsLeft is how many more kernels may be loaded (kexec_load_permitted(), kernel/kexec_core.c, Linux 7.2.13).
func loadsLeft() (int, error) {
	text, err := readText("/proc/sys/kernel/kexec_load_limit_reboot")
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(text)
}

// scratchAreas are the sizes of KHO's areas (scratch_len_show(), kernel/liveupdate/kexec_handover_debugfs.c, Linux 7.2.13).
func scratchAreas() (sizes []uint64, err error) {
	text, err := readText(debugKHO + "/out/scratch_len")
	if err != nil {
		return nil, err
	}
	for word := range strings.FieldsSeq(text) {
		n, err := strconv.ParseUint(word, 0, 64)
		if err != nil {
			return nil, fmt.Errorf("%s/out/scratch_len: %w", debugKHO, err)
		}
		sizes = append(sizes, n)
	}
	return sizes, nil
}

// handed looks for what LUO was handed over by the previous kernel (kho_in_debugfs_init(), as above).
func handed() (bool, error) {
	if _, err := os.Stat(debugKHO); err != nil {
		return false, err
	}
	_, err := os.Stat(debugKHO + "/in/sub_fdts/LUO")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (s *System) gatherHost(ctx context.Context) {
	s.Systemd = fact(systemd.Version(ctx))
	s.Uptime = fact(uptime())
	s.Memory = fact(memory())
	if s.hasSystemd() {
		s.InhibitDelayMax = fact(systemd.InhibitDelayMax(ctx))
		s.Exitrd = fact(findExitrd(ctx, "/run/initramfs"))
	}
}

func uptime() (time.Duration, error) {
	text, err := readText("/proc/uptime")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(text, " ")
	seconds, err := strconv.ParseFloat(first, 64)
	return time.Duration(seconds * float64(time.Second)), err
}

func memory() (Memory, error) {
	text, err := readText("/proc/meminfo")
	if err != nil {
		return Memory{}, err
	}
	return parseMemory(text)
}

// parseMemory reads /proc/meminfo. MemAvailable has in it what is free in areas for movable pages, of which KHO's scratch areas are one
// (si_mem_available(), mm/show_mem.c, and kho_init(), kernel/liveupdate/kexec_handover.c, Linux 7.2.13).
func parseMemory(meminfo string) (Memory, error) {
	found := map[string]uint64{}
	for line := range strings.Lines(meminfo) {
		name, value, _ := strings.Cut(line, ":")
		if name != "MemAvailable" && name != "CmaFree" {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 54)
		if err != nil {
			return Memory{}, fmt.Errorf("/proc/meminfo: %s: %w", name, err)
		}
		found[name] = n << 10
	}
	available, is := found["MemAvailable"]
	if !is {
		return Memory{}, errors.New("/proc/meminfo has no line MemAvailable")
	}
	scratch := found["CmaFree"]
	return Memory{available - min(available, scratch), scratch}, nil
}

// These unpack an exitrd when they are stopped, of Ubuntu's finalrd and Arch Linux's mkinitcpio. dracut's does only where there is a
// file that asks for it.
var exitrdUnits = []string{"finalrd.service", "mkinitcpio-generate-shutdown-ramfs.service"}

var sharedLibrary = regexp.MustCompile(`libsystemd-shared-([0-9]{1,6})[^/]*\.so$`)

// findExitrd looks for what systemd-shutdown would run in its own place: dir/shutdown, if that can be (src/shutdown/shutdown.c, systemd
// 262), or what will put one there.
func findExitrd(ctx context.Context, dir string) (Exitrd, error) {
	program := filepath.Join(dir, "shutdown")
	info, err := os.Stat(program)
	switch {
	case err == nil && info.Mode()&0o111 != 0:
		e := Exitrd{Reason: program}
		if target, _ := filepath.EvalSymlinks(program); filepath.Base(target) == "systemd-shutdown" {
			for _, pattern := range []string{"usr/lib*/systemd/libsystemd-shared-*.so", "usr/lib*/*/systemd/libsystemd-shared-*.so", "usr/lib*/libsystemd-shared-*.so"} {
				found, _ := filepath.Glob(filepath.Join(dir, pattern))
				for _, library := range found {
					if m := sharedLibrary.FindStringSubmatch(library); m != nil {
						e.Systemd, _ = strconv.Atoi(m[1])
					}
				}
			}
		}
		return e, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Exitrd{}, err
	}
	// dracut-initramfs-restore, which dracut-shutdown.service runs when it stops, unpacks the initrd if this is there.
	asks := filepath.Join(dir, ".need_shutdown")
	if _, err := os.Stat(asks); err == nil {
		return Exitrd{Reason: asks + ", by which dracut makes one"}, nil
	}
	units, err := systemd.Active(ctx, exitrdUnits...)
	if len(units) > 0 {
		return Exitrd{Reason: units[0] + ", which makes one"}, nil
	}
	return Exitrd{}, err
}

func readText(file string) (string, error) {
	text, err := os.ReadFile(file)
	return strings.TrimSpace(string(text)), err
}
