// SPDX-License-Identifier: MIT

package kimage

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func having(formats ...string) *Kernel {
	k := &Kernel{}
	var f []Format
	for _, c := range formats {
		f = append(f, Format{c[:strings.LastIndex(c, "-v")], c})
	}
	k.setFormats(f, "the image", true)
	return k
}

func partly(k *Kernel) *Kernel {
	k.Complete = false
	return k
}

func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		running, next *Kernel
		want          []string
	}{
		"the same":         {having("kho-v4", "luo-v5", "memfd-v2"), having("kho-v4", "luo-v5", "memfd-v2"), nil},
		"more in the next": {having("kho-v4", "luo-v5"), having("kho-v4", "luo-v5", "luo-v6", "memfd-v2", "iommufd-v1"), nil},
		"another memfd": {having("kho-v4", "luo-v5", "memfd-v2"), having("kho-v4", "luo-v5", "memfd-v3"),
			[]string{"certain memfd: this kernel has memfd-v2, the next one has memfd-v3"}},
		"no type of file": {having("kho-v4", "luo-v5", "memfd-v2", "vfio-pci-v1"), having("kho-v4", "luo-v5", "memfd-v2"),
			[]string{"certain vfio-pci: this kernel has vfio-pci-v1, the next one doesn't have it"}},
		"an older next": {having("kho-v4", "luo-v5", "memfd-v2"), having("kho-v1", "luo-v1", "luo-session-v2", "memfd-v1"), []string{
			"certain kho: this kernel has kho-v4, the next one has kho-v1",
			"certain luo: this kernel has luo-v5, the next one has luo-v1",
			"certain memfd: this kernel has memfd-v2, the next one has memfd-v1"}},
		"an older running one": {having("kho-v4", "luo-v4", "luo-session-v2", "memfd-v2"), having("kho-v4", "luo-v5", "memfd-v2"), []string{
			"certain luo: this kernel has luo-v4, the next one has luo-v5",
			"certain luo-session: this kernel has luo-session-v2, the next one doesn't have it"}},
		"no live update in the next": {having("kho-v4", "luo-v5", "memfd-v2"), having(), []string{
			"certain kho: this kernel has kho-v4, the next one doesn't have it",
			"certain luo: this kernel has luo-v5, the next one doesn't have it",
			"certain memfd: this kernel has memfd-v2, the next one doesn't have it"}},
		"no live update here": {having(), having("kho-v4", "luo-v5", "memfd-v2"), []string{
			"certain kho: this kernel doesn't have it, the next one has kho-v4",
			"certain luo: this kernel doesn't have it, the next one has luo-v5"}},
		"of this one only KHO and LUO are known": {partly(having("kho-v4", "luo-v5")), having("kho-v4", "luo-v5", "memfd-v2"),
			[]string{"perhaps memfd: this kernel isn't known to have it, the next one has memfd-v2"}},
		"of this one the configuration is known": {&Kernel{Config: Config{KexecHandover: "y", LiveUpdate: "y"}}, having("kho-v4", "luo-v5", "memfd-v2"), []string{
			"perhaps kho: this kernel has it in a version that isn't known, the next one has kho-v4",
			"perhaps luo: this kernel has it in a version that isn't known, the next one has luo-v5"}},
		"the next one's configuration has none": {having("kho-v4", "luo-v5"), &Kernel{Config: Config{"CONFIG_64BIT": "y"}}, []string{
			"certain kho: this kernel has kho-v4, the next one doesn't have it",
			"certain luo: this kernel has luo-v5, the next one doesn't have it"}},
		"nothing is known": {&Kernel{}, &Kernel{}, []string{
			"perhaps kho: this kernel isn't known to have it, the next one isn't known to have it",
			"perhaps luo: this kernel isn't known to have it, the next one isn't known to have it",
			"perhaps memfd: this kernel isn't known to have it, the next one isn't known to have it"}},
	} {
		var got []string
		for _, d := range Compare(c.running, c.next) {
			certain := map[bool]string{true: "certain ", false: "perhaps "}
			got = append(got, certain[d.Certain]+d.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", name, got, c.want)
		}
	}
}

