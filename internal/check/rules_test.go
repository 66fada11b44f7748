// SPDX-License-Identifier: MIT

package check

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/decompress"
	"github.com/holdfast-project/holdfast/internal/initrd"
	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/kimage"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

func formats(compatible ...string) (all []kimage.Format) {
	for _, c := range compatible {
		n := strings.LastIndex(c, "-v")
		all = append(all, kimage.Format{Name: c[:n], Compatible: c})
	}
	return all
}

func newKernel(release string) kimage.Kernel {
	return kimage.Kernel{Release: release, Config: kimage.Config{"CONFIG_KEXEC_FILE": "y"}, ConfigFrom: "/proc/config.gz",
		Formats: formats("kho-v4", "luo-v5", "memfd-v2"), FormatsFrom: "the image", Complete: true}
}

const ram = "h1-ok2ohkddat64npei.ram" // of /vmm.service

// good is a machine on which nothing is wrong: vmm.service has committed a session with a memfd.
func good() *System {
	running := newKernel("7.2.13")
	return &System{
		Arch: "amd64", Running: Fact[*kimage.Kernel]{Is: &running}, CommandLine: Fact[string]{Is: "kho=on liveupdate=on"},
		Lockdown: Fact[string]{Is: "none"}, LoadsLeft: Fact[int]{Is: -1}, Scratch: Fact[[]uint64]{Is: []uint64{64 << 20, 128 << 20}},
		Next: &Next{
			Image: &kimage.Image{Kind: kimage.BzImage, Kernel: newKernel("7.3.4"), Setup: &kimage.Setup{Protocol: 0x20f, LoadFlags: 1, XLoadFlags: 3, InitSize: 30 << 20}},
			Size:  5 << 20, CommandLine: "root=/dev/vda kho=on liveupdate=on", From: "as given",
		},
		Systemd: Fact[string]{Is: "262 (262-1)"}, Uptime: Fact[time.Duration]{Is: time.Hour}, InhibitDelayMax: Fact[time.Duration]{Is: 5 * time.Second},
		Memory: Fact[Memory]{Is: Memory{8 << 30, 150 << 20}},
		Sessions: []*inventory.Session{{KernelName: ram, Direction: liveupdate.Outgoing,
			Holders: []inventory.Holder{{PID: 1, Unit: "vmm.service", Store: true}, {PID: 40, Unit: "vmm.service"}}}},
		Stores: []systemd.UnitStore{{Unit: "vmm.service", Entries: []systemd.Entry{
			{Name: "b01234567-" + ram, Path: liveupdate.LinkPrefix + ram},
			{Name: "b01234567-" + ram + "/ram", Mode: regularFile | 0o777, Dev: 1, Inode: 2, Path: "/memfd:ram (deleted)"},
		}}},
		Units: []*Unit{{Name: "vmm.service", Service: &systemd.Service{StoreMax: 16, Stored: 2, Preserve: "yes"},
			Files: []File{{Dev: 1, Inode: 2, Size: 256 << 20, Allocated: 256 << 20}}, Limits: []Limit{{"/system.slice/vmm.service", 1 << 30}}}},
	}
}

func TestNothingIsWrong(t *testing.T) {
	for _, f := range good().Findings() {
		if f.Severity != OK || f.Hint != "" {
			t.Errorf("%+v", f)
		}
	}
}

// TestFindsRoot: which roots the kernel finds without a program.
func TestFindsRoot(t *testing.T) {
	for line, want := range map[string]bool{
		"root=/dev/vda2": true, "root=/dev/nvme0n1p2": true, "root=/dev/cciss/c0d0p1": true, "root=PARTUUID=12-02": true, "root=PARTLABEL=root": true,
		"root=254:1": true, "root=fe01": true, "root=/dev/nfs nfsroot=10.0.0.1:/x": true, "root=ubi0:root rootfstype=ubifs": true, "root=mtd:x": true,
		"root=share rootfstype=virtiofs": true,
		"root=UUID=0123":                 false, "root=LABEL=root": false, "root=/dev/mapper/vg-root": false, "root=/dev/disk/by-uuid/0123": false, "root=/dev/vg/root": false,
		"root=ZFS=tank/root": false, "root=gpt-auto": false, "root=UUID=12 rootfstype=ext4": false, "root=gpt-auto rootfstype=ext4": false, "root=": false, "root=share": false, "root=/dev/": false,
	} {
		root, _ := kexec.Param(line, "root")
		if findsRoot(line, root) != want {
			t.Errorf("%s: %v", line, !want)
		}
	}
}

