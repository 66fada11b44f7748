// SPDX-License-Identifier: MIT

// Package rootfs makes root file systems for guests from Debian's packages.
package rootfs

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
	"github.com/holdfast-project/holdfast/internal/hfvm/image"
)

// schema changes when what is made from the same packages does.
const schema = "2"

// Suites are the Debian releases that a guest can have: forky has systemd 262, which knows about
// live update, trixie 257, which does not.
var Suites = []string{"forky", "trixie"}

var packages = []string{
	// Not iproute2: it brings libbpf, and where that is PID 1 tries out BPF for seconds at each start.
	"systemd", "systemd-sysv", "systemd-container", "dbus", "mount", "udev", "procps",
}

// masked are units that take time and do nothing for a test, or would ask questions.
var masked = []string{
	"systemd-firstboot.service", "systemd-networkd.service", "systemd-networkd.socket",
	"systemd-networkd-wait-online.service", "systemd-network-generator.service",
	"systemd-resolved.service", "systemd-timesyncd.service", "systemd-hwdb-update.service",
	"systemd-update-done.service", "systemd-journal-catalog-update.service", "ldconfig.service",
	"systemd-boot-random-seed.service", "systemd-random-seed.service", "systemd-pstore.service",
	"systemd-binfmt.service", "systemd-machine-id-commit.service",
	"getty.target", "getty@.service", "serial-getty@.service", "console-getty.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "man-db.timer", "logrotate.timer",
	"systemd-tmpfiles-clean.timer",
	// The kernels have no modules.
	"modprobe@.service", "systemd-modules-load.service", "kmod-static-nodes.service",
	// A process that starts costs a third of a second of emulated processor. The kernel has mounted / as it is to be and made
	// the nodes of /dev; the users are those of the packages; the journal stays in /run.
	"systemd-remount-fs.service", "systemd-tmpfiles-setup-dev-early.service", "systemd-tmpfiles-setup-dev.service",
	"systemd-sysusers.service", "systemd-sysctl.service", "systemd-journal-flush.service",
	"systemd-udev-load-credentials.service", "systemd-user-sessions.service", "dev-hugepages.mount", "dev-mqueue.mount",
	"systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-ask-password.socket",
	"systemd-creds.socket", "systemd-factory-reset.socket", "systemd-importd.socket", "systemd-journalctl.socket",
	"systemd-mute-console.socket", "systemd-storage-block.socket", "systemd-storage-fs.socket", "systemd-sysext.socket",
	"systemd-sysinstall.socket", "systemd-sysupdate.socket",
}

// files replace the system's. udev is told of those devices only that a rule, or a unit, may be about: udevd would start a
// worker for each of some hundred others.
var files = map[string]string{
	// A fixed one: an empty one makes each boot a "first boot", with presets to apply.
	"etc/machine-id": "686f6c6466617374000000000000686d\n",
	"etc/hostname":   "hfvm\n",
	"etc/hosts":      "127.0.0.1 localhost hfvm\n",
	"etc/fstab":      "",
	"etc/systemd/system/systemd-udev-trigger.service.d/few.conf": `[Service]
ExecStart=
ExecStart=-udevadm trigger --action=add --subsystem-match=block --subsystem-match=misc --subsystem-match=net
`,
}

// room is what the file system has free for files that are added to it and written in the guest.
const room = 1 << 30

// A Root is a root file system in the cache.
type Root struct {
	Image   string        // ext4
	Initrd  string        // dracut's, "" if not asked for
	Listing image.Listing // what the image holds
}

