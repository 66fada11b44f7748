// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const (
	keepTimeout    = 90 * time.Second
	reclaimTimeout = 90 * time.Second // longer than holdfastd waits for the device and for PID 1
)

const longPark = `Gives holdfastd a copy of a session, and of the files in it, to keep until the update.
It is for programs that have no fd store of their own: in scopes, in containers, in
users' services. Once it returns, the program may end, and so may holdfastd.

The session is this process's descriptor 3, where holdfast acquire puts it, or another
one with --fd. It must be the session NAME, of this kernel, and the caller's own. Its
memory can't be read out of it in this kernel. So name the memfds in it by --file, up
to 128: holdfast reclaim brings them back with the session. Their names have letters,
digits and _ . @ -.

What is parked already may be parked again: with files, which take the place of those
before, or with none named, and those before stay. Don't store in an fd store what is
parked: the next kernel's systemd gives it to one of the two at random.

Nothing is added to the session. A program that uses the library parks by Session.Park,
which writes the manifest too; without that the library's Reclaim does not take it.

Exit status: 0 if all of it is safe, 1 if nothing was parked, 2 for wrong usage.`

const examplePark = `  holdfast park ram                           # the session is descriptor 3
  holdfast park ram --fd 5 --file data=6 --file index=7`

const longReclaim = `Gets the session NAME back that was parked, or that came from the previous kernel, and
becomes COMMAND: the process stays the same, and with it its PID. If there are both,
it is the incoming one, of the previous kernel, unless --direction says otherwise.

COMMAND finds

  descriptor 3     the session; what was open under that number is replaced
  from 4 on        the files that were parked with it, if this kernel made it; of an
                   incoming session, they are in it
  LISTEN_FDS       their number, and LISTEN_PID its PID, as sd_listen_fds(3) wants them
  LISTEN_FDNAMES   the session's kernel name, then the files' names

What systemd has handed over by LISTEN_FDS itself comes after them.
holdfast identify says which direction it has.

holdfastd keeps its copy until holdfast release: if COMMAND dies before it has got its
memory out, reclaim again. An incoming session can't cross another update. So COMMAND
retrieves its files, finishes it, preserves them in a session of its own, parks that,
and releases the incoming one.

Exit status: that of COMMAND; 127 if it isn't found, 126 if it can't be run; 1 if
there is no session to be had, 2 for wrong usage.`

const exampleReclaim = `  holdfast reclaim ram -- /usr/bin/cache --session-fd=3
  holdfast reclaim ram -- holdfast identify`

const longRelease = `Has holdfastd give up the session that it keeps under NAME. If there are two, one of the
previous kernel and one of this kernel, --direction must say which. Who has reclaimed
it keeps what it has. If nobody has, the memory in it is freed, for good.

With --kernel-name it is anybody's session, as holdfast list --all shows it: for those
whose owner is gone. That is for root, and for whom a rule of the policy gives list-all.

Exit status: 0 if it is released; 1 if not, or if there is none; 2 for wrong usage.`

const exampleRelease = `  holdfast release ram
  holdfast release --kernel-name h1-eerz6xmllobm7ny6.ram --direction incoming`

// orchestrator is a connection for what the library has no function for.
type orchestrator struct{ conn *varlink.Client }

func connect(ctx context.Context) (*orchestrator, error) {
	conn, err := varlink.Dial(ctx, cmp.Or(os.Getenv("HOLDFAST_ADDRESS"), holdfast.Address))
	if err != nil {
		return nil, fmt.Errorf("%w; is holdfastd.socket started? (systemctl enable --now holdfastd.socket holdfastd.service)", err)
	}
	return &orchestrator{conn}, nil
}

func (o *orchestrator) close() { o.conn.Close() }

// call calls a method. What was refused is the library's error.
func (o *orchestrator) call(ctx context.Context, op, method string, in any, fds []int, out any) ([]*fd.FD, error) {
	got, err := o.conn.Call(ctx, "io.holdfast.Sessions."+method, in, fds, out)
	var refused *varlink.Error
	if errors.As(err, &refused) {
		e := &holdfast.Error{}
		if err := refused.Decode(e); err != nil {
			return nil, err
		}
		e.Op, e.Kind = op, refused.Name
		return nil, e
	}
	return got, err
}

// sessionJSON is io.holdfast.Sessions.Session.
type sessionJSON struct {
	Name       string `json:"name,omitempty"`
	Owner      string `json:"owner,omitempty"`
	KernelName string `json:"kernelName"`
	Direction  string `json:"direction"`
	Parked     bool   `json:"parked"`
	Foreign    bool   `json:"foreign"`
	Claimed    *bool  `json:"claimed,omitempty"`

	ReleaseBootUSec int64 `json:"releaseBootUSec,omitempty"`

	Holders []struct {
		PID  int    `json:"pid"`
		Unit string `json:"unit"`
	} `json:"holders"` // with all, of List
}

