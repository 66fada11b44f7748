// SPDX-License-Identifier: MIT

package check

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/holdfast-project/holdfast/internal/decompress"
	"github.com/holdfast-project/holdfast/internal/initrd"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/kimage"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// commandLineMax is COMMAND_LINE_SIZE less the NUL (arch/x86/include/asm/setup.h, arch/arm64/include/uapi/asm/setup.h, Linux 7.2.13): of
// anything longer a kernel keeps this much.
const commandLineMax = 2047

// support: does this kernel do live updates?
func support(s *System) []Finding {
	const id = "this-kernel"
	var e *liveupdate.Error
	switch {
	case s.Device == nil:
	case errors.Is(s.Device, fs.ErrPermission):
		return warning(id, "run the check as root", "whether sessions can be had is for root to see: %v", s.Device)
	case errors.As(s.Device, &e):
		hint := cmp.Or(e.Hint, "boot a kernel with CONFIG_LIVEUPDATE, and with kho=on liveupdate=on")
		said := *e
		said.Hint = ""
		return failure(id, hint, "this kernel does no live updates: %v", &said)
	default:
		return failure(id, "boot a kernel with CONFIG_LIVEUPDATE, and with kho=on liveupdate=on", "this kernel does no live updates: %v", s.Device)
	}
	if k := s.Running; k.Err != nil || k.Is == nil {
		return warning(id, "keep the running kernel's image in /boot, and run the check as root with debugfs mounted", "this kernel does live updates, but not all can be told of it: %v",
			cmp.Or(k.Err, errors.New("nothing is known of it")))
	}
	return ok(id, "this kernel, %s, does live updates", s.Running.Is.Release)
}

// allowed: may a kernel be loaded?
func allowed(s *System) []Finding {
	const id = "kexec-allowed"
	if s.Loaded.Is && s.Next == nil {
		return nil // it is done
	}
	built := kimage.Unknown
	if s.Device == nil {
		built = kimage.Yes // CONFIG_LIVEUPDATE is built on it, kernel/liveupdate/Kconfig
	} else if s.Running.Is != nil {
		built, _ = s.Running.Is.Option(kimage.KexecFile)
	}
	switch {
	case s.KexecOff.Is:
		return failure(id, "only a reboot clears it; see what sets it in /etc/sysctl.d", "kernel.kexec_load_disabled is 1: no kernel can be loaded")
	case s.LoadsLeft.Err == nil && s.LoadsLeft.Is == 0:
		return failure(id, "only a reboot raises it; see what sets it in /etc/sysctl.d", "kernel.kexec_load_limit_reboot is 0: no kernel can be loaded any more")
	case built == kimage.No:
		return failure(id, "boot a kernel with CONFIG_KEXEC_FILE", "this kernel has no kexec_file_load, and what the older kexec_load loads is handed nothing over")
	case s.KexecOff.Err != nil:
		return warning(id, "mount /proc; holdfast load shows it", "whether kernels may be loaded (kernel.kexec_load_disabled) can't be told: %v", s.KexecOff.Err)
	case s.LoadsLeft.Err != nil:
		return warning(id, "mount /proc; holdfast load shows it", "how many kernels may be loaded (kernel.kexec_load_limit_reboot) can't be told: %v", s.LoadsLeft.Err)
	case built == kimage.Unknown:
		return warning(id, "holdfast load shows it", "whether this kernel has kexec_file_load (CONFIG_KEXEC_FILE) can't be told")
	}
	return ok(id, "kernels can be loaded")
}

// image: can the next kernel's image be read to its end?
func image(s *System) []Finding {
	const id = "next-kernel"
	switch n := s.Next; {
	case n == nil && s.Loaded.Is:
		return warning(id, "name the image that was loaded: holdfast check KERNEL --initrd INITRD --cmdline WORDS", "a kernel is loaded, but not even the kernel can tell which: it was not looked at")
	case n == nil:
		return warning(id, "holdfast check KERNEL", "no kernel was named, and none is loaded: the next kernel was not looked at")
	case n.Image != nil && errors.Is(n.Err, decompress.ErrUnsupported):
		return warning(id, "take one that is compressed with gzip, xz, zstd or lz4", "the next kernel can't be unpacked here, so only its configuration was looked at: %v", n.Err)
	case n.Err != nil:
		return failure(id, "get the image anew, as by reinstalling its package", "the next kernel would not start: %v", n.Err)
	default:
		return ok(id, "the next kernel is %s, a whole %s", n.Image.Release, n.Image.Kind)
	}
}

