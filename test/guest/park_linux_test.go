// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/test/fuse"
)

const keeperFull = `{"error":"io.holdfast.Sessions.KeeperFull","parameters":{"limit":0}}`

func noSuchSession(n string) string {
	return fmt.Sprintf(`{"error":"io.holdfast.Sessions.NoSuchSession","parameters":{"name":%q}}`, n)
}

// park asks for a session to be parked with these files, which have the indices from 1 on.
func (c *connection) park(t *testing.T, s *liveupdate.Session, files string, fds ...int) (r *reply) {
	t.Helper()
	if err := s.Use(func(raw int) error {
		r = c.sessions(t, "Park", `{"sessionFileDescriptor":0,"files":`+files+`}`, append([]int{raw}, fds...)...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

// newMemfd is there until the end of the test.
func newMemfd(t *testing.T) int {
	t.Helper()
	raw, err := unix.MemfdCreate("data", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(raw) })
	return raw
}

// What a client may send to have something kept, and what it gets. After each the daemon has no more open than before.
func TestBadParking(t *testing.T) {
	d, others := serve(t)
	before := d.descriptors(t)
	try := func(what string, test func(t *testing.T, c *connection)) {
		t.Run(what, func(t *testing.T) {
			c := dial(t)
			test(t, c)
			c.close()
			d.back(t, others, before)
			others.sessions(t, "List", `{}`).is(t, `{"parameters":{"sessions":[]}}`)
		})
	}
	withSession := func(what string, test func(t *testing.T, c *connection, s *liveupdate.Session)) {
		try(what, func(t *testing.T, c *connection) {
			s := c.acquire(t, here.me.owner, "ram")
			test(t, c, s)
			s.Close()
			// Nothing of it is left.
			others.acquire(t, here.me.owner, "ram").Close()
		})
	}

	withSession("parameters", func(t *testing.T, c *connection, s *liveupdate.Session) {
		for _, p := range []struct{ method, parameters, wrong string }{
			{"Park", `{}`, "sessionFileDescriptor"},
			{"Park", `{"sessionFileDescriptor":1}`, "sessionFileDescriptor"},
			{"Park", `{"sessionFileDescriptor":-1}`, "sessionFileDescriptor"},
			{"Park", `{"sessionFileDescriptor":0,"files":{}}`, "files"},
			{"Park", `{"sessionFileDescriptor":0,"bogus":1}`, "bogus"},
			{"Reclaim", `{}`, "name"},
			{"Reclaim", `{"name":1}`, "name"},
			{"Reclaim", `{"name":"ram","direction":"sideways"}`, "direction"},
			{"Reclaim", `{"name":"ram","direction":""}`, "direction"},
			{"Reclaim", `{"name":"ram","direction":1}`, "direction"},
			{"Reclaim", `{"name":"ram","kernelName":"h1-ok2ohkddat64npei.ram"}`, "kernelName"},
			{"Release", `{}`, "name"},
			{"Release", `{"name":null,"kernelName":null}`, "name"},
			{"Release", `{"name":"ram","kernelName":"h1-ok2ohkddat64npei.ram"}`, "name"},
			{"Release", `{"name":"ram","direction":"Incoming"}`, "direction"},
			{"Release", `{"kernelName":"h1-ok2ohkddat64npei.ram","direction":"sideways"}`, "direction"},
			{"Release", `{"kernelName":"somebody-elses"}`, "kernelName"},
			{"Release", `{"kernelName":"h1-ok2ohkddat64npei.../x"}`, "kernelName"},
			{"Release", `{"kernelName":""}`, "kernelName"},
			{"Release", `{"kernelName":"h1-ok2ohkddat64npei.ram","subject":{"owner":"/vmm.service"}}`, "subject"},
			{"List", `{"all":1}`, "all"},
			{"List", `{"bogus":true}`, "bogus"},
		} {
			if err := s.Use(func(raw int) error {
				c.sessions(t, p.method, p.parameters, raw).is(t, invalid(p.wrong))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	})
	try("names", func(t *testing.T, c *connection) {
		bad := `{"error":"io.holdfast.Sessions.NameInvalid","parameters":{"name":"../x","reason":"it must start with a letter or a digit"}}`
		c.sessions(t, "Reclaim", `{"name":"../x"}`).is(t, bad)
		c.sessions(t, "Release", `{"name":"../x"}`).is(t, bad)
	})
	withSession("what-was-not-parked", func(t *testing.T, c *connection, s *liveupdate.Session) {
		for _, parameters := range []string{`{"name":"ram"}`, `{"name":"ram","direction":"outgoing"}`, `{"name":"ram","direction":"incoming"}`} {
			c.sessions(t, "Reclaim", parameters).is(t, noSuchSession("ram"))
			c.sessions(t, "Release", parameters).is(t, noSuchSession("ram"))
		}
	})
	try("somebody-elses-session", func(t *testing.T, c *connection) {
		for _, kernelName := range []string{name.Kernel("/stranger.service", "ram"), "somebody-elses"} {
			s, err := liveupdate.Device{}.Create(t.Context(), kernelName)
			if err != nil {
				t.Fatal(err)
			}
			c.park(t, s, `[{"name":"data","fileDescriptor":1}]`, newMemfd(t)).is(t,
				fmt.Sprintf(`{"error":"io.holdfast.Sessions.NotOwner","parameters":{"kernelName":%q}}`, kernelName))
			s.Close()
		}
	})
	try("by-kernel-name-without-being-root", func(t *testing.T, c *connection) {
		needsAnother(t)
		user := here.another
		user.uid = 1000
		who := startClient(t, user)
		defer who.close()
		denied := notPermitted("others' sessions are for root with CAP_SYS_ADMIN, outside of containers, and for those whose rule says list-all")
		who.sessions(t, "Release", fmt.Sprintf(`{"kernelName":%q}`, name.Kernel(here.me.owner, "ram"))).is(t, denied)
		who.sessions(t, "Release", fmt.Sprintf(`{"kernelName":%q}`, name.Kernel(user.owner, "ram"))).is(t, denied)
		who.sessions(t, "List", `{"all":true}`).is(t, denied)
		if os.Getuid() == 0 {
			c.sessions(t, "Release", fmt.Sprintf(`{"kernelName":%q}`, name.Kernel(here.me.owner, "ram"))).is(t, noSuchSession("ram"))
			c.sessions(t, "List", `{"all":true}`).is(t, `{"parameters":{"sessions":[]}}`)
		}
	})

	// Files beside a session.
	withSession("files", func(t *testing.T, c *connection, s *liveupdate.Session) {
		memfd := newMemfd(t)
		many := func(n int) string {
			files := make([]string, n)
			for i := range files {
				files[i] = fmt.Sprintf(`{"name":"f%d","fileDescriptor":%d}`, i, i+1)
			}
			return "[" + strings.Join(files, ",") + "]"
		}
		for _, f := range []struct{ files, wrong string }{
			{`[{"fileDescriptor":1}]`, "files.name"},
			{`[{"name":"","fileDescriptor":1}]`, "files[0].name"},
			{`[{"name":".claimed","fileDescriptor":1}]`, "files[0].name"},
			{`[{"name":"a/b","fileDescriptor":1}]`, "files[0].name"},
			{`[{"name":"a:b","fileDescriptor":1}]`, "files[0].name"},
			{`[{"name":"a\n","fileDescriptor":1}]`, "files[0].name"},
			{`[{"name":"` + strings.Repeat("a", 145) + `","fileDescriptor":1}]`, "files[0].name"},
			{`[{"name":"a","fileDescriptor":1},{"name":"a","fileDescriptor":2}]`, "files[1].name"},
			{`[{"name":"a"}]`, "files.fileDescriptor"},
			{`[{"name":"a","fileDescriptor":0}]`, "files[0].fileDescriptor"}, // the session's
			{`[{"name":"a","fileDescriptor":-1}]`, "files[0].fileDescriptor"},
			{`[{"name":"a","fileDescriptor":132}]`, "files[0].fileDescriptor"},
			{`[{"name":"a","fileDescriptor":4294967297}]`, "files[0].fileDescriptor"},
			{`[{"name":"a","fileDescriptor":1},{"name":"b","fileDescriptor":1}]`, "files[1].fileDescriptor"},
			{`[{"name":"a","fileDescriptor":1,"bogus":1}]`, "files.bogus"},
			{many(130), "files"},
		} {
			fds := make([]int, 130)
			for i := range fds {
				fds[i] = memfd
			}
			c.park(t, s, f.files, fds...).is(t, invalid(f.wrong))
		}
	})
	withSession("more-descriptors-than-anything-takes", func(t *testing.T, c *connection, s *liveupdate.Session) {
		pipe := newPipe(t)
		fds := make([]int, 200)
		for i := range fds {
			fds[i] = pipe.give()[0]
		}
		c.park(t, s, `[{"name":"a","fileDescriptor":200}]`, fds...).is(t, invalid("files[0].fileDescriptor"))
		pipe.closed(t)
	})
	for what, open := range map[string]func(t *testing.T) (int, error){
		"a-pipe": func(t *testing.T) (int, error) {
			fds := make([]int, 2)
			err := unix.Pipe2(fds, unix.O_CLOEXEC)
			unix.Close(fds[1])
			return fds[0], err
		},
		"a-socket": func(t *testing.T) (int, error) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			unix.Close(fds[1])
			return fds[0], err
		},
		"a-session": func(t *testing.T) (int, error) {
			s := others.acquire(t, here.me.owner, "rom")
			defer s.Close()
			dup, err := s.Dup()
			return dup.Disown(), err
		},
		"a-regular-file": func(t *testing.T) (int, error) { return unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0) },
		"a-file-of-a-tmpfs-with-a-name": func(t *testing.T) (int, error) {
			f, err := os.CreateTemp("/dev/shm", "holdfast-guest-")
			if err != nil {
				return -1, err
			}
			defer f.Close()
			t.Cleanup(func() { os.Remove(f.Name()) })
			return unix.Dup(int(f.Fd()))
		},
		"a-directory-of-a-tmpfs": func(t *testing.T) (int, error) {
			return unix.Open("/dev/shm", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		},
		"an-O_PATH": func(t *testing.T) (int, error) {
			return unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
		},
		"huge-pages": func(t *testing.T) (int, error) {
			return unix.MemfdCreate("data", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
		},
	} {
		withSession("not-memory:"+what, func(t *testing.T, c *connection, s *liveupdate.Session) {
			raw, err := open(t)
			if err == unix.ENOSYS || err == unix.EOPNOTSUPP {
				t.Skipf("this kernel has none: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(raw)
			memfd := newMemfd(t)
			for _, files := range []struct{ files, wrong string }{
				{`[{"name":"a","fileDescriptor":1}]`, "files[0].fileDescriptor"},
				{`[{"name":"a","fileDescriptor":2},{"name":"b","fileDescriptor":1},{"name":"c","fileDescriptor":3}]`, "files[1].fileDescriptor"},
			} {
				c.park(t, s, files.files, raw, memfd, memfd).is(t, invalid(files.wrong))
			}
		})
	}
	withSession("not-memory:a-socket-that-lingers", func(t *testing.T, c *connection, s *liveupdate.Session) {
		socket, peer := lingering(t)
		if err := s.Use(func(raw int) error {
			return c.write([]byte(`{"method":"io.holdfast.Sessions.Park","parameters":{"sessionFileDescriptor":0,"files":[{"name":"a","fileDescriptor":1}]}}`), raw, socket)
		}); err != nil {
			t.Fatal(err)
		}
		unix.Close(socket) // it's the daemon that closes it last
		if err := c.send(""); err != nil {
			t.Fatal(err)
		}
		r, err := c.receive()
		if err != nil {
			t.Fatal(err)
		}
		r.is(t, invalid("files[0].fileDescriptor"))
		began := time.Now()
		c.sessions(t, "Describe", `{}`)
		others.acquire(t, here.me.owner, "rom").Close()
		if took := time.Since(began); took > patience {
			t.Errorf("others were served after %v", took)
		}
		peer.Close()
	})
	withSession("not-memory:a-FUSE-file-that-says-nothing", func(t *testing.T, c *connection, s *liveupdate.Session) {
		file := openFUSE(t, fuse.Flush, fuse.Statfs)
		if err := s.Use(func(raw int) error {
			return c.send(`{"method":"io.holdfast.Sessions.Park","parameters":{"sessionFileDescriptor":0,"files":[{"name":"a","fileDescriptor":1}]}}`,
				raw, int(file.Fd()))
		}); err != nil {
			t.Fatal(err)
		}
		if !file.Asked(fuse.Statfs, patience) { // the daemon asks what it is
			t.Fatal("nobody asks")
		}
		others.acquire(t, here.me.owner, "rom").Close()
		file.End()
		r, err := c.receive()
		if err != nil {
			t.Fatal(err)
		}
		r.is(t, invalid("files[0].fileDescriptor"))
	})
	try("it-disconnects-in-a-call", func(t *testing.T, c *connection) {
		s := c.acquire(t, here.me.owner, "ram")
		if err := s.Use(func(raw int) error {
			return c.send(`{"method":"io.holdfast.Sessions.Park","parameters":{"sessionFileDescriptor":0,"files":[{"name":"a","fileDescriptor":1}]}}`,
				raw, newMemfd(t))
		}); err != nil {
			t.Fatal(err)
		}
		c.close()
		s.Close()
		others.sessions(t, "Release", `{"name":"ram"}`).is(t, noSuchSession("ram"))
	})
}

// Without a keeper nothing is parked, and whoever asks is told so. Here there is none: nobody is PID 1 to the daemon.
func TestNoKeeper(t *testing.T) {
	d, c := serve(t)
	r := c.sessions(t, "Describe", `{}`)
	var described struct{ Parameters struct{ Keeper string } }
	if err := json.Unmarshal(r.text, &described); err != nil || described.Parameters.Keeper != "none" {
		t.Fatalf("Describe: got %s; want no keeper", r)
	}
	before := d.descriptors(t)
	s := c.acquire(t, here.me.owner, "ram")
	memfd := newMemfd(t)
	if err := s.PreserveFD(name.Token("data"), memfd); err != nil {
		t.Fatal(err)
	}
	all := make([]int, 128)
	files := make([]string, len(all))
	for i := range all {
		all[i], files[i] = memfd, fmt.Sprintf(`{"name":"f%d","fileDescriptor":%d}`, i, i+1)
	}
	c.park(t, s, `[]`).is(t, keeperFull)
	c.park(t, s, `[{"name":"data","fileDescriptor":1}]`, memfd).is(t, keeperFull)
	c.park(t, s, "["+strings.Join(files, ",")+"]", all...).is(t, keeperFull)
	d.back(t, c, before)
	c.sessions(t, "List", `{}`).is(t, `{"parameters":{"sessions":[]}}`)
	c.sessions(t, "Reclaim", `{"name":"ram"}`).is(t, noSuchSession("ram"))
	c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, taken("ram"))
	s.Close()
	c.acquire(t, here.me.owner, "ram").Close()
}
