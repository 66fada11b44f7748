// SPDX-License-Identifier: MIT

//go:build linux

package main

import "regexp"

// differences are those that must stay, each with its reason. An operation's result may differ if all three match.
// All are about descriptors of the device, or ones opened with O_PATH: nothing about sessions, files or updates.
var differences = []struct {
	op, real, luosim *regexp.Regexp
	why              string
}{
	{called(`getfl`), is(`ok 0x8[0-9a-f]{2}[02]`), is(`ok 0x[0-9a-f]*2`), deviceFlags},
	{called(`fdinfo`), is(`ok flags=02100002`), is(`ok flags=02000002`), deviceFlags},
	{called(`sum`), is(`ok mode=02\d+ .* fl=0x8[0-9a-f]{3} .*`), is(`ok mode=02\d+ .* fl=0x[0-9a-f]*2 .*`), deviceFlags},
	{called(`read`), is(`EBADF.*`), is(`EINVAL.*`), deviceFlags},
	{called(`map`), is(`EACCES.*`), is(`ENODEV.*`), deviceFlags},
	{called(`pread|pwrite|pwritev|same`), is(`EINVAL.*`), is(`ESPIPE.*`), devicePosition},
	{called(`path`), is(`ENOTDIR.*`), is(`ENOENT.*`), below},

	{called(`create|retrieve|ioctl`), is(`EBADF.*`), is(`ENOTTY.*`), pathOnly},
	{called(`preserve`), is(`EBADF.*`), is(`ENOENT.*`), pathOnly},
	{called(`epoll`), is(`EBADF.*`), is(`EPERM.*`), pathOnly},
	{called(`poll`), is(`ok .*revents=0x20`), is(`ok .*revents=0x145`), pathOnly},
	{called(`setfl|read`), is(`EBADF.*`), is(`ok.*`), pathOnly},
	{called(`write`), is(`EBADF.*`), is(`EINVAL.*`), pathOnly},
	{called(`stat`), is(`ok mode=020600.*`), is(`ok mode=020666.*`), pathOnly},
	{called(`fdinfo`), is(`ok flags=012000000`), is(`ok flags=02102000`), pathOnly},
	{called(`link`), is(`ok "/dev/liveupdate"`), is(`ok "/dev/null"`), pathOnly},
	{called(`link|sum`), is(`ok .*"anon_inode:\[luo_session\] .*`), is(`ok .*"anon_inode:\[eventpoll\]"`), pathOnlySession},
}

const (
	deviceFlags     = "the device's descriptor is an epoll instance's: read and write, without O_LARGEFILE, whatever it was opened for"
	devicePosition  = "an epoll instance has no position, and the device's file has one"
	below           = "the device isn't in the real /dev, so nothing is said of a path that goes on behind it"
	pathOnly        = "seccomp can't give a process an O_PATH descriptor: it gets an ordinary one of /dev/null"
	pathOnlySession = "what a descriptor stands for is in its fdinfo, which an O_PATH one doesn't have"
)

func called(operations string) *regexp.Regexp { return regexp.MustCompile(`^(?:` + operations + `) `) }

func is(pattern string) *regexp.Regexp { return regexp.MustCompile(`^(?:` + pattern + `)$`) }
