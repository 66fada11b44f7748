// SPDX-License-Identifier: MIT

// Package qemu runs a guest in QEMU. The guest's disk and images are given as open files, which
// nothing else needs a name for, and everything ends with this process.
package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
)

// Tool is QEMU's command.
var Tool = debian.Tool{Name: "qemu-system-x86_64", Package: "qemu-system-x86"}

// AccelVariable names the environment variable with QEMU's accelerator. The default is software
// emulation: /dev/kvm may open and the guest die early all the same.
const AccelVariable = "HFVM_ACCEL"

// A Forward is a TCP port of this machine's 127.0.0.1 that leads to one of the guest's.
type Forward struct{ Host, Guest uint16 }

// The guest's end of the network: the first address that QEMU's own DHCP would give, and its netmask
// (net/slirp.c, QEMU 7.2).
var (
	Address = [4]byte{10, 0, 2, 15}
	Netmask = [4]byte{255, 255, 255, 0}
)

// A Machine is what QEMU is to run. Output gets what is written to the guest's virtio port 1,
// Messages what is written to port 2; all are drained to their end before Run returns.
type Machine struct {
	Kernel  string
	Initrd  *os.File // or nil
	Disk    *os.File // or nil
	Cmdline string
	Memory  int // MiB
	Forward []Forward

	Console, Output, Messages func(io.Reader)
}

// Run runs the machine until it stops by itself or ctx ends. The error is QEMU's own failure, never
// the guest's.
func (m *Machine) Run(ctx context.Context) error {
	accel := os.Getenv(AccelVariable)
	if accel == "" {
		accel = "tcg,thread=multi"
	}
	var passed []*os.File
	pass := func(f *os.File) string {
		passed = append(passed, f)
		return "/dev/fd/" + strconv.Itoa(2+len(passed)) // ExtraFiles start at 3
	}
	args := []string{
		"-accel", accel, "-cpu", "qemu64,+rdrand,+rdseed", "-smp", "2", "-m", strconv.Itoa(m.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.Kernel, "-append", m.Cmdline,
		// The first virtio device, so that its ports are vport0p*.
		"-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
	}
	if m.Initrd != nil {
		args = append(args, "-initrd", pass(m.Initrd))
	}
	if m.Disk != nil {
		args = append(args, "-drive", "if=none,id=root,format=raw,cache=unsafe,discard=unmap,file.locking=off,file="+pass(m.Disk),
			"-device", "virtio-blk-pci,drive=root")
	}
	if len(m.Forward) > 0 {
		// restrict: the guest reaches nothing by itself.
		network := "user,id=network,restrict=on,ipv6=off"
		for _, f := range m.Forward {
			network += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s:%d", f.Host, netip.AddrFrom4(Address), f.Guest)
		}
		args = append(args, "-netdev", network, "-device", "virtio-net-pci,netdev=network,romfile=")
	}
	streams := []struct {
		name string
		read func(io.Reader)
		args []string
	}{
		{"console", m.Console, []string{"-serial", "chardev:console"}},
		{"output", m.Output, []string{"-device", "virtserialport,chardev=output,nr=1"}},
		{"messages", m.Messages, []string{"-device", "virtserialport,chardev=messages,nr=2"}},
	}
	var readers sync.WaitGroup
	var ends []*os.File
	defer func() {
		for _, f := range ends {
			f.Close()
		}
		readers.Wait()
	}()
	for _, s := range streams {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		ends = append(ends, w)
		args = append(args, "-chardev", "file,id="+s.name+",path="+pass(w))
		args = append(args, s.args...)
		readers.Go(func() {
			s.read(r)
			r.Close()
		})
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, Tool.Name, args...)
	cmd.ExtraFiles = passed
	cmd.Stderr = &stderr
	// Its own process group: a Ctrl-C is for hfvm, which then ends it. If hfvm is killed outright,
	// the parent-death signal does; that follows the thread that started it, so the thread is kept.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w: %s", Tool.Name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