// unifiedAlone: is there something beside a unified image that would go with it?
func unifiedAlone(s *System) []Finding {
	if s.Next == nil || len(s.Next.Companions) == 0 {
		return nil
	}
	return warning("next-uki", "give the words of an addon with --cmdline, and what else is needed with --initrd",
		"of the UKI only what is in it is loaded: systemd-stub, which kexec doesn't start, would add %s", strings.Join(s.Next.Companions, ", "))
}

// readable says whether enough of the next kernel could be read to judge it.
func (s *System) readable() bool {
	return s.Next != nil && s.Next.Image != nil && (s.Next.Err == nil || errors.Is(s.Next.Err, decompress.ErrUnsupported))
}

// loadable: would kexec_file_load take the image?
func loadable(s *System) []Finding {
	const id = "next-loadable"
	if s.Next == nil || s.Next.Image == nil {
		return nil
	}
	i := s.Next.Image
	switch s.Arch {
	case "amd64":
		if i.Setup == nil {
			return failure(id, "take the bzImage of that kernel (arch/x86/boot/bzImage, /boot/vmlinuz-…)", "on x86-64 kexec_file_load takes a bzImage only, and this is a %s", i.Kind)
		}
		if err := i.Setup.KexecFile(); err != nil {
			return failure(id, "take a 64-bit kernel that is built with CONFIG_RELOCATABLE", "%v", err)
		}
	case "arm64":
		kind := i.Kind
		if i.UKI != nil {
			kind = i.UKI.LinuxKind
		}
		const hint = "take the uncompressed arch/arm64/boot/Image of that kernel"
		switch {
		case kind == "":
			return nil // image says so
		case kind != kimage.Arm64:
			return failure(id, hint, "on arm64 kexec_file_load takes an uncompressed Image only, and this is a %s", kind)
		case i.Compression != decompress.None:
			return failure(id, hint, "on arm64 kexec_file_load takes an uncompressed Image only, and this one is compressed (%s)", i.Compression)
		}
	}
	return ok(id, "kexec_file_load takes images of this kind")
}

// What a kernel must have for each of the formats.
var options = map[string]string{kimage.KHO: kimage.KexecHandover, kimage.LUO: kimage.LiveUpdate, kimage.Memfd: kimage.LiveUpdateMemfd}

// handover: do the kernels agree on KHO, by which memory is handed over at all?
func handover(s *System) []Finding { return agree(s, kimage.KHO, "kexec handover (KHO)") }

// orchestrator: do they agree on LUO, by which sessions are?
func orchestrator(s *System) []Finding {
	return agree(s, kimage.LUO, "the Live Update Orchestrator (LUO)")
}

// agree finds in what the kernels differ about a format that everything needs.
func agree(s *System, format, what string) []Finding {
	if !s.readable() {
		return nil
	}
	id := "next-" + format
	d, differ := s.difference(format)
	consequence := "nothing would be taken over"
	if format == kimage.Memfd {
		// luo_file_deserialize_one(), and luo_open(), which tries once; kernel/liveupdate, Linux 7.2.13.
		consequence = "with a single one in it, no session at all would be taken over (EIO)"
	}
	running := s.Device == nil // and so it has KHO and LUO, whatever else is said of it
	switch {
	case !differ && format == kimage.Memfd && !has(s.Running.Is, format):
		return ok(id, "this kernel isn't known to preserve memfds")
	case !differ:
		return ok(id, "both kernels have %s in the same version, %s", what, strings.Join(versions(&s.Next.Image.Kernel, format), ", "))
	case d.Next.Has == kimage.No:
		return failure(id, "take a kernel with "+options[format]+"=y", "the next kernel, %s, is built without %s: %s", s.Next.Image.Release, what, consequence)
	case d.Running.Has == kimage.No && running:
		return warning(id, "keep the running kernel's image in /boot, so that it can be looked at", "in which version this kernel has %s can't be told", what)
	case d.Running.Has == kimage.No:
		return nil // support says so
	case d.Certain && format == kimage.LUO:
		// luo_early_startup() and luo_restore_fail(), kernel/liveupdate, Linux 7.2.13: with liveupdate=off too.
		return failure(id, "take a kernel that has the same version, as most of one series do", "the kernels don't agree on %s: %v; the next one would panic when it starts", what, d)
	case d.Certain:
		return failure(id, "take a kernel that has the same version, as most of one series do", "the kernels don't agree on %s: %v; %s", what, d, consequence)
	}
	return warning(id, "keep the running kernel's image in /boot, so that it can be looked at", "whether the kernels agree on %s can't be told: %v", what, d)
}