// hold adds a session of this kernel that only a process has.
func (s *System) hold(kernelName, unit string, pid int) {
	s.Sessions = append(s.Sessions, &inventory.Session{KernelName: kernelName, Direction: liveupdate.Outgoing,
		Holders: []inventory.Holder{{PID: pid, Unit: unit}}})
}

// TestRules breaks one thing at a time. Of what the rules say then, wants are all that isn't OK, and what is said
// before is OK.
func TestRules(t *testing.T) {
	broken := errors.New("no such luck")
	for _, test := range []struct {
		what  string
		wrong func(*System)
		wants string // "severity id: part of the text", "; " between them
	}{
		{"no device", func(s *System) {
			s.Device = &liveupdate.Error{Op: "check", Path: "/dev/liveupdate", Kind: liveupdate.ErrNotEnabled, Hint: "boot with kho=on liveupdate=on"}
		}, "error this-kernel: does no live updates"},
		{"not root", func(s *System) {
			s.Device = &liveupdate.Error{Op: "check", Path: "/dev/liveupdate", Kind: fs.ErrPermission, Err: fs.ErrPermission}
		}, "warning this-kernel: for root to see"},
		{"this kernel unknown", func(s *System) { s.Running = Fact[*kimage.Kernel]{Err: broken} },
			"warning this-kernel: no such luck; warning next-kho: can't be told; warning next-luo: can't be told; warning next-memfd: can't be told"},
		{"an old image in /boot", func(s *System) { s.Running.Err = broken }, "warning this-kernel: no such luck"},

		{"kexec disabled", func(s *System) { s.KexecOff.Is = true }, "error kexec-allowed: kexec_load_disabled is 1"},
		{"no load left", func(s *System) { s.LoadsLeft.Is = 0 }, "error kexec-allowed: kexec_load_limit_reboot is 0"},
		{"loads left unknown", func(s *System) { s.LoadsLeft.Err = broken }, "warning kexec-allowed: no such luck"},
		{"kexec unknown", func(s *System) { s.KexecOff.Err = broken }, "warning kexec-allowed: no such luck"},
		{"no kexec_file_load", func(s *System) {
			s.Device = liveupdate.ErrNoDevice
			s.Running.Is.Config, s.Running.Is.Formats = kimage.Config{"CONFIG_NET": "y"}, nil
		}, "error this-kernel: does no live updates; error kexec-allowed: no kexec_file_load"},

		{"nothing named", func(s *System) { s.Next = nil }, "warning next-kernel: none is loaded"},
		{"something loaded", func(s *System) { s.Next, s.Loaded.Is = nil, true }, "warning next-kernel: a kernel is loaded, but not even the kernel can tell which"},
		{"loaded unknown", func(s *System) { s.Loaded.Err = broken }, "warning loaded: no such luck"},
		{"no kernel's image", func(s *System) { s.Next.Image, s.Next.Err = nil, kimage.ErrNotKernel }, "error next-kernel: this is no kernel image"},
		{"a damaged image", func(s *System) { s.Next.Err = errors.New("is it cut off?"); s.Next.Image.Kernel = kimage.Kernel{} }, "error next-kernel: is it cut off?"},
		{"lzo", func(s *System) {
			s.Next.Err = fmt.Errorf("lzo: %w", decompress.ErrUnsupported)
			s.Next.Image.Kernel = kimage.Kernel{Config: kimage.Config{"CONFIG_KEXEC_HANDOVER": "y", "CONFIG_LIVEUPDATE": "y", "CONFIG_LIVEUPDATE_MEMFD": "y"}}
		}, "warning next-kernel: can't be unpacked; warning next-kho: can't be told; warning next-luo: can't be told; warning next-memfd: can't be told"},

		{"an addon", func(s *System) { s.Next.Companions = []string{"/efi/loader/addons/x.addon.efi"} }, "warning next-uki: would add /efi/loader/addons/x.addon.efi"},

		{"not relocatable", func(s *System) { s.Next.Image.Setup.XLoadFlags = 1 }, "error next-loadable: above 4 GiB"},
		{"vmlinux", func(s *System) { s.Next.Image.Kind, s.Next.Image.Setup = kimage.Vmlinux, nil }, "error next-loadable: this is a vmlinux"},
		{"zboot", func(s *System) { s.Arch, s.Next.Image.Kind, s.Next.Image.Setup = "arm64", kimage.Zboot, nil }, "error next-loadable: this is a EFI zboot image"},
		{"an Image that is compressed", func(s *System) {
			s.Arch, s.Next.Image.Kind, s.Next.Image.Setup, s.Next.Image.Compression = "arm64", kimage.Arm64, nil, decompress.Gzip
		}, "error next-loadable: compressed (gzip)"},
		{"an Image", func(s *System) { s.Arch, s.Next.Image.Kind, s.Next.Image.Setup = "arm64", kimage.Arm64, nil }, ""},
		{"a UKI with an Image", func(s *System) {
			s.Arch, s.Next.Image.Kind, s.Next.Image.Setup, s.Next.Image.UKI = "arm64", kimage.Unified, nil, &kimage.UKI{LinuxKind: kimage.Arm64}
		}, ""},
		{"a UKI with an Image that is compressed", func(s *System) {
			s.Arch, s.Next.Image.Kind, s.Next.Image.Setup, s.Next.Image.UKI = "arm64", kimage.Unified, nil, &kimage.UKI{LinuxKind: kimage.Arm64}
			s.Next.Image.Compression = decompress.Gzip
		}, "error next-loadable: compressed (gzip)"},
		{"a UKI with zboot", func(s *System) {
			s.Arch, s.Next.Image.Kind, s.Next.Image.Setup, s.Next.Image.UKI = "arm64", kimage.Unified, nil, &kimage.UKI{LinuxKind: kimage.Zboot}
		}, "error next-loadable: this is a EFI zboot image"},
		{"a UKI for arm64 that can't be read", func(s *System) {
			s.Arch, s.Next.Image.Kind, s.Next.Image.Setup, s.Next.Image.UKI, s.Next.Err = "arm64", kimage.Unified, nil, &kimage.UKI{}, broken
		}, "error next-kernel: no such luck"},
		{"a bzImage for arm64", func(s *System) { s.Arch = "arm64" }, "error next-loadable: this is a bzImage"},

		{"no KHO", func(s *System) { s.Next.Image.Formats = formats("luo-v5", "memfd-v2") }, "error next-kho: without kexec handover"},
		{"no LUO", func(s *System) { s.Next.Image.Formats = formats("kho-v4", "memfd-v2") }, "error next-luo: without the Live Update Orchestrator"},
		{"no memfds", func(s *System) { s.Next.Image.Formats = formats("kho-v4", "luo-v5") }, "error next-memfd: without memfds in sessions"},
		{"another KHO", func(s *System) { s.Next.Image.Formats = formats("kho-v5", "luo-v5", "memfd-v2") }, "error next-kho: this kernel has kho-v4, the next one has kho-v5"},
		{"another LUO", func(s *System) { s.Next.Image.Formats = formats("kho-v4", "luo-v6", "memfd-v2") }, "error next-luo: this kernel has luo-v5, the next one has luo-v6"},
		{"another memfd", func(s *System) { s.Next.Image.Formats = formats("kho-v4", "luo-v5", "memfd-v3") }, "error next-memfd: this kernel has memfd-v2, the next one has memfd-v3"},
		{"older sessions", func(s *System) {
			s.Running.Is.Formats = append(s.Running.Is.Formats, formats("luo-session-v2")...)
			s.Next.Image.Formats = append(s.Next.Image.Formats, formats("luo-session-v3")...)
		}, "error next-luo: luo-session-v3"},
		{"vfio in this kernel", func(s *System) { s.Running.Is.Formats = append(s.Running.Is.Formats, formats("vfio-pci-v1")...) }, "warning next-formats: vfio-pci-v1"},
		{"vfio in the next one", func(s *System) { s.Next.Image.Formats = append(s.Next.Image.Formats, formats("vfio-pci-v1")...) }, ""},
		{"memfds unknown here", func(s *System) {
			s.Running.Is = &kimage.Kernel{Formats: formats("kho-v4", "luo-v5"), FormatsFrom: "debugfs"}
		}, "warning next-memfd: can't be told"},
		{"a stale configuration of this kernel", func(s *System) { s.Running.Is.Formats = nil }, "warning next-kho: can't be told; warning next-luo: can't be told"},

		{"no command line", func(s *System) { s.Next.CommandLine = "root=/dev/vda " }, "error next-cmdline: lacks kho=on liveupdate=on"},
		{"liveupdate missing", func(s *System) { s.Next.CommandLine = "root=/dev/vda kho=1" }, "error next-cmdline: lacks liveupdate=on"},
		{"liveupdate off", func(s *System) { s.Next.CommandLine = "root=/dev/vda kho=on liveupdate=on liveupdate=off" }, "error next-cmdline: lacks liveupdate=on"},
		{"for init", func(s *System) { s.Next.CommandLine = "root=/dev/vda kho=on -- liveupdate=on" }, "error next-cmdline: lacks liveupdate=on"},
		{"KHO by default", func(s *System) {
			s.Next.CommandLine, s.Next.Image.Config = "root=/dev/vda liveupdate=on", kimage.Config{"CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT": "y"}
		}, ""},
		{"KHO by default, but off", func(s *System) {
			s.Next.CommandLine, s.Next.Image.Config = "root=/dev/vda liveupdate=on kho=off", kimage.Config{"CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT": "y"}
		}, "error next-cmdline: lacks kho=on"},
		{"built in", func(s *System) {
			s.Next.CommandLine, s.Next.Image.Config = "", kimage.Config{"CONFIG_CMDLINE": "kho=on liveupdate=on root=/dev/vda"}
		}, ""},
		{"built in alone", func(s *System) {
			s.Next.Image.Config = kimage.Config{"CONFIG_CMDLINE": "root=/dev/vda", "CONFIG_CMDLINE_OVERRIDE": "y"}
		}, "error next-cmdline: built into it, which lacks kho=on liveupdate=on"},
		{"too long", func(s *System) { s.Next.CommandLine += strings.Repeat(" quiet", 400) }, "error next-cmdline: takes 2047"},
		{"too long for the header", func(s *System) {
			s.Next.Image.Setup.CommandLineMax = 2046
			s.Next.CommandLine += strings.Repeat("x", 2047-len(s.Next.CommandLine))
		}, "error next-cmdline: has 2047 bytes, and kexec_file_load takes 2046"},
		{"too long with what is built in", func(s *System) {
			s.Next.Image.Config = kimage.Config{"CONFIG_CMDLINE": strings.Repeat("x", 2030)}
		}, "error next-cmdline: cut it off behind 2047"},
		{"just not too long", func(s *System) {
			s.Next.Image.Setup.CommandLineMax = 2046
			s.Next.CommandLine += strings.Repeat(" ", 2046-len(s.Next.CommandLine))
		}, ""},

		{"locked down", func(s *System) {
			s.Lockdown.Is, s.Running.Is.Config["CONFIG_KEXEC_SIG"] = "integrity", "y"
		}, "error signature: locked down (integrity)"},
		{"locked down, signed", func(s *System) {
			s.Lockdown.Is, s.Running.Is.Config["CONFIG_KEXEC_SIG"], s.Next.Image.Signed = "integrity", "y", true
		}, "warning signature: whether that key is trusted"},
		{"locked down, a signed UKI with an unsigned kernel", func(s *System) {
			s.Lockdown.Is, s.Running.Is.Config["CONFIG_KEXEC_SIG"], s.Next.Image.Signed, s.Next.Image.UKI = "integrity", "y", true, &kimage.UKI{}
		}, "error signature: locked down (integrity)"},
		{"locked down without signatures", func(s *System) { s.Lockdown.Is = "integrity" }, ""},
		{"lockdown unknown", func(s *System) { s.Running.Is.Config["CONFIG_KEXEC_SIG"], s.Lockdown.Err = "y", broken }, "warning signature: no such luck"},
		{"forced", func(s *System) {
			s.Running.Is.Config["CONFIG_KEXEC_SIG"], s.Running.Is.Config["CONFIG_KEXEC_SIG_FORCE"] = "y", "y"
		}, "error signature: CONFIG_KEXEC_SIG_FORCE"},

		{"systemd 257 in the initrd", func(s *System) {
			s.Next.Initrd = &initrd.Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Version: 257}
		}, "error next-initrd: systemd 257"},
		{"systemd 261 in the initrd", func(s *System) {
			s.Next.Initrd = &initrd.Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Version: 261}
		}, ""},
		{"some systemd in the initrd", func(s *System) { s.Next.Initrd = &initrd.Contents{Init: "usr/lib/systemd/systemd", Systemd: true} }, "warning next-initrd: version can't be told"},
		{"no systemd in the initrd", func(s *System) { s.Next.Initrd = &initrd.Contents{Init: "init"} }, ""},
		{"microcode", func(s *System) { s.Next.Initrd = &initrd.Contents{} }, ""},
		{"a damaged initrd", func(s *System) { s.Next.InitrdErr = broken }, "error next-initrd: no such luck"},
		{"rdinit", func(s *System) {
			s.Next.Initrd = &initrd.Contents{Init: "init"}
			s.Next.CommandLine += " rdinit=/x"
		}, "warning next-initrd: rdinit=/x"},
		{"an initrd that wasn't read to its end", func(s *System) {
			s.Next.Initrd, s.Next.InitrdErr = &initrd.Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Version: 262}, fmt.Errorf("lzo: %w", initrd.ErrNotAll)
		}, "warning next-initrd: not all of the initrd was looked at: lzo"},
		{"that has systemd 257", func(s *System) {
			s.Next.Initrd, s.Next.InitrdErr = &initrd.Contents{Init: "usr/lib/systemd/systemd", Systemd: true, Version: 257}, initrd.ErrNotAll
		}, "error next-initrd: systemd 257"},
		{"that has a script", func(s *System) {
			s.Next.Initrd, s.Next.InitrdErr = &initrd.Contents{Init: "init", Version: 257}, initrd.ErrNotAll
		}, "warning next-initrd: not all of the initrd was looked at"},
		{"another program", func(s *System) { s.Next.Initrd = &initrd.Contents{Init: "nix/store/init", Elsewhere: true} }, "warning next-initrd: nix/store/init, which was not looked at"},

		{"rdinit built in", func(s *System) {
			s.Next.Initrd, s.Next.Image.Config = &initrd.Contents{Init: "init"}, kimage.Config{"CONFIG_CMDLINE": "rdinit=/x"}
		}, "warning next-initrd: rdinit=/x"},

		{"no root", func(s *System) { s.Next.CommandLine = "kho=on liveupdate=on" }, "error next-initrd: there is no initrd, and no root="},
		{"a root for an initrd", func(s *System) { s.Next.CommandLine += " root=UUID=1234" }, "error next-initrd: finds root=UUID=1234"},
		{"a root for an initrd, and microcode", func(s *System) {
			s.Next.Initrd = &initrd.Contents{}
			s.Next.CommandLine += " root=LABEL=x"
		}, "error next-initrd: microcode alone, and only a program in one finds root=LABEL=x"},
		{"a root for the initrd that is there", func(s *System) {
			s.Next.Initrd = &initrd.Contents{Init: "init"}
			s.Next.CommandLine += " root=UUID=1234"
		}, ""},
		{"a built-in root for an initrd", func(s *System) {
			s.Next.Image.Config, s.Next.CommandLine = kimage.Config{"CONFIG_CMDLINE": "root=UUID=1234"}, "kho=on liveupdate=on"
		}, "error next-initrd: finds root=UUID=1234"},
		{"a built-in initramfs", func(s *System) {
			s.Next.Image.Config = kimage.Config{"CONFIG_INITRAMFS_SOURCE": "/x"}
			s.Next.CommandLine += " root=UUID=1234"
		}, "warning next-initrd: built into the kernel"},
		{"a forgotten initrd", func(s *System) { s.Next.Neighbour = "/boot/initrd.img-7.3.4" }, "warning next-initrd: though /boot/initrd.img-7.3.4"},

		{"a big initrd", func(s *System) { s.Next.InitrdSize = 129 << 20 }, "error kho-scratch: the initrd (129 MiB) don't fit"},
		{"both too big", func(s *System) { s.Next.InitrdSize, s.Next.Size = 128<<20, 65<<20 }, "error kho-scratch: 192 MiB, 128 MiB in one piece"},
		{"scratch unknown", func(s *System) { s.Scratch = Fact[[]uint64]{Err: broken} }, "warning kho-scratch: no such luck"},

		{"no systemd", func(s *System) { s.Systemd.Is, s.Sessions, s.Stores, s.Units = "", nil, nil, nil }, "warning systemd: PID 1 isn't systemd"},
		{"systemd unknown", func(s *System) { s.Systemd = Fact[string]{Err: broken} }, "warning systemd: no such luck"},
		{"systemd 257 with nothing in it", func(s *System) { s.Systemd.Is, s.Sessions = "257.1-1", nil }, "warning systemd: 257.1-1 carries no fd store"},
		{"systemd 257", func(s *System) { s.Systemd.Is = "257.1-1" }, "error systemd: would be lost"},

		{"just booted", func(s *System) { s.Uptime.Is = 9 * time.Second }, "warning minimum-uptime: 6s more"},
		{"just booted, in no hurry", func(s *System) { s.Uptime.Is, s.CommandLine.Is = 9*time.Second, "systemd.minimum_uptime_sec=0" }, ""},
		{"a word for it", func(s *System) { s.CommandLine.Is = "systemd.minimum_uptime_sec=soon" }, "warning minimum-uptime: soon"},
		{"uptime unknown", func(s *System) { s.Uptime.Err = broken }, "warning minimum-uptime: no such luck"},
		{"command line unknown", func(s *System) { s.CommandLine.Err = broken }, "warning minimum-uptime: no such luck"},

		{"a scope with something to commit", func(s *System) {
			s.hold(name.Kernel("qemu/vm1", "ram"), "vm1.scope", 50)
			s.Participants = []string{"qemu/vm1"}
		},
			"warning inhibit-delay: by 5s at most"},
		{"a scope, and no logind", func(s *System) {
			s.hold(name.Kernel("qemu/vm1", "ram"), "vm1.scope", 50)
			s.Participants, s.InhibitDelayMax = []string{"qemu/vm1"}, Fact[time.Duration]{Err: broken}
		}, "warning inhibit-delay: no such luck"},
		{"a scope, and a patient logind", func(s *System) {
			s.hold(name.Kernel("qemu/vm1", "ram"), "vm1.scope", 50)
			s.Participants, s.InhibitDelayMax.Is = []string{"qemu/vm1"}, time.Minute
		}, ""},
		{"no logind", func(s *System) { s.InhibitDelayMax = Fact[time.Duration]{Err: broken} }, ""},

		{"an exitrd", func(s *System) { s.Exitrd.Is = Exitrd{Reason: "/run/initramfs/shutdown"} }, "error exitrd: /run/initramfs/shutdown"},
		{"an exitrd, and nothing in the stores", func(s *System) { s.Exitrd.Is, s.Sessions = Exitrd{Reason: "finalrd.service"}, nil }, "warning exitrd: finalrd.service"},
		{"an exitrd of systemd", func(s *System) { s.Exitrd.Is = Exitrd{Reason: "/run/initramfs/shutdown", Systemd: 262} }, ""},
		{"exitrd unknown", func(s *System) { s.Exitrd.Err = broken }, "warning exitrd: no such luck"},

		{"not renewed", func(s *System) { s.Sessions[0].Direction = liveupdate.Incoming }, "error incoming: has not been renewed"},
		{"not renewed, but asked", func(s *System) {
			s.Sessions[0].Direction, s.Participants = liveupdate.Incoming, []string{"/vmm.service"}
		}, "warning incoming: takes part"},
		{"renewed", func(s *System) {
			s.Sessions = append(s.Sessions, &inventory.Session{KernelName: ram, Direction: liveupdate.Incoming, Holders: []inventory.Holder{{PID: 40, Unit: "vmm.service"}}})
		}, ""},
		{"neither one nor the other", func(s *System) { s.Sessions[0].Direction = 0 }, "warning unseen: this kernel's or the previous one's"},

		{"uncommitted", func(s *System) { s.hold("h1-other.x", "cache.service", 50); s.hold("h1-other.y", "cache.service", 51) },
			`error uncommitted: "h1-other.x", "h1-other.y" are not committed: only cache.service (PIDs 50, 51)`},
		{"foreign and uncommitted", func(s *System) { s.hold("vm", "", 50) }, `error uncommitted: "vm" is not committed: only no unit (PID 50)`},
		{"uncommitted, but asked", func(s *System) {
			s.hold(name.Kernel("/cache.service", "x"), "cache.service", 50)
			s.Participants = []string{"/cache.service"}
		}, ""},
		{"uncommitted with no systemd", func(s *System) {
			s.Systemd.Is, s.Stores, s.Units = "", nil, nil
			s.Sessions[0].Holders = s.Sessions[0].Holders[1:]
		},
			"warning systemd: isn't systemd; warning uncommitted: crosses if that runs up to the kexec"},
		{"the keeper's store is too small", func(s *System) { s.hold("h1-other.x", "holdfastd.service", 50) }, "error uncommitted: held by holdfastd, but not in its fd store"},

		{"in two stores", func(s *System) {
			s.Sessions[0].Holders = append(s.Sessions[0].Holders, inventory.Holder{PID: 1, Unit: "holdfastd.service", Store: true})
		}, "error two-stores: vmm.service and of holdfastd.service"},

		{"emptied when it stops", func(s *System) { s.Units[0].Service.Preserve = "restart" }, "error store-preserved: FileDescriptorStorePreserve=restart"},
		{"on success", func(s *System) { s.Units[0].Service.Preserve = "on-success" }, ""},

		{"a full store", func(s *System) { s.Units[0].Service.Stored = 16 }, "warning store-room: is full"},
		{"a full store, and more to come", func(s *System) {
			s.Units[0].Service.Stored = 16
			s.hold(ram+"2", "vmm.service", 40)
			s.Participants = []string{"/vmm.service"}
		},
			"error store-room: has 1 session to commit"},
		{"no store", func(s *System) {
			s.hold(name.Kernel("/cache.service", "x"), "cache.service", 50)
			s.Participants, s.Units = []string{"/cache.service"}, append(s.Units, &Unit{Name: "cache.service", Service: &systemd.Service{Preserve: "restart"}})
		}, "warning store-room: no fd store"},

		{"a socket in the store", func(s *System) {
			s.Stores[0].Entries = append(s.Stores[0].Entries, systemd.Entry{Name: "http", Mode: 0o140777, Path: "socket:[1]"})
		}, `warning not-preservable: "http" (socket:[1])`},
		{"a socket in a store for restarts", func(s *System) {
			s.Stores = append(s.Stores, systemd.UnitStore{Unit: "web.service", Entries: []systemd.Entry{{Name: "http", Mode: 0o140777, Path: "socket:[1]"}}})
			s.Units = append(s.Units, &Unit{Name: "web.service", Service: &systemd.Service{StoreMax: 1, Stored: 1, Preserve: "restart"}})
		}, ""},
		{"a socket in a store without sessions", func(s *System) {
			s.Stores = append(s.Stores, systemd.UnitStore{Unit: "systemd-journald.service", Entries: []systemd.Entry{{Name: "stored", Mode: 0o140777, Path: "socket:[1]"}}})
			s.Units = append(s.Units, &Unit{Name: "systemd-journald.service", Service: &systemd.Service{StoreMax: 4096, Stored: 1, Preserve: "yes"}})
		}, ""},
		{"huge pages", func(s *System) { s.Units[0].Files[0].Huge = true }, "warning not-preservable: a memfd of huge pages"},
		{"huge pages that aren't stored", func(s *System) {
			s.Units[0].Files = append(s.Units[0].Files, File{Dev: 3, Inode: 4, Size: 1 << 30, Huge: true})
		}, "warning not-preservable: vmm.service has memfds of huge pages, 1 GiB"},
		{"a file on disk", func(s *System) {
			s.Stores[0].Entries = append(s.Stores[0].Entries, systemd.Entry{Name: "log", Mode: regularFile, Path: "/var/log/x"})
		}, `warning not-preservable: "log" (/var/log/x)`},

		{"too little memory", func(s *System) { s.Units[0].Limits = append(s.Units[0].Limits, Limit{"/system.slice", 255 << 20}) }, "error memory-limit: 255 MiB (memory.max of /system.slice)"},
		{"hardly enough memory", func(s *System) { s.Units[0].Limits[0].Max = 257 << 20 }, "warning memory-limit: too little room"},
		{"the keeper's memory", func(s *System) {
			s.Units = append(s.Units, &Unit{Name: keeper, Files: []File{{Dev: 1, Inode: 3, Size: 256 << 20}}, Limits: []Limit{{"/system.slice/" + keeper, 64 << 20}}})
		}, ""},

		{"holes", func(s *System) {
			s.Units[0].Files[0], s.Memory.Is.Available = File{Size: 256 << 20, Stored: true}, 255<<20
		},
			"error pinned-memory: the holes in those that are stored take 256 MiB"},
		{"somebody's heap", func(s *System) { s.Units[0].Files = append(s.Units[0].Files, File{Dev: 1, Inode: 77, Size: 64 << 30}) },
			"warning memory-limit: if all are preserved; warning pinned-memory: if all are preserved, their holes take 64 GiB"},
		{"a stored one of that size", func(s *System) {
			s.Units[0].Files = append(s.Units[0].Files, File{Dev: 1, Inode: 77, Size: 64 << 30, Stored: true})
		},
			"error memory-limit: memfds of 64.2 GiB; error pinned-memory: 64 GiB"},
		{"holes, and pages in the scratch areas", func(s *System) { s.Units[0].Files[0].Allocated, s.Memory.Is.Available = 100<<20, 190<<20 },
			"warning pinned-memory: holes take 156 MiB, and up to 42 MiB"},
		{"memory unknown", func(s *System) { s.Memory.Err = broken }, "warning pinned-memory: no such luck"},

		{"after an update", func(s *System) { s.Handed.Is = true }, "warning unretrieved: was started by a live update"},
		{"after who knows what", func(s *System) { s.Handed.Err = broken }, "warning unretrieved: no such luck"},

		{"a process that hides", func(s *System) { s.Unseen = []string{"what 2 processes have open can't be told"} }, "warning unseen: what 2 processes"},
		{"a unit that hides", func(s *System) { s.Units[0].Err = broken }, "warning unseen: not all of vmm.service was looked at: no such luck"},
	} {
		t.Run(test.what, func(t *testing.T) {
			s := good()
			test.wrong(s)
			var got []string
			for _, f := range s.Findings() {
				if f.Text == "" || strings.ContainsAny(f.Text, "\n") || strings.Contains(f.Text, "%!") {
					t.Errorf("%+v", f)
				}
				if f.Severity != OK {
					if f.Hint == "" {
						t.Errorf("%+v says nothing of what to do", f)
					}
					got = append(got, fmt.Sprintf("%s %s: %s", f.Severity, f.ID, f.Text))
				}
			}
			var wants []string
			if test.wants != "" {
				wants = strings.Split(test.wants, "; ")
			}
			if !slices.EqualFunc(got, wants, func(got, want string) bool {
				id, part, _ := strings.Cut(want, ": ")
				return strings.HasPrefix(got, id+": ") && strings.Contains(got, part)
			}) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(wants, "\n  "))
			}
		})
	}
}

func TestErrorsComeFirst(t *testing.T) {
	s := good()
	s.Unseen, s.KexecOff.Is, s.Sessions[0].Direction = []string{"x"}, true, liveupdate.Incoming
	findings := s.Findings()
	if len(Errors(findings)) != 2 || findings[0].ID != "kexec-allowed" || findings[1].ID != "incoming" || findings[2].Severity != Warning || findings[len(findings)-1].Severity != OK {
		t.Errorf("%+v", findings)
	}
	if kernel := Errors(s.KernelFindings()); len(kernel) != 1 || kernel[0].ID != "kexec-allowed" {
		t.Errorf("of the kernels: %+v", kernel)
	}
}

func TestManySessions(t *testing.T) {
	s := good()
	for i := range 100 {
		s.hold(fmt.Sprintf("x%d", i), "cache.service", i)
	}
	wrong := Errors(s.Findings())
	if len(wrong) != 1 || !strings.Contains(wrong[0].Text, `"x0", "x1", "x2", "x3" and 96 more`) || len(wrong[0].Text) > 400 {
		t.Errorf("%+v", wrong)
	}
}