// fileJSON is io.holdfast.Sessions.File.
type fileJSON struct {
	Name           string `json:"name"`
	FileDescriptor int    `json:"fileDescriptor"`
}

// numbered is a file to be parked.
type numbered struct {
	name   string
	number int
}

func parkCommand() *cobra.Command {
	var number uint16
	var given []string
	var files []numbered
	cmd := &cobra.Command{
		Use: "park NAME [--fd NUMBER] [--file NAME=NUMBER]...", Short: "Have a session kept until the update",
		Long: longPark, Example: examplePark, DisableFlagsInUseLine: true,
		Args: func(_ *cobra.Command, args []string) (err error) {
			switch len(args) {
			case 0:
				return errors.New("park needs the NAME of a session")
			case 1:
				files, err = parseFiles(given)
				return err
			}
			return fmt.Errorf("park takes one NAME, and %q is too many", args[1])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return park(cmd.Context(), args[0], int(number), files)
		},
	}
	cmd.Flags().Uint16Var(&number, "fd", firstFD, "the session's file descriptor, a `NUMBER`")
	cmd.Flags().StringArrayVar(&given, "file", nil, "keep a file in it too, `NAME=NUMBER`; may be given several times")
	return cmd
}

func parseFiles(given []string) (files []numbered, err error) {
	seen := map[string]bool{}
	for _, text := range given {
		n, number, found := strings.Cut(text, "=")
		raw, err := strconv.ParseUint(number, 10, 16)
		switch {
		case !found || err != nil:
			return nil, fmt.Errorf("--file %q is not NAME=NUMBER, the number a file descriptor's", text)
		case seen[n]:
			return nil, fmt.Errorf("there are two files %q", n)
		}
		if err := name.Check(n, custody.FileNameMax); err != nil {
			return nil, fmt.Errorf("--file %q: %w", text, err)
		}
		seen[n] = true
		files = append(files, numbered{n, int(raw)})
	}
	if len(files) > custody.FilesMax {
		return nil, fmt.Errorf("%d files are too many: %d can be parked with a session", len(files), custody.FilesMax)
	}
	return files, nil
}

func park(ctx context.Context, session string, number int, files []numbered) error {
	if err := checkInherited(number); err != nil {
		return explain(err)
	}
	in := struct {
		SessionFileDescriptor int        `json:"sessionFileDescriptor"`
		Files                 []fileJSON `json:"files,omitempty"`
	}{}
	fds := []int{number}
	for _, f := range files {
		if err := checkInherited(f.number); err != nil {
			return err
		}
		in.Files = append(in.Files, fileJSON{f.name, len(fds)})
		fds = append(fds, f.number)
	}
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	o, err := connect(ctx)
	if err != nil {
		return explain(err)
	}
	defer o.close()
	var identity identified
	_, err = o.call(ctx, "identify", "Identify", map[string]int{"sessionFileDescriptor": 0}, fds[:1], &identity)
	if err := explain(err); errors.Is(err, holdfast.ErrNotASession) {
		return fmt.Errorf("file descriptor %d is not a live update session", number)
	} else if err != nil {
		return err
	}
	if s := identity.Session; s.Name != session {
		return fmt.Errorf("file descriptor %d is the session %s, which is not called %q", number, cmp.Or(s.Name, s.KernelName), session)
	}
	_, err = o.call(ctx, fmt.Sprintf("park %q", session), "Park", in, fds, nil)
	var refused *holdfast.Error
	if errors.As(err, &refused) {
		var i int
		if n, _ := fmt.Sscanf(refused.Parameter, "files[%d].fileDescriptor", &i); n == 1 && i >= 0 && i < len(files) {
			return fmt.Errorf("the file %q, descriptor %d, can't be parked: only memfds can, and none of huge pages", files[i].name, files[i].number)
		}
	}
	return explain(err)
}

// checkInherited tells whether this process was started with a descriptor: what was inherited isn't close-on-exec;
// what the Go runtime has opened is.
func checkInherited(number int) error {
	if flags, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		return fmt.Errorf("file descriptor %d is not open; start this with it, or name another one", number)
	}
	return nil
}

// directionFlag adds --direction, whose value is checked by checkDirection.
func directionFlag(cmd *cobra.Command, direction *string) {
	directions := []string{liveupdate.Incoming.String(), liveupdate.Outgoing.String()}
	cmd.Flags().StringVar(direction, "direction", "", "the one of this `DIRECTION`: incoming, of the previous kernel, or outgoing, of this one")
	cmd.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions(directions, cobra.ShellCompDirectiveNoFileComp))
}

func checkDirection(cmd *cobra.Command, direction string) error {
	switch direction {
	case liveupdate.Incoming.String(), liveupdate.Outgoing.String():
		return nil
	}
	if !cmd.Flags().Changed("direction") {
		return nil
	}
	return fmt.Errorf("a direction is incoming or outgoing, and not %q", direction)
}