func (s *System) differences() []kimage.Difference {
	running := s.Running.Is
	if running == nil {
		running = &kimage.Kernel{}
	}
	return kimage.Compare(running, &s.Next.Image.Kernel)
}

func (s *System) difference(format string) (kimage.Difference, bool) {
	all := s.differences()
	i := slices.IndexFunc(all, func(d kimage.Difference) bool { return d.Name == format })
	if i < 0 {
		return kimage.Difference{}, false
	}
	return all[i], true
}

func versions(k *kimage.Kernel, format string) (found []string) {
	for _, f := range k.Formats {
		if f.Name == format {
			found = append(found, f.Compatible)
		}
	}
	return found
}

// has says whether a kernel is known to have a format.
func has(k *kimage.Kernel, format string) bool { return k != nil && len(versions(k, format)) > 0 }

// fileTypes: do they agree on each type of file?
func fileTypes(s *System) []Finding {
	if !s.readable() {
		return nil
	}
	findings := agree(s, kimage.Memfd, "memfds in sessions")
	for _, d := range s.differences() {
		switch d.Name {
		case kimage.KHO, kimage.LUO, kimage.Memfd:
			continue
		case "luo-session", "luo-flb": // LUO's own, until 7.2
			findings = append(findings, failure("next-luo", "take a kernel that has the same version", "the kernels don't agree on the Live Update Orchestrator (LUO): %v; nothing would be taken over", d)...)
			continue
		}
		findings = append(findings, warning("next-formats", "find out whether a module of the next kernel has it, or go without", "the kernels may not agree on %q: %v; if that is a type of file, and any session has one, no session at all would be taken over (EIO)", d.Name, d)...)
	}
	return findings
}

// commandLine: is live update switched on for the next kernel?
func commandLine(s *System) []Finding {
	const id = "next-cmdline"
	if s.Next == nil {
		return nil
	}
	line, fixed := s.Next.effective(s.Arch)
	var missing []string
	for _, name := range kexec.Needed {
		on, said := kexec.On(line, name)
		if !on && !(name == "kho" && !said && s.Next.khoByDefault()) {
			missing = append(missing, name+"=on")
		}
	}
	switch {
	case len(missing) == 0:
	case fixed:
		return failure(id, "take a kernel without it", "the next kernel goes by the command line that is built into it, which lacks %s: it would take nothing over", strings.Join(missing, " "))
	default:
		return failure(id, "add it; holdfast load does", "the next kernel's command line (%s) lacks %s: it would take nothing over", s.Next.From, strings.Join(missing, " "))
	}
	most := commandLineMax
	if i := s.Next.Image; i != nil && i.Setup != nil && i.Setup.CommandLineMax > 0 {
		most = i.Setup.CommandLineMax
	}
	switch n := len(s.Next.CommandLine); {
	case n > most:
		return failure(id, "make it shorter", "the next kernel's command line has %d bytes, and kexec_file_load takes %d", n, most)
	case len(line) > commandLineMax && !fixed:
		return failure(id, "make it shorter", "the next kernel's command line has %d bytes, with the one that is built into it %d: it would cut it off behind %d", n, len(line), commandLineMax)
	}
	return ok(id, "the next kernel's command line (%s) has live update switched on", s.Next.From)
}

// effective is the command line that the next kernel goes by: its own comes before what it is given, or in place of it (fixed).
func (n *Next) effective(arch string) (line string, fixed bool) {
	line = n.CommandLine
	if n.Image == nil || n.Image.Config["CONFIG_CMDLINE"] == "" {
		return line, false
	}
	built := n.Image.Config["CONFIG_CMDLINE"]
	switch {
	case n.Image.Config["CONFIG_CMDLINE_OVERRIDE"] != "", n.Image.Config["CONFIG_CMDLINE_FORCE"] != "":
		return built, true
	case arch == "amd64":
		return built + " " + line, false
	}
	return line, false
}