func options(k *Kernel) string {
	var found []string
	for _, name := range Options {
		answer, from := k.Option(name)
		found = append(found, strings.TrimSpace(answer.String()+" "+from))
	}
	return strings.Join(found, "; ")
}

func TestOptions(t *testing.T) {
	parsed, err := ParseConfig(strings.NewReader(config))
	if err != nil {
		t.Fatal(err)
	}
	withConfig := having("kho-v4", "luo-v5")
	withConfig.Config, withConfig.ConfigFrom = parsed, "/boot/config"
	for name, c := range map[string]struct {
		kernel *Kernel
		want   string
	}{
		"image only":    {having("kho-v4", "luo-v5", "memfd-v2"), "yes the image; unknown; unknown; yes the image; unknown; yes the image; yes the image"},
		"no format":     {having(), "unknown; unknown; unknown; no the image; unknown; no the image; no the image"},
		"configuration": {&Kernel{Config: parsed, ConfigFrom: "/boot/config"}, "yes /boot/config; no /boot/config; no /boot/config; yes /boot/config; yes /boot/config; yes /boot/config; yes /boot/config"},
		// The image has no memfd, whatever the file says.
		"both":    {withConfig, "yes /boot/config; no /boot/config; no /boot/config; yes the image; yes /boot/config; yes the image; no the image"},
		"nothing": {&Kernel{}, "unknown; unknown; unknown; unknown; unknown; unknown; unknown"},
	} {
		if got := options(c.kernel); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// fdt is what debugfs has of KHO's tree: a header, then a node with its property.
const fdt = "\xd0\x0d\xfe\xed\x00\x00\x10\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x07\x00\x00\x00\x00kho-v4\x00\x00compatible\x00"

func TestRunning(t *testing.T) {
	image := string(bzImage(gzipped(whole)))
	other := string(bzImage(gzipped([]byte(strings.Replace(string(whole), banner, strings.Replace(banner, "#5", "#6", 1), 1)))))
	bare := string(bzImage(gzipped(vmlinux(strs, handlers, ""))))
	kallsyms := lines("0000000000000000 T kho_add_subtree", "0000000000000000 T luo_session_retrieve", "0000000000000000 t ext4_init\t[ext4]")
	debugfs := map[string]string{
		"sys/kernel/debug/kho/out/fdt":          fdt,
		"sys/kernel/debug/kho/out/sub_fdts/LUO": "luo-v5\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00",
		"proc/kallsyms":                         kallsyms,
	}
	for name, c := range map[string]struct {
		files   map[string]string
		extra   string
		formats string // as in Formats, and where from
		options string
		err     string
	}{
		"nothing": {formats: "", options: "unknown; unknown; unknown; unknown; unknown; unknown; unknown"},
		"the image in /boot": {files: map[string]string{"boot/vmlinuz-" + release: image},
			formats: "kho-v4 luo-v5 memblock-v1 memfd-v2 reserve-mem-v1 vfio-pci-v12 /boot/vmlinuz-" + release,
			options: strings.ReplaceAll("yes @; no @; no @; yes @; yes @; yes @; yes @", "@", "/boot/vmlinuz-"+release)},
		"the image elsewhere, the configuration in /proc": {extra: "efi/linux.efi",
			files:   map[string]string{"efi/linux.efi": bare, "proc/config.gz": string(gzipped([]byte(config)))},
			formats: "kho-v4 luo-v5 memblock-v1 memfd-v2 reserve-mem-v1 vfio-pci-v12 /efi/linux.efi",
			options: "yes /proc/config.gz; no /proc/config.gz; no /proc/config.gz; yes /efi/linux.efi; yes /proc/config.gz; yes /efi/linux.efi; yes /efi/linux.efi"},
		"another build in /boot": {files: map[string]string{"boot/vmlinuz-" + release: other, "usr/lib/modules/" + release + "/vmlinuz": image},
			formats: "kho-v4 luo-v5 memblock-v1 memfd-v2 reserve-mem-v1 vfio-pci-v12 /usr/lib/modules/" + release + "/vmlinuz",
			options: strings.ReplaceAll("yes @; no @; no @; yes @; yes @; yes @; yes @", "@", "/usr/lib/modules/"+release+"/vmlinuz")},
		"an image that has been replaced": {files: map[string]string{"boot/vmlinuz-" + release: other, "usr/lib/modules/" + release + "/config": config},
			options: strings.ReplaceAll("yes @; no @; no @; yes @; yes @; yes @; yes @", "@", "/usr/lib/modules/"+release+"/config"),
			err:     "it isn't the running kernel"},
		"debugfs": {files: debugfs, formats: "kho-v4 luo-v5 /sys/kernel/debug/kho/out",
			options: "no /proc/kallsyms; unknown; unknown; yes /sys/kernel/debug/kho/out; unknown; yes /sys/kernel/debug/kho/out; no /proc/kallsyms"},
		"kallsyms": {files: map[string]string{"proc/kallsyms": kallsyms},
			options: "no /proc/kallsyms; unknown; unknown; yes /proc/kallsyms; unknown; yes /proc/kallsyms; no /proc/kallsyms"},
		"a damaged image": {files: map[string]string{"boot/vmlinuz-" + release: image[:5000]},
			options: "unknown; unknown; unknown; unknown; unknown; unknown; unknown", err: "is it cut off?"},
	} {
		k, err := Running(context.Background(), host(c.files), slices.DeleteFunc([]string{c.extra}, func(s string) bool { return s == "" })...)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v", name, err)
		}
		if k == nil {
			continue
		}
		var found []string
		for _, f := range k.Formats {
			found = append(found, f.Compatible)
		}
		if got := strings.TrimSpace(strings.Join(found, " ") + " " + k.FormatsFrom); got != c.formats {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.formats)
		}
		if got := options(k); got != c.options {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.options)
		}
	}
	if k, err := Running(context.Background(), fstest.MapFS{}); k != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no /proc: %v, %v", k, err)
	}
}

