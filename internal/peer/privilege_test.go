// SPDX-License-Identifier: MIT

//go:build linux

package peer

import "testing"

func TestAdministers(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nNSpid:\t12\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n":      true,
		"NSpid:\t12\t1\nCapEff:\t000001ffffffffff\n":                         false, // a container's
		"NSpid:\t12\nCapEff:\t0000000000000000\n":                            false, // a sandboxed service's
		"NSpid:\t12\nCapPrm:\t000001ffffffffff\nCapEff:\t00000000000000ff\n": false,
		"CapEff:\t000001ffffffffff\n":                                        false,
		"NSpid:\t12\nCapEff:\tx\n":                                           false,
		"":                                                                   false,
	} {
		if got := administers(status); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}