// Tools are what has to be on the machine to make root file systems.
var Tools = []debian.Tool{
	{Name: "mmdebstrap", Package: "mmdebstrap"}, {Name: "mke2fs", Package: "e2fsprogs"},
	{Name: "debugfs", Package: "e2fsprogs"},
	{Name: debian.Keyring, Package: "debian-archive-keyring"},
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// CheckPackages says whether these can be names of packages.
func CheckPackages(names []string) error {
	for _, n := range names {
		if !packageName.MatchString(n) {
			return fmt.Errorf("%q can't be the name of a Debian package", n)
		}
	}
	return nil
}

// entry names a root file system by all that goes into it. The order of packages doesn't matter.
func entry(suite string, extra []string, dracut bool) (name string, include []string) {
	include = append(slices.Clone(packages), extra...)
	if dracut {
		include = append(include, "dracut")
	}
	slices.Sort(include)
	include = slices.Compact(include)
	kind := suite
	if dracut {
		kind += "-dracut"
	}
	key := cache.Key(schema, suite, strings.Join(include, " "), strings.Join(masked, " "), fmt.Sprint(files), fmt.Sprint(dracut, room))
	return "roots/" + kind + "-" + key, include
}

// Open finds a root file system with extra packages, or makes it.
func Open(ctx context.Context, c *cache.Cache, suite string, extra []string, dracut bool) (*Root, error) {
	name, include := entry(suite, extra, dracut)
	dir, err := c.Entry(ctx, name, func(dir string, log *cache.Log) error {
		return build(ctx, c, log, suite, include, dracut, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("making a root file system of %s: %w", suite, err)
	}
	r := &Root{Image: filepath.Join(dir, "root.ext4")}
	if dracut {
		r.Initrd = filepath.Join(dir, "initrd")
	}
	list, err := os.ReadFile(filepath.Join(dir, "listing.json"))
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal(list, &r.Listing)
}

func build(ctx context.Context, c *cache.Cache, log *cache.Log, suite string, include []string, dracut bool, dir string) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("only root can do that (mmdebstrap makes device nodes and files of other users)")
	}
	if err := debian.Need(ctx, c, Tools...); err != nil {
		return err
	}
	mirror, err := debian.Mirror(ctx)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	args := []string{
		"--mode=root", "--variant=apt", "--architectures=amd64",
		"--include=" + strings.Join(include, ","),
		// A mirror may be a snapshot: old, but signed.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		`--aptopt=Acquire::Languages "none"`,
		`--aptopt=APT::Install-Recommends "false"`,
		`--dpkgopt=path-exclude=/usr/share/man/*`,
		`--dpkgopt=path-exclude=/usr/share/locale/*`,
		`--dpkgopt=path-exclude=/usr/share/doc/*`,
		// Nothing may start while packages are being set up, and nothing needs a trigger's fsync.
		`--dpkgopt=force-unsafe-io`,
	}
	if dracut {
		// The hook runs with /proc, /sys and /dev in the tree. The kernels have no modules.
		args = append(args, `--customize-hook=chroot "$1" dracut --force --no-kernel --no-hostonly --add systemd /boot/initrd`)
	}
	args = append(args, suite, tree, fmt.Sprintf("deb [signed-by=%s] %s %s main", debian.Keyring, mirror, suite))
	if err := log.Step(ctx, "installing "+suite+" ("+fmt.Sprint(len(include))+" packages and what they need)", func() error {
		// In a mount namespace of its own, so that nothing stays mounted in the tree however this
		// ends. In a chroot, / is no mount, and can't be made private nor has to be.
		return log.Command(ctx, "unshare", append([]string{"--mount", "--propagation=unchanged", "sh", "-c",
			`mount --make-rprivate / || true; exec mmdebstrap "$@"`, "mmdebstrap"}, args...)...).Run()
	}); err != nil {
		return err
	}
	return log.Step(ctx, "making the image of "+suite, func() error {
		if err := tailor(tree); err != nil {
			return err
		}
		if dracut {
			if err := os.Rename(filepath.Join(tree, "boot/initrd"), filepath.Join(dir, "initrd")); err != nil {
				return err
			}
		}
		listing, err := image.List(tree)
		if err != nil {
			return err
		}
		text, err := json.Marshal(listing)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "listing.json"), text, 0o644); err != nil {
			return err
		}
		size, err := diskUsage(tree)
		if err != nil {
			return err
		}
		// Tables are written now, so that the guest's kernel doesn't spend its first minute on that.
		if err := log.Command(ctx, "mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
			"-J", "size=8", "-m", "0", "-d", tree, filepath.Join(dir, "root.ext4"), fmt.Sprint((size+size/8+room)>>10)).Run(); err != nil {
			return err
		}
		return os.RemoveAll(tree)
	})
}

// tailor makes an installed system boot fast and without questions.
func tailor(tree string) error {
	for _, unit := range masked {
		p := filepath.Join(tree, "etc/systemd/system", unit)
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		if err := os.Symlink("/dev/null", p); err != nil {
			return err
		}
	}
	target := filepath.Join(tree, "etc/systemd/system/default.target")
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.Symlink("/usr/lib/systemd/system/multi-user.target", target); err != nil {
		return err
	}
	// PID 1 runs each generator at its start and at each daemon-reload. What they'd make units of is not here.
	generators, err := os.ReadDir(filepath.Join(tree, "usr/lib/systemd/system-generators"))
	if err != nil {
		return err
	}
	for _, g := range generators {
		if err := os.Remove(filepath.Join(tree, "usr/lib/systemd/system-generators", g.Name())); err != nil {
			return err
		}
	}
	// User sessions are always permitted: systemd-user-sessions.service would remove this at the end of the boot.
	if err := os.Remove(filepath.Join(tree, "usr/lib/tmpfiles.d/systemd-nologin.conf")); err != nil {
		return err
	}
	for name, content := range files {
		p := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func diskUsage(tree string) (int64, error) {
	var size int64
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += (info.Size() + 4095) &^ 4095
		return nil
	})
	return size, err
}