func TestFindConfig(t *testing.T) {
	root := fstest.MapFS{
		"boot/config-7.3.4":             {Data: []byte(config)},
		"usr/lib/modules/7.2.13/config": {Data: []byte(config)},
		"images/config":                 {Data: []byte(config)},
		"boot/config-empty":             {},
		"boot/config-pipe":              {Mode: fs.ModeNamedPipe},
		"boot/config-long":              {Data: []byte(strings.Repeat("CONFIG_X=y\n", configMax/11+1))},
		"etc/passwd":                    {Data: []byte("root:x:0:0::/root:/bin/sh\n")},
	}
	for _, c := range []struct{ release, more, from, err string }{
		{"7.3.4", "", "/boot/config-7.3.4", ""},
		{"7.2.13", "images/config", "/usr/lib/modules/7.2.13/config", ""},
		{"7.1", "images/config", "/images/config", ""},
		{"", "images/config", "/images/config", ""},
		{"7.1", "images/no", "", ""},
		{"empty", "images/config", "", "/boot/config-empty: no kernel configuration"},
		{"pipe", "", "", "no regular file"},
		{"long", "", "", "more than"},
		{"../../etc/passwd", "", "", ""},
	} {
		got, from, err := FindConfig(root, c.release, slices.DeleteFunc([]string{c.more}, func(s string) bool { return s == "" })...)
		if from != c.from || (got != nil) != (c.from != "") || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %d options from %q, %v", c, len(got), from, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(config)
	f.Add("CONFIG_A=\"\"\nCONFIG_B=0x10\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := ParseConfig(strings.NewReader(text)); err == nil && len(c) == 0 {
			t.Error("no option and no error")
		}
	})
}
