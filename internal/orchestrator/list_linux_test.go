// SPDX-License-Identifier: MIT

package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// What is in units' fd stores is listed for those who may see everything, and for nobody else.
func TestListAllHasTheStores(t *testing.T) {
	boot, err := fdname.ThisBoot()
	if err != nil {
		t.Fatal(err)
	}
	const ram = "h1-ok2ohkddat64npei.ram"
	entry := func(fdname, kernelName string) systemd.Entry {
		return systemd.Entry{Name: fdname, Path: liveupdate.LinkPrefix + kernelName}
	}
	stores := []systemd.UnitStore{
		{Unit: "vmm.service", Entries: []systemd.Entry{
			entry("b"+boot+"-"+ram, ram), entry("b00000000-"+ram, ram), entry("x", "somebody-elses"), {Name: "data", Path: "/memfd:data (deleted)"},
		}},
		{Unit: "thief.service", Entries: []systemd.Entry{entry("x", "somebody-elses")}},
	}
	var answer error
	asked := func(o *Orchestrator) {
		o.Stores = func(ctx context.Context) ([]systemd.UnitStore, error) {
			if _, limited := ctx.Deadline(); !limited {
				t.Error("PID 1 may take for ever to answer")
			}
			return stores, answer
		}
	}
	_, client := serveWith(t, rules(t, "[[rule]]\nname = 'all'\ncgroup = 'any'\nuid = 'any'\nowner = 'operators'\nlist-all = true"), filepath.Join(t.TempDir(), "liveupdate"), asked)
	list := func(parameters map[string]bool) string {
		t.Helper()
		var out json.RawMessage
		if _, err := client.Call(t.Context(), iface+".List", parameters, nil, &out); err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	const foreign = `{"kernelName":"somebody-elses","direction":"outgoing","parked":false,"foreign":true,"holders":[`
	const all = `{"sessions":[` +
		`{"name":"ram","owner":"/vmm.service","kernelName":"` + ram + `","direction":"outgoing","parked":false,"foreign":false,"holders":[{"pid":1,"unit":"vmm.service"}]},` +
		`{"name":"ram","owner":"/vmm.service","kernelName":"` + ram + `","direction":"incoming","parked":false,"foreign":false,"holders":[{"pid":1,"unit":"vmm.service"}]},` +
		foreign + `{"pid":1,"unit":"thief.service"},{"pid":1,"unit":"vmm.service"}]}]}`
	if got := list(map[string]bool{"all": true}); got != all {
		t.Errorf("List with all:\n%s\nwant\n%s", got, all)
	}
	if got := list(nil); got != `{"sessions":[]}` {
		t.Errorf("List: %s", got)
	}
	// What PID 1 has told counts, also if it didn't tell all.
	stores, answer = stores[1:], errors.New("this is a test")
	if got, want := list(map[string]bool{"all": true}), `{"sessions":[`+foreign+`{"pid":1,"unit":"thief.service"}]}]}`; got != want {
		t.Errorf("List with all:\n%s\nwant\n%s", got, want)
	}
}
