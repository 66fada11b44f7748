// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast/internal/check"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/oneline"
)

const longLoad = `Loads the next kernel, by kexec_file_load: the older kexec_load hands nothing over. After that
holdfast update, systemctl kexec, and any other reboot switch to it.

KERNEL is a bzImage, a unified kernel image (.efi), or on arm64 an Image. --entry is a boot
entry: a file in loader/entries or EFI/Linux of /boot, /efi or /boot/efi, by its name.

The command line is the boot entry's or the unified image's own; for any other KERNEL it is
this kernel's, less the boot loader's BOOT_IMAGE=. --cmdline gives another one, and
--reuse-cmdline takes this kernel's in any case. Without kho=on liveupdate=on the next
kernel would take nothing over: what is missing is added, and said.

What holdfast check would find wrong with the kernel, holdfast load refuses, with exit status
3. Sessions it doesn't look at: they are checked before the update. A kernel that is
loaded already is replaced, which is said too.

Exit status: 0 loaded; 1 if it failed; 2 for wrong usage; 3 if it was refused.

With --json it prints commandLine, what was added to it, whether another kernel was
replaced, and the findings.`

const exampleLoad = `  holdfast load /boot/vmlinuz-7.3.4 --initrd /boot/initrd.img-7.3.4
  holdfast load --entry debian-7.3.4
  holdfast load /boot/EFI/Linux/debian-7.3.4.efi
  holdfast load /boot/vmlinuz-7.3.4 --cmdline "root=/dev/vda2 ro"`

func loadCommand() *cobra.Command {
	var next nextKernel
	var force, asJSON bool
	cmd := &cobra.Command{
		Use: "load KERNEL | --entry ID", Short: "Load the next kernel", Long: longLoad, Example: exampleLoad,
		Args: next.args(true),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
			defer cancel()
			files, err := next.open(ctx)
			if err != nil {
				return err
			}
			defer files.Close()
			return load(ctx, cmd.OutOrStdout(), files, force, asJSON)
		},
	}
	next.flags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "load it in spite of what is found wrong with it")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// loadedJSON is what holdfast load --json prints.
type loadedJSON struct {
	CommandLine string          `json:"commandLine"`
	Added       []string        `json:"added"`
	Replaced    bool            `json:"replaced"`
	Findings    []check.Finding `json:"findings"`
}

func load(ctx context.Context, out io.Writer, files *nextFiles, force, asJSON bool) error {
	line, err := files.commandLine()
	if err != nil {
		return err
	}
	done := loadedJSON{Added: []string{}}
	var added []string
	done.CommandLine, added = kexec.Enable(line)
	done.Added = append(done.Added, added...)
	done.Replaced, err = kexec.Loaded()
	if err != nil {
		return fmt.Errorf("looking whether a kernel is loaded: %w", err)
	}
	err = kexec.LoadChecked(ctx, files.kernel, files.initrd, done.CommandLine, func() (err error) {
		done.Findings, err = check.RunKernel(ctx, check.Target{Kernel: files.kernel, Initrd: files.initrd, CommandLine: &done.CommandLine})
		if wrong := check.Errors(done.Findings); err == nil && len(wrong) > 0 && !force {
			err = notLoaded(files.name, wrong, done.Replaced)
		}
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, done)
	}
	return done.print(out, files.name)
}

// notLoaded is the error for a kernel that isn't loaded.
func notLoaded(name string, wrong []check.Finding, another bool) error {
	var reasons []string
	for _, f := range wrong {
		reason := f.ID + ": " + f.Text
		if f.Hint != "" {
			reason += " (" + f.Hint + ")"
		}
		reasons = append(reasons, oneline.Of(reason))
	}
	still := ""
	if another {
		still = "; the kernel that was loaded before still is, and a reboot switches to it (holdfast unload drops it)"
	}
	return &exitError{statusBlocked, fmt.Errorf("%s was not loaded: %s; --force loads it all the same%s", name, strings.Join(reasons, "; "), still)}
}

func (l *loadedJSON) print(out io.Writer, name string) error {
	said := "loaded " + name
	if l.Replaced {
		said += ", in place of the kernel that was loaded before"
	}
	said += "\ncommand line: " + oneline.Of(l.CommandLine)
	if len(l.Added) > 0 {
		said += "\nadded: " + strings.Join(l.Added, " ")
	}
	for _, f := range l.Findings {
		if f.Severity != check.OK {
			said += fmt.Sprintf("\n%s: %s: %s", f.Severity, f.ID, oneline.Of(f.Text))
		}
	}
	_, err := fmt.Fprintln(out, said)
	return err
}

func unloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unload", Short: "Drop the kernel that is loaded",
		Long: `Drops the kernel that is loaded, whoever loaded it: a reboot is a plain reboot again.

Exit status: 0, also if none was loaded; 1 if it failed; 2 for wrong usage.`,
		Example: "  holdfast unload",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			loaded, err := kexec.Loaded()
			if err != nil {
				return fmt.Errorf("looking whether a kernel is loaded: %w", err)
			}
			said := "no kernel was loaded"
			if loaded {
				if err := kexec.Unload(); err != nil {
					return err
				}
				said = "unloaded the next kernel"
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
			return err
		},
	}
}

