// SPDX-License-Identifier: MIT

// Package hfvm boots kernels with the Live Update Orchestrator in QEMU and runs a script at every
// boot, from one kexec to the next, until the script gives its verdict.
package hfvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
	"github.com/holdfast-project/holdfast/internal/hfvm/guest"
	"github.com/holdfast-project/holdfast/internal/hfvm/image"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
	"github.com/holdfast-project/holdfast/internal/hfvm/qemu"
	"github.com/holdfast-project/holdfast/internal/hfvm/rootfs"
)

// Options say what to run.
type Options struct {
	Kernel       string // a series, built if need be, or the path of a bzImage
	NextKernel   string // that of the even boots; "" for the same
	OS           string // "none" or a suite of Debian
	Initrd       string // "none" or "dracut"
	Memory       int    // MiB
	Packages     []string
	Add          []string // SRC:DST
	Cmdline      string
	Env          []string // NAME=VALUE
	Forward      []string // HOSTPORT:GUESTPORT; without any the guest has no network
	Timeout      time.Duration
	QuietConsole bool
	Log          string // "" for one that is kept only of a failed run
	Script       string
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// Check says what is wrong with the options, before anything is built for them.
func (o *Options) Check() error {
	if o.OS != "none" && !slices.Contains(rootfs.Suites, o.OS) {
		return fmt.Errorf("--os %q: it is none, %s", o.OS, strings.Join(rootfs.Suites, " or "))
	}
	if o.Initrd != "none" && o.Initrd != "dracut" {
		return fmt.Errorf("--initrd %q: it is none or dracut", o.Initrd)
	}
	if o.OS == "none" && o.Initrd != "none" {
		return errors.New("--initrd dracut needs an operating system: --os " + strings.Join(rootfs.Suites, " or --os "))
	}
	if o.OS == "none" && len(o.Packages) > 0 {
		return errors.New("--package needs an operating system: --os " + strings.Join(rootfs.Suites, " or --os "))
	}
	if err := rootfs.CheckPackages(o.Packages); err != nil {
		return fmt.Errorf("--package: %w", err)
	}
	for _, name := range []string{o.Kernel, o.NextKernel} {
		if name == "" || kernel.IsSeries(name) {
			continue
		}
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("kernel %q is no series like 7.2 or 7.2-noluo, and as a file: %w", name, err)
		}
	}
	if o.Memory < 128 {
		return fmt.Errorf("--memory %d: a guest needs 128 MiB or more", o.Memory)
	}
	if o.Timeout <= 0 {
		return errors.New("--timeout must be more than 0")
	}
	for _, e := range o.Env {
		if !envName.MatchString(e) {
			return fmt.Errorf("--env %q: it is NAME=VALUE", e)
		}
	}
	if _, err := o.forwards(); err != nil {
		return err
	}
	for _, a := range o.Add {
		src, dst, ok := strings.Cut(a, ":")
		if !ok || src == "" || !strings.HasPrefix(dst, "/") {
			return fmt.Errorf("--add %q: it is SRC:DST, and DST absolute", a)
		}
		if _, err := os.Stat(src); err != nil {
			return fmt.Errorf("--add: %w", err)
		}
	}
	info, err := os.Stat(o.Script)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s can't be run: it is no executable file (chmod +x)", o.Script)
	}
	return nil
}

// ErrFailed is the end of a run without hfvm-pass.
var ErrFailed = errors.New("failed")

// CheckBuild says what is wrong with the arguments of Build.
func CheckBuild(kernels, suites, packages []string, initrd string) error {
	if len(kernels) == 0 && len(suites) == 0 {
		return errors.New("nothing to build: name a --kernel or an --os")
	}
	for _, name := range kernels {
		if !kernel.IsSeries(name) {
			return fmt.Errorf("--kernel %q is no series like 7.2 or 7.2-noluo", name)
		}
	}
	for _, suite := range suites {
		if !slices.Contains(rootfs.Suites, suite) {
			return fmt.Errorf("--os %q: it is %s", suite, strings.Join(rootfs.Suites, " or "))
		}
	}
	if initrd != "none" && initrd != "dracut" {
		return fmt.Errorf("--initrd %q: it is none or dracut", initrd)
	}
	return rootfs.CheckPackages(packages)
}

