// SPDX-License-Identifier: MIT

// Command holdfast gets live update sessions for programs, and says what works on a host.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/version"
)

const long = `holdfast replaces the running kernel, and keeps the memory of programs that ask for it.

A live update replaces the running kernel by kexec. What a program has put into a
live update session stays in memory, and the program's next incarnation gets it
back from the new kernel. Sessions are handed out by holdfastd, which works out
from the caller's cgroup whose they are, and keeps them (they are parked, then) for
programs without an fd store of their own. The update is carried out by
holdfast-updated, which has every program get ready, or calls it off.

Begin with holdfast status: it changes nothing, and says what is missing.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 blocked by what check finds,
4 vetoed or timed out.

Environment:
  HOLDFAST_ADDRESS          the socket of holdfastd, default ` + holdfast.Address + `
  HOLDFAST_UPDATE_ADDRESS   that of holdfast-updated, default ` + holdfast.UpdateAddress

const example = `  holdfast status
  holdfast check --entry debian-7.3.4
  holdfast update --entry debian-7.3.4
  holdfast wait --settled -t 10m
  systemd-run --unit=cache -p FileDescriptorStoreMax=16 -p FileDescriptorStorePreserve=yes \
      holdfast acquire ram -- /usr/bin/cache
  holdfast policy explain --unit cache.service ram`

// exitError ends the program with a status of its own.
type exitError struct {
	status int
	error
}

func (e *exitError) Unwrap() error { return e.error }

func main() {
	root := &cobra.Command{
		Use: "holdfast", Short: "Replace the running kernel, and keep the memory of programs", Long: long, Example: example,
		Version:       version.Version,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
	}
	root.SetVersionTemplate("holdfast {{.Version}}\n")
	cobra.EnableCommandSorting = false // in the order in which they are used
	root.AddGroup(&cobra.Group{ID: "host", Title: "This host:"}, &cobra.Group{ID: "update", Title: "An update, step by step:"},
		&cobra.Group{ID: "session", Title: "Sessions of one program, from its unit or script:"})
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"host", []*cobra.Command{statusCommand(), listCommand(), policyCommand()}},
		{"update", []*cobra.Command{checkCommand(), loadCommand(), unloadCommand(), updateCommand(), cancelCommand(), waitCommand(), reportCommand(fetchReport), quiesceCommand()}},
		{"session", []*cobra.Command{runCommand(), acquireCommand(), identifyCommand(), parkCommand(), reclaimCommand(), releaseCommand()}},
	} {
		for _, cmd := range group.commands {
			cmd.GroupID = group.id
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(versionCommand())
	root.InitDefaultCompletionCmd()
	// It runs once arguments and flags have been found right: what fails before it is wrong usage.
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	incomplete := func(cmd *cobra.Command, _ []string) error {
		understood = false
		return errors.New("a command is missing")
	}
	root.RunE = incomplete
	for _, group := range []string{"completion", "policy"} {
		if cmd, _, err := root.Find([]string{group}); err == nil {
			cmd.RunE = incomplete
		}
	}

	cmd, err := root.ExecuteC()
	if err == nil {
		return
	}
	text, status := strings.TrimPrefix(err.Error(), "holdfast: "), 1
	var exit *exitError
	switch {
	case !understood:
		text, status = fmt.Sprintf("%s; see %s --help", text, cmd.CommandPath()), 2
	case errors.As(err, &exit):
		status = exit.status
	}
	fmt.Fprintln(os.Stderr, "holdfast: "+oneline.Of(strings.ReplaceAll(text, "\n", "; ")))
	os.Exit(status)
}

// noArgs is for commands that have no others below them: what cobra.NoArgs says of an argument is that it is no command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q is too many: %s takes no arguments", args[0], cmd.Name())
	}
	return nil
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  holdfast version --json",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": version.Version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "holdfast", version.Version)
			return err
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON, for scripts")
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