func (n *Next) khoByDefault() bool {
	if n.Image == nil {
		return false
	}
	on, _ := n.Image.Option(kimage.KexecHandoverDefault)
	return on == kimage.Yes
}

// signature: would this kernel refuse the next one for the want of a signature?
func signature(s *System) []Finding {
	const id = "signature"
	if s.Next == nil || s.Next.Image == nil {
		return nil
	}
	i := s.Next.Image
	signed := i.Signed
	if i.UKI != nil {
		signed = i.UKI.LinuxSigned
	}
	verifies, forced := kimage.Unknown, kimage.Unknown
	if s.Running.Is != nil {
		verifies, _ = s.Running.Is.Option(kimage.KexecSig)
		forced, _ = s.Running.Is.Option(kimage.KexecSigForce)
	}
	locked := s.Lockdown.Is != "" && s.Lockdown.Is != "none"
	const hint = "take a kernel that is signed with a key that this one trusts"
	switch {
	case verifies == kimage.No:
		return ok(id, "this kernel asks for no signature")
	case !signed && forced == kimage.Yes:
		return failure(id, hint, "this kernel loads only signed ones (CONFIG_KEXEC_SIG_FORCE), and the next one isn't")
	case !signed && locked && verifies == kimage.Yes:
		return failure(id, hint, "this kernel is locked down (%s) and loads only signed ones, and the next one isn't", s.Lockdown.Is)
	case !signed && locked:
		return warning(id, hint, "this kernel is locked down (%s), and the next one isn't signed; whether it would be refused can't be told", s.Lockdown.Is)
	case !signed && s.Lockdown.Err != nil:
		return warning(id, hint, "the next kernel isn't signed, and whether this one is locked down can't be told: %v", s.Lockdown.Err)
	case signed && (locked || forced == kimage.Yes):
		return warning(id, "holdfast load shows it", "the next kernel is signed, as this one demands; by whom, and whether that key is trusted, was not looked at")
	}
	return ok(id, "this kernel isn't locked down, and doesn't demand a signature")
}

// initialRAM: what takes the fd stores over in the next kernel?
func initialRAM(s *System) []Finding {
	const id = "next-initrd"
	if s.Next == nil {
		return nil
	}
	const hint = "build an initrd with systemd 261 or newer, or one without systemd, or boot with none"
	n := s.Next
	tooOld := n.Initrd != nil && n.Initrd.Systemd && n.Initrd.Version > 0 && n.Initrd.Version < systemd.CarriesSince
	switch {
	case errors.Is(n.InitrdErr, initrd.ErrNotAll) && !tooOld:
		return warning(id, "see that what starts in it is no systemd before 261", "not all of the initrd was looked at: %v", n.InitrdErr)
	case n.InitrdErr != nil && !errors.Is(n.InitrdErr, initrd.ErrNotAll):
		return failure(id, "build the initrd anew", "the initrd is damaged, or can't be read: %v", n.InitrdErr)
	case n.Initrd == nil:
		return s.withoutInitrd(id)
	}
	line, _ := n.effective(s.Arch)
	if value, found := kexec.Param(line, "rdinit"); found {
		return warning(id, "see that this is no systemd before 261", "rdinit=%s on the next kernel's command line has another program started than was looked at", value)
	}
	switch c := n.Initrd; {
	case c.Init == "":
		return s.withoutInitrd(id)
	case !c.Systemd && c.Elsewhere:
		return warning(id, "see that this is no systemd before 261", "the initrd starts %s, which was not looked at", c.Init)
	case !c.Systemd:
		return ok(id, "the initrd has no systemd, and leaves it to the host's to take the fd stores over")
	case c.Version == 0:
		return warning(id, hint, "the initrd has a systemd whose version can't be told: before 261 it takes no fd store over")
	case tooOld:
		return failure(id, hint, "the initrd has systemd %d, and before %d it takes no fd store over: nothing would come back to where it was stored", c.Version, systemd.CarriesSince)
	default:
		return ok(id, "the initrd has systemd %d, which takes the fd stores over", c.Version)
	}
}