func reclaimCommand() *cobra.Command {
	var direction string
	cmd := &cobra.Command{
		Use: "reclaim NAME [--direction DIRECTION] -- COMMAND [ARGUMENT]...", Short: "Run a command with a session that was kept",
		Long: longReclaim, Example: exampleReclaim, DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case len(args) == 0 || dash == 0:
				return errors.New("reclaim needs the NAME of a session")
			case dash > 1:
				return fmt.Errorf("reclaim takes one NAME, and %q is too many", args[1])
			case dash < 0 || len(args) == 1:
				return errors.New(`reclaim needs a COMMAND after "--"`)
			}
			return checkDirection(cmd, direction)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return reclaim(cmd.Context(), args[0], direction, args[1:])
		},
	}
	directionFlag(cmd, &direction)
	return cmd
}

func reclaim(ctx context.Context, session, direction string, command []string) error {
	inherited := systemd.ListenFDs()
	if err := reserve(firstFD+len(inherited), 1+custody.FilesMax); err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return cannotRun(command[0], err)
	}
	ctx, cancel := context.WithTimeout(ctx, reclaimTimeout)
	defer cancel()
	o, err := connect(ctx)
	if err != nil {
		return explain(err)
	}
	in := struct {
		Name      string `json:"name"`
		Direction string `json:"direction,omitempty"`
	}{session, direction}
	var out struct {
		Session               sessionJSON `json:"session"`
		SessionFileDescriptor int         `json:"sessionFileDescriptor"`
		Files                 []fileJSON  `json:"files"`
	}
	op := fmt.Sprintf("reclaim %q", session)
	got, err := o.call(ctx, op, "Reclaim", in, nil, &out)
	if err != nil {
		return explain(err)
	}
	var fds []systemd.Listened
	for _, f := range append([]fileJSON{{out.Session.KernelName, out.SessionFileDescriptor}}, out.Files...) {
		if f.FileDescriptor < 0 || f.FileDescriptor >= len(got) {
			return fmt.Errorf("%s: the answer came without the descriptor of %q", op, f.Name)
		}
		fds = append(fds, systemd.Listened{Name: f.Name, Raw: got[f.FileDescriptor].Raw()})
	}
	return become(path, command, append(fds, inherited...))
}

// reserve takes n numbers of descriptors, from first on, that are wanted in the end. The Go runtime must not have its
// epoll descriptor there, which can't be replaced while it runs.
func reserve(first, n int) error {
	for {
		raw, err := unix.FcntlInt(uintptr(unix.Stderr), unix.F_DUPFD_CLOEXEC, first)
		if err != nil {
			return fmt.Errorf("reserving a file descriptor: %w", err)
		}
		if raw >= first+n-1 {
			return nil
		}
	}
}

func releaseCommand() *cobra.Command {
	var direction, kernelName string
	cmd := &cobra.Command{
		Use: "release {NAME|--kernel-name NAME} [--direction DIRECTION]", Short: "Give up a session that is kept",
		Long: longRelease, Example: exampleRelease, DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			byKernelName := cmd.Flags().Changed("kernel-name")
			_, _, ours := name.Parse(kernelName)
			switch {
			case len(args) > 1:
				return fmt.Errorf("release takes one NAME, and %q is too many", args[1])
			case (len(args) == 1) == byKernelName:
				return errors.New("release needs the NAME of a session, or --kernel-name, and not both")
			case byKernelName && !ours:
				return fmt.Errorf("%q is no kernel name of a session that holdfastd has handed out, as holdfast list --all shows them", kernelName)
			}
			return checkDirection(cmd, direction)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			in := struct {
				Name       string `json:"name,omitempty"`
				KernelName string `json:"kernelName,omitempty"`
				Direction  string `json:"direction,omitempty"`
			}{KernelName: kernelName, Direction: direction}
			if len(args) == 1 {
				in.Name = args[0]
			}
			session := cmp.Or(in.Name, kernelName)
			err := ask(cmd.Context(), fmt.Sprintf("release %q", session), "Release", in, nil)
			var refused *holdfast.Error
			if errors.As(err, &refused) && refused.Parameter == "direction" && direction == "" {
				return fmt.Errorf("there are two sessions %q: say by --direction whether it is the incoming one, of the previous kernel, or the outgoing one", session)
			}
			if in.Name == "" && errors.Is(err, holdfast.ErrNoSuchSession) { // it says the client's portion alone
				return fmt.Errorf("release %q: there is no such session; holdfast list --all shows those that are parked", kernelName)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&kernelName, "kernel-name", "", "the session with this kernel `NAME`, whosever it is")
	directionFlag(cmd, &direction)
	return cmd
}

// ask makes one call that has no descriptors.
func ask(ctx context.Context, op, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	o, err := connect(ctx)
	if err != nil {
		return explain(err)
	}
	defer o.close()
	fds, err := o.call(ctx, op, method, in, nil, out)
	fd.CloseAll(fds)
	return explain(err)
}