// Build puts kernels and root file systems into the cache, and has the tools for all of it, and for
// runs, installed in one go.
func Build(ctx context.Context, c *cache.Cache, kernels, suites, packages []string, dracut bool) error {
	tools := []debian.Tool{qemu.Tool, busybox}
	if len(kernels) > 0 {
		tools = append(tools, kernel.Tools...)
	}
	if len(suites) > 0 {
		tools = append(tools, rootfs.Tools...)
	}
	if err := debian.Need(ctx, c, tools...); err != nil {
		return err
	}
	for _, name := range kernels {
		path, err := kernel.Image(ctx, c, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Tell, "hfvm: kernel %s: %s\n", name, path)
	}
	for _, suite := range suites {
		root, err := rootfs.Open(ctx, c, suite, packages, dracut)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Tell, "hfvm: %s: %s\n", suite, root.Image)
	}
	return nil
}

// Run builds what is missing, boots, and runs the script until it passes or fails. What the guest's
// script prints goes to stdout.
func Run(ctx context.Context, c *cache.Cache, o Options, stdout io.Writer) error {
	stderr := c.Tell
	images, err := o.kernels(ctx, c)
	if err != nil {
		return err
	}
	if err := debian.Need(ctx, c, qemu.Tool); err != nil {
		return err
	}
	agent, err := agent(ctx, c)
	if err != nil {
		return err
	}
	entries, err := o.entries(agent, images)
	if err != nil {
		return err
	}
	m := qemu.Machine{Kernel: images[0], Memory: o.Memory, Cmdline: o.cmdline()}
	if m.Forward, err = o.forwards(); err != nil {
		return err
	}
	if o.OS == "none" {
		m.Initrd, err = initramfs(ctx, c, entries)
	} else {
		m.Disk, m.Initrd, err = disk(ctx, c, o, entries)
	}
	for _, f := range []*os.File{m.Disk, m.Initrd} {
		if f != nil {
			defer f.Close()
		}
	}
	if err != nil {
		return err
	}

	log, err := o.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	start := time.Now()
	running, stop := context.WithTimeout(ctx, o.Timeout)
	defer stop()
	var last guest.Message
	m.Output = func(r io.Reader) { _, _ = io.Copy(stdout, r) }
	m.Console = func(r io.Reader) {
		w := io.Writer(log)
		if !o.QuietConsole {
			w = io.MultiWriter(log, stderr)
		}
		_, _ = io.Copy(withoutCR{w}, r)
	}
	m.Messages = func(r io.Reader) {
		for messages := json.NewDecoder(r); messages.Decode(&last) == nil && last.Kind == "boot"; {
			fmt.Fprintf(stderr, "hfvm: boot %d, kernel %s, script starts after %.1f s\n", last.Boot, last.Text, time.Since(start).Seconds())
			last.Text = ""
		}
		stop() // a verdict, or QEMU has ended
	}
	if err := m.Run(running); err != nil {
		return err
	}
	if ctx.Err() != nil {
		if o.Log == "" {
			os.Remove(log.Name())
		}
		return ctx.Err()
	}
	if last.Kind == "pass" {
		fmt.Fprintf(stderr, "hfvm: passed at boot %d after %.1f s\n", last.Boot, time.Since(start).Seconds())
		if o.Log == "" {
			return os.Remove(log.Name())
		}
		return nil
	}
	console, err := os.ReadFile(log.Name())
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "---- the end of the console\n%s\n---- the whole console: %s\n", cache.Tail(console, 40), log.Name())
	return fmt.Errorf("%w after %.1f s, %s", ErrFailed, time.Since(start).Seconds(), why(last, console, running.Err(), o.Timeout))
}

// why says in words how a run ended that did not pass.
func why(last guest.Message, console []byte, ended error, timeout time.Duration) string {
	where := "before the script ran"
	if last.Boot > 0 {
		where = fmt.Sprintf("at boot %d", last.Boot)
	}
	if last.Kind == "fail" {
		return fmt.Sprintf("%s: %s", where, last.Text)
	}
	where += " or on the way to the next"
	if i := bytes.LastIndex(console, []byte("Kernel panic")); i >= 0 {
		line, _, _ := bytes.Cut(console[i:], []byte("\n"))
		return fmt.Sprintf("%s: %s", where, line)
	}
	if errors.Is(ended, context.DeadlineExceeded) {
		return fmt.Sprintf("%s: no verdict within %v", where, timeout)
	}
	return where + ": the machine stopped with no verdict: it was powered off, or rebooted other than by kexec"
}

// kernels are the images of the odd and the even boots; one, if they are the same.
func (o *Options) kernels(ctx context.Context, c *cache.Cache) ([]string, error) {
	var images []string
	for _, name := range []string{o.Kernel, o.NextKernel} {
		if name == "" {
			continue
		}
		p, err := kernel.Image(ctx, c, name)
		if err != nil {
			return nil, err
		}
		images = append(images, p)
	}
	return slices.Compact(images), nil
}