// withoutInitrd: does the next kernel find its root file system by itself, and does the host's systemd take the fd stores over?
func (s *System) withoutInitrd(id string) []Finding {
	n := s.Next
	what := "there is no initrd"
	if n.Initrd != nil {
		what = "the initrd has no program to start, as one with microcode alone"
	}
	if n.Image != nil && n.Image.Config["CONFIG_INITRAMFS_SOURCE"] != "" {
		return warning(id, "see that what starts in it is no systemd before 261", "%s, but one is built into the kernel, which was not looked at", what)
	}
	hint := "name the initrd that belongs to the kernel: --initrd " + cmp.Or(n.Neighbour, "FILE")
	line, _ := n.effective(s.Arch)
	switch root, found := kexec.Param(line, "root"); {
	case !found:
		return failure(id, hint, "%s, and no root= on the command line: the next kernel would find nothing to start, and panic", what)
	case !findsRoot(line, root):
		return failure(id, hint, "%s, and only a program in one finds root=%s: the next kernel would find nothing to start, and panic", what, root)
	case n.Initrd == nil && n.Neighbour != "":
		return warning(id, hint+", unless all that it takes to mount the root is built into the kernel", "there is no initrd, though %s was made for this kernel", n.Neighbour)
	}
	return ok(id, "%s: the host's systemd takes the fd stores over", what)
}

// findsRoot says whether a kernel looks for such a root by itself (parse_root_device() and mount_root() in init/do_mounts.c,
// early_lookup_bdev() in block/early-lookup.c, Linux 7.2.13).
func findsRoot(line, root string) bool {
	for _, known := range []string{"PARTUUID=", "PARTLABEL=", "mtd", "ubi"} {
		if strings.HasPrefix(root, known) {
			return true
		}
	}
	if device, found := strings.CutPrefix(root, "/dev/"); found {
		// In the names of few disks there is a slash. Of what is in a directory the rest are links, which udev makes.
		directory, _, inside := strings.Cut(device, "/")
		return device != "" && (!inside || slices.Contains([]string{"cciss", "ida", "rd", "etherd"}, directory))
	}
	if root != "" && strings.Trim(root, "0123456789abcdefABCDEF:") == "" {
		return true // a device's number
	}
	// What needs no device has a root of any name.
	types, _ := kexec.Param(line, "rootfstype")
	return root != "" && slices.ContainsFunc(strings.Split(types, ","), func(t string) bool { return t == "virtiofs" || t == "9p" })
}

// scratch: do kernel and initrd fit into what KHO has set aside for them? The next kernel is loaded into these areas, and has nothing
// else until it has found out what is preserved (kho_locate_mem_hole(), kernel/liveupdate/kexec_handover.c, Linux 7.2.13).
func scratch(s *System) []Finding {
	const id = "kho-scratch"
	if s.Next == nil {
		return nil
	}
	if s.Scratch.Err != nil || len(s.Scratch.Is) == 0 {
		return warning(id, "mount debugfs, on a kernel with CONFIG_KEXEC_HANDOVER_DEBUGFS; or load the kernel, which says if it doesn't fit",
			"whether kernel and initrd fit into KHO's scratch areas can't be told: %v", cmp.Or(s.Scratch.Err, errors.New("there are none")))
	}
	var total uint64
	for _, n := range s.Scratch.Is {
		total += n
	}
	kernel := uint64(s.Next.Size)
	if i := s.Next.Image; i != nil && i.Setup != nil {
		kernel = max(kernel, uint64(i.Setup.InitSize))
	}
	ram := uint64(s.Next.InitrdSize)
	largest := slices.Max(s.Scratch.Is)
	if kernel > largest || ram > largest || kernel+ram > total {
		return failure(id, "take a smaller initrd, or boot this kernel with a larger kho_scratch=",
			"the kernel (%s in memory) and the initrd (%s) don't fit into KHO's scratch areas: they have %s, %s in one piece", bytes(kernel), bytes(ram), bytes(total), bytes(largest))
	}
	return ok(id, "kernel and initrd, %s, fit into KHO's scratch areas of %s", bytes(kernel+ram), bytes(total))
}
