// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"os"
	"regexp"
)

// differences are those that must stay, each with its reason. An operation's result may differ if all three match.
// All are about descriptors of the device, or ones opened with O_PATH: nothing about sessions, files or updates.
var differences = []difference{
	{ofDevice(`getfl`), is(`ok 0x2?8[0-9a-f]{2}[0-3]`), is(`ok 0x[0-9a-f]*2`), deviceFlags},
	{ofDevice(`fdinfo`), is(`ok flags=02?1\d+`), is(`ok flags=0\d*2`), deviceFlags},
	{ofDevice(`sum`), is(`ok mode=02\d+ .* fl=0x2?8[0-9a-f]{3} .*`), is(`ok mode=02\d+ .* fl=0x[0-9a-f]*2 .*`), deviceFlags},
	{ofDevice(`read`), is(`EBADF.*`), is(`EINVAL.*`), deviceFlags},
	{ofDevice(`map|mapwrite`), is(`(EACCES|EBADF).*`), is(`ENODEV.*`), deviceFlags},
	{ofDevice(`pread|pwrite|pwritev|same|wrong`), is(`(EINVAL|EBADF).*`), is(`ESPIPE.*`), devicePosition},
	{called(`path`), is(`ENOTDIR.*`), is(`ENOENT.*`), below},

	{ofDevice(`create|retrieve|preserve|retrievefd|finish|getname|ioctl`), is(`EBADF.*`), is(`ENOTTY.*`), pathOnly},
	{ofDevice(`preserve`), is(`EBADF.*`), is(`ENOENT.*`), pathOnly},
	{ofDevice(`getfl`), is(`ok 0x200000`), is(`ok 0x8[0-9a-f]{3}`), pathOnly},
	{ofDevice(`epoll`), is(`EBADF.*`), is(`EPERM.*`), pathOnly},
	{ofDevice(`poll`), is(`ok .*revents=0x20`), is(`ok .*revents=0x145`), pathOnly},
	{ofDevice(`setfl|read|pread`), is(`EBADF.*`), is(`ok.*`), pathOnly},
	{ofDevice(`write`), is(`EBADF.*`), is(`EINVAL.*`), pathOnly},
	{ofDevice(`stat`), is(`ok mode=020600.*`), is(`ok mode=020666.*`), pathOnly},
	{ofDevice(`fdinfo`), is(`ok flags=012000000`), is(`ok flags=02102000`), pathOnly},
	{called(`link`), is(`ok "/dev/liveupdate"`), is(`ok "/dev/null"`), pathOnly},
	{called(`link|sum`), is(`ok .*"anon_inode:\[luo_session\] .*`), is(`ok .*"anon_inode:\[eventpoll\]"`), pathOnlySession},

	{called(`reopen`), is(`ENXIO`), is(`EACCES`), notRoot},
}

type difference struct {
	op, real, luosim *regexp.Regexp
	why              string
}

// applies says whether the difference may be there at all.
func (d difference) applies() bool { return d.why != notRoot || os.Getuid() != 0 }

const (
	deviceFlags     = "the device's descriptor is an epoll instance's: read and write, without O_LARGEFILE, whatever it was opened for"
	devicePosition  = "an epoll instance has no position, and the device's file has one"
	below           = "the device isn't in the real /dev, so nothing is said of a path that goes on behind it"
	pathOnly        = "seccomp can't give a process an O_PATH descriptor: it gets an ordinary one of /dev/null"
	pathOnlySession = "what a descriptor stands for is in its fdinfo, which an O_PATH one doesn't have"
	notRoot         = "a session's inode is root's: the guest's agent is root, luosim's only where root started it"
)

func called(operations string) *regexp.Regexp { return regexp.MustCompile(`^(?:` + operations + `) `) }

// ofDevice is for the slots that alone hold descriptors of the device.
func ofDevice(operations string) *regexp.Regexp {
	return regexp.MustCompile(`^(?:` + operations + `) (?:[01]|\d+ [01]) `)
}

func is(pattern string) *regexp.Regexp { return regexp.MustCompile(`^(?:` + pattern + `)$`) }