// cmdline is the guest's command line. Where a word comes twice the later one counts, so the user's
// are the last. TERM keeps systemd from asking the serial port what it is, and waiting. On a busy host the kernel may find
// that an emulated timer doesn't tick, and panic.
//
// Without kho_scratch= the kernel reserves six times the size of itself and its initrd, in pieces, the largest of four times
// (kho_reserve_scratch, kernel/liveupdate/kexec_handover.c, Linux 7.2: each area is twice what is reserved by then, the areas
// before it included). Where KASLR has put the kernel in the middle of a small memory no hole may be large enough, and it
// boots with KHO disabled.
func (o *Options) cmdline() string {
	words := "console=ttyS0 loglevel=5 panic=-1 oops=panic kho=on liveupdate=on kho_scratch=" + scratch(o.Memory) +
		" random.trust_cpu=on no_timer_check"
	if o.OS == "none" {
		words = guest.BootWord + "1 retain_initrd " + words
	} else {
		words += " root=/dev/vda rw rootfstype=ext4 TERM=dumb systemd.log_color=0 systemd.minimum_uptime_sec=0"
	}
	if len(o.Forward) > 0 {
		words += " net.ifnames=0" // udev leaves the interface's name alone
	}
	return strings.TrimSpace(words + " " + o.Cmdline)
}

// forwards are the ports that are forwarded into the guest.
func (o *Options) forwards() ([]qemu.Forward, error) {
	var all []qemu.Forward
	for _, f := range o.Forward {
		host, inside, _ := strings.Cut(f, ":")
		h, hostErr := strconv.ParseUint(host, 10, 16)
		g, guestErr := strconv.ParseUint(inside, 10, 16)
		if hostErr != nil || guestErr != nil || h == 0 || g == 0 {
			return nil, fmt.Errorf("--forward %q: it is HOSTPORT:GUESTPORT, both from 1 to 65535", f)
		}
		all = append(all, qemu.Forward{Host: uint16(h), Guest: uint16(g)})
	}
	return all, nil
}

// scratch is a value of kho_scratch= for so many MiB of memory: below 4 GiB, anywhere, on each node. The first is where kexec
// puts the next kernel and its initrd, and all that the next kernel allocates early.
func scratch(memory int) string {
	return fmt.Sprintf("%dM,0M,%dM", min(192, memory/4), min(64, memory/16))
}

// entries are the files of this run that are added to the guest.
func (o *Options) entries(agent string, images []string) ([]image.Entry, error) {
	onDisk := o.OS != "none"
	config, err := json.Marshal(guest.Config{Env: o.Env, Kernels: len(images), Disk: onDisk, Network: len(o.Forward) > 0})
	if err != nil {
		return nil, err
	}
	entries := []image.Entry{
		image.File(guest.Agent, agent, 0o755),
		image.Text(guest.ConfigFile, string(config), 0o644),
		image.File(guest.Script, o.Script, 0o755),
	}
	for i, p := range images {
		entries = append(entries, image.File(fmt.Sprintf("%s/%d", guest.Kernels, i+1), p, 0o644))
	}
	for _, name := range guest.Commands() {
		entries = append(entries, image.Symlink("/usr/local/bin/"+name, guest.Agent))
	}
	if onDisk {
		entries = append(entries,
			image.Symlink(guest.Home+"/hfvm-boot", guest.Agent),
			image.Symlink(guest.Home+"/hfvm-output", guest.Agent),
			image.Text(units+"/hfvm.service", scriptUnit, 0o644),
			image.Text(units+"/hfvm-output.service", outputUnit, 0o644),
			image.Symlink(units+"/multi-user.target.wants/hfvm.service", "../hfvm.service"),
			image.Symlink(units+"/sysinit.target.wants/hfvm-output.service", "../hfvm-output.service"))
	}
	if onDisk && len(o.Forward) > 0 {
		entries = append(entries,
			image.Symlink(guest.Home+"/hfvm-network", guest.Agent),
			image.Text(units+"/hfvm-network.service", networkUnit, 0o644),
			image.Symlink(units+"/sysinit.target.wants/hfvm-network.service", "../hfvm-network.service"))
	}
	for _, a := range o.Add {
		src, dst, _ := strings.Cut(a, ":")
		added, err := image.Walk(src, filepath.Clean(dst))
		if err != nil {
			return nil, fmt.Errorf("--add %s: %w", a, err)
		}
		entries = append(entries, added...)
	}
	return entries, nil
}

const units = "/etc/systemd/system"

