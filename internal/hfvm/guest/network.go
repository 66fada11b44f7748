// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/hfvm/qemu"
)

// runNetwork is the service hfvm-network.service, and a part of the init of a guest without a system. The interface is that of
// a driver that is built in, so it is there before any process.
func runNetwork([]string) error {
	const name = "eth0"
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, set := range []struct {
		request uint
		address [4]byte
	}{{unix.SIOCSIFADDR, qemu.Address}, {unix.SIOCSIFNETMASK, qemu.Netmask}} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := ifr.SetInet4Addr(set.address[:]); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, set.request, ifr); err != nil {
			return fmt.Errorf("giving %s the address %v: %w", name, set.address, err)
		}
	}
	return up(name)
}

// up brings an interface up. lo then has its address too.
func up(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}