// nextKernel is the next kernel as the command line names it.
type nextKernel struct {
	image, entry, initrd string
	cmdline              string
	given, reuse         bool // --cmdline, --reuse-cmdline
}

func (n *nextKernel) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&n.entry, "entry", "", "a boot entry in place of KERNEL, by its `ID`")
	cmd.Flags().StringVar(&n.initrd, "initrd", "", "the initrd, a `FILE`")
	cmd.Flags().StringVar(&n.cmdline, "cmdline", "", "the command line, `WORDS`")
	cmd.Flags().BoolVar(&n.reuse, "reuse-cmdline", false, "take this kernel's command line")
	_ = cmd.RegisterFlagCompletionFunc("entry", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		entries, _ := kexec.Entries(os.DirFS("/"))
		var ids []string
		for _, e := range entries {
			ids = append(ids, e.ID)
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	})
}

// args finds wrong usage.
func (n *nextKernel) args(required bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		n.given = cmd.Flags().Changed("cmdline")
		if len(args) > 0 {
			n.image = args[0]
		}
		switch {
		case len(args) > 1:
			return fmt.Errorf("%q is too many: there is one KERNEL", args[1])
		case len(args) > 0 && args[0] == "":
			return errors.New("KERNEL is empty")
		case cmd.Flags().Changed("entry") && n.entry == "":
			return errors.New("--entry is empty")
		case n.image != "" && n.entry != "":
			return errors.New("a KERNEL or --entry, not both")
		case required && !n.named():
			return errors.New("a KERNEL is missing, or --entry ID")
		case !n.named() && (n.given || n.reuse || n.initrd != ""):
			return errors.New("--initrd, --cmdline and --reuse-cmdline are for a KERNEL or --entry, and there is none")
		case n.given && n.reuse:
			return errors.New("--cmdline or --reuse-cmdline, not both")
		}
		return nil
	}
}

func (n *nextKernel) named() bool { return n.image != "" || n.entry != "" }

// nextFiles are the files that it is made of.
type nextFiles struct {
	name           string
	kernel, initrd *os.File
	cmdline        *string // nil: that of a unified image, or else this kernel's
}

func (f *nextFiles) String() string {
	if f.initrd == nil {
		return f.name
	}
	return f.name + " with " + f.initrd.Name()
}

// Close closes the files.
func (f *nextFiles) Close() {
	f.kernel.Close()
	if f.initrd != nil {
		f.initrd.Close()
	}
}

// open finds the files.
func (n *nextKernel) open(ctx context.Context) (*nextFiles, error) {
	f := &nextFiles{name: n.image}
	var initrds []string
	var options *string // of an entry
	if n.entry != "" {
		e, err := kexec.FindEntry(os.DirFS("/"), n.entry)
		if err != nil {
			return nil, err
		}
		f.name = "/" + e.Linux
		options = &e.Options
		for _, initrd := range e.Initrd {
			initrds = append(initrds, "/"+initrd)
		}
	}
	if n.initrd != "" {
		initrds = []string{n.initrd}
	}
	switch {
	case n.given:
		f.cmdline = &n.cmdline
	case n.reuse:
		line, err := ownCommandLine()
		if err != nil {
			return nil, err
		}
		f.cmdline = &line
	}
	var err error
	if f.kernel, err = openFile(f.name); err != nil {
		return nil, err
	}
	if f.initrd, err = openInitrds(ctx, initrds); err != nil {
		f.Close()
		return nil, err
	}
	if options != nil && f.cmdline == nil {
		if f.cmdline, err = entryLine(f.kernel, *options); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// entryLine is the command line of a boot entry, or nil for the one of its unified image, whichever of the entry's lines that is in.
func entryLine(kernel *os.File, options string) (*string, error) {
	if options == "" {
		if own, err := kexec.CommandLine(kernel); own != "" || err != nil {
			return nil, err
		}
	}
	return &options, nil
}

// commandLine is what the kernel will be given, if nothing is missing in it.
func (f *nextFiles) commandLine() (string, error) {
	if f.cmdline != nil {
		return *f.cmdline, nil
	}
	if line, err := kexec.CommandLine(f.kernel); line != "" || err != nil {
		return line, err
	}
	return ownCommandLine()
}

func ownCommandLine() (string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	return kexec.Reuse(strings.TrimSpace(string(line))), err
}

// openFile opens a regular file, and doesn't wait for the other end of a pipe.
func openFile(name string) (*os.File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return os.Open(name)
}

// openInitrds makes one of several, which the kernel unpacks in their order.
func openInitrds(ctx context.Context, names []string) (*os.File, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if len(names) == 1 {
		return openFile(names[0])
	}
	var content []io.Reader
	var size int64
	for _, name := range names {
		f, err := openFile(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if size += info.Size(); size > kexec.MemoryMax {
			return nil, fmt.Errorf("the initrds have more than %d MiB with %s", kexec.MemoryMax>>20, name)
		}
		// An archive that isn't compressed must begin at a multiple of 4 (unpack_to_rootfs(), init/initramfs.c, Linux 7.2.13).
		content = append(content, f, bytes.NewReader(make([]byte, -info.Size()&3)))
	}
	return kexec.Memory(ctx, "initrd", content...)
}