// scriptUnit runs the script. When the machine shuts down only the agent gets the signal, so that it
// knows why the script ends and passes the signal on. What the script leaves running stays till then.
const scriptUnit = `[Unit]
Description=The script of hfvm
After=basic.target

[Service]
Type=exec
ExecStart=` + guest.Home + `/hfvm-boot
RemainAfterExit=yes
KillMode=mixed
TimeoutStopSec=20
OOMPolicy=continue
`

// outputUnit copies the script's output up to the very kexec.
const outputUnit = `[Unit]
Description=The output of hfvm
DefaultDependencies=no
IgnoreOnIsolate=yes
SurviveFinalKillSignal=yes

[Service]
ExecStart=` + guest.Home + `/hfvm-output
OOMScoreAdjust=-1000
`

// networkUnit is there in time for whoever listens on the interface's address. The interface stays up till the kexec.
const networkUnit = `[Unit]
Description=The network of hfvm
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=` + guest.Home + `/hfvm-network
`

var busybox = debian.Tool{Name: "/bin/busybox", Package: "busybox-static"}

// initramfs makes the root file system of a guest without an operating system.
func initramfs(ctx context.Context, c *cache.Cache, entries []image.Entry) (*os.File, error) {
	if err := debian.Need(ctx, c, busybox); err != nil {
		return nil, err
	}
	applets, err := exec.CommandContext(ctx, busybox.Name, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", busybox.Name, err)
	}
	all := []image.Entry{
		image.Symlink("/init", guest.Agent),
		image.Symlink(guest.Initrd, "/sys/firmware/initrd"),
		image.Dir("/root"),
		// The kernel opens it for init before anything is mounted.
		{Path: "/dev/console", Mode: os.ModeDevice | os.ModeCharDevice | 0o600, Rdev: [2]uint32{5, 1}},
		image.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644),
		image.Text("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", 0o644),
		image.Text("/etc/hosts", "127.0.0.1 localhost\n", 0o644),
		image.File("/bin/busybox", busybox.Name, 0o755),
	}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" && name != "init" {
			all = append(all, image.Symlink("/bin/"+name, "busybox"))
		}
	}
	f, err := nameless(c)
	if err != nil {
		return nil, err
	}
	return f, image.WriteCPIO(f, append(all, entries...))
}

// disk makes this run's own copy of the root file system.
func disk(ctx context.Context, c *cache.Cache, o Options, entries []image.Entry) (disk, initrd *os.File, err error) {
	root, err := rootfs.Open(ctx, c, o.OS, o.Packages, o.Initrd == "dracut")
	if err != nil {
		return nil, nil, err
	}
	if root.Initrd != "" {
		if initrd, err = os.Open(root.Initrd); err != nil {
			return nil, nil, err
		}
		entries = append(entries, image.File(guest.Initrd, root.Initrd, 0o644))
	}
	if disk, err = nameless(c); err != nil {
		return nil, initrd, err
	}
	if err := copySparse(disk, root.Image); err != nil {
		return disk, initrd, err
	}
	return disk, initrd, image.WriteExt4(ctx, disk, root.Listing, entries)
}

// nameless is a temporary file that is gone when its last descriptor is closed, however that comes.
// It lies in the cache so that a file system that can shares blocks with the image that is copied.
func nameless(c *cache.Cache) (*os.File, error) {
	fd, err := unix.Open(c.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(c.Dir, "temporary file")), nil
	}
	if err != unix.EOPNOTSUPP && err != unix.EISDIR {
		return nil, fmt.Errorf("temporary file in %s: %w", c.Dir, err)
	}
	f, err := os.CreateTemp(c.Dir, ".run-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// copySparse makes dst a copy of src, by reference where the file system can, else without its holes.
func copySparse(dst *os.File, src string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	if unix.IoctlFileClone(int(dst.Fd()), int(from.Fd())) == nil {
		return nil
	}
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for pos := int64(0); ; {
		data, err := unix.Seek(int(from.Fd()), pos, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, data), io.NewSectionReader(from, data, hole-data)); err != nil {
			return fmt.Errorf("copying %s: %w", src, err)
		}
		pos = hole
	}
}

func (o *Options) openLog() (*os.File, error) {
	if o.Log != "" {
		return os.Create(o.Log)
	}
	return os.CreateTemp("", "hfvm-*.log")
}

// withoutCR drops the carriage returns that a serial console puts before each line's end.
type withoutCR struct{ w io.Writer }

func (w withoutCR) Write(p []byte) (int, error) {
	if _, err := w.w.Write(bytes.ReplaceAll(p, []byte("\r"), nil)); err != nil {
		return 0, err
	}
	return len(p), nil
}
