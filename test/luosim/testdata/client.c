// SPDX-License-Identifier: MIT
//
// A client of the Live Update Orchestrator in C, over one update. It goes through the ways of C to start processes
// and threads, each of which opens the device.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

// include/uapi/linux/liveupdate.h, Linux 7.2.13
struct session_arg { uint32_t size; int32_t fd; uint8_t name[64]; };
struct file_arg { uint32_t size; int32_t fd; uint64_t token __attribute__((aligned(8))); };
struct finish_arg { uint32_t size, reserved; };
struct name_arg { uint32_t size, reserved; uint8_t name[64]; };
#define CREATE_SESSION _IO(0xBA, 0x00)
#define RETRIEVE_SESSION _IO(0xBA, 0x01)
#define PRESERVE_FD _IO(0xBA, 0x40)
#define RETRIEVE_FD _IO(0xBA, 0x41)
#define FINISH _IO(0xBA, 0x42)
#define GET_NAME _IO(0xBA, 0x43)

extern char **environ;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(99);
}

static int session(unsigned long request)
{
	struct session_arg arg = { .size = sizeof(arg), .name = "c" };
	int device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);

	check(device >= 0, "open");
	check(ioctl(device, request, &arg) == 0, "session");
	close(device);
	return arg.fd;
}

// Safe in a child of vfork: no memory is touched but the stack.
static int opens(void)
{
	int fd = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);

	return fd >= 0 && close(fd) == 0 ? 0 : 1;
}

static void ended(pid_t pid, const char *how)
{
	int status;

	check(pid > 0 && waitpid(pid, &status, 0) == pid, how);
	check(WIFEXITED(status) && WEXITSTATUS(status) == 0, how);
	printf("%s opened\n", how);
}

static void *thread(void *unused)
{
	return (void *)(intptr_t)opens();
}

static void before(const char *self)
{
	struct file_arg file = { .size = sizeof(file), .token = 1 };
	struct name_arg name = { .size = sizeof(name) };
	char link[128] = "", path[64], command[4200];
	char *args[] = { (char *)self, "open", NULL };
	struct statfs fs;
	pthread_t id;
	void *result;
	pid_t pid;
	int s = session(CREATE_SESSION), kernel;

	check(fstatfs(s, &fs) == 0, "fstatfs");
	if (fs.f_type == 0x09041934) // ANON_INODE_FS_MAGIC
		printf("an inode without a place\n");
	check(ioctl(s, GET_NAME, &name) == 0, "GET_NAME");
	printf("name %s\n", name.name);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s);
	check(readlink(path, link, sizeof(link) - 1) > 0, "readlink");
	printf("link %s\n", link);

	pid = vfork();
	if (pid == 0)
		_exit(opens());
	ended(pid, "vfork");
	pid = vfork();
	if (pid == 0) {
		execv(self, args);
		_exit(127);
	}
	ended(pid, "vfork and exec");
	check(posix_spawn(&pid, self, NULL, NULL, args, environ) == 0, "posix_spawn");
	ended(pid, "spawn");
	snprintf(command, sizeof(command), "'%s' open", self);
	check(system(command) == 0, "system");
	printf("system opened\n");
	check(pthread_create(&id, NULL, thread, NULL) == 0 && pthread_join(id, &result) == 0 && !result, "thread");
	printf("thread opened\n");

	file.fd = memfd_create("c", 0);
	check(file.fd >= 0 && write(file.fd, "hello from C", 13) == 13, "memfd");
	check(ioctl(s, PRESERVE_FD, &file) == 0, "PRESERVE_FD");
	fflush(stdout);
	kernel = open(self, O_RDONLY | O_CLOEXEC);
	check(syscall(SYS_kexec_file_load, kernel, -1, 1UL, "", 4UL) == 0, "kexec_file_load"); // KEXEC_FILE_NO_INITRAMFS
	reboot(RB_KEXEC);
	check(0, "reboot");
}

static void after(void)
{
	struct file_arg file = { .size = sizeof(file), .token = 1 };
	struct finish_arg finish = { .size = sizeof(finish) };
	int s = session(RETRIEVE_SESSION);
	char *map;

	check(ioctl(s, RETRIEVE_FD, &file) == 0, "RETRIEVE_FD");
	map = mmap(NULL, 13, PROT_READ, MAP_SHARED, file.fd, 0);
	check(map != MAP_FAILED, "mmap");
	printf("content %s\n", map);
	check(ioctl(s, FINISH, &finish) == 0, "FINISH");
	printf("finished\n");
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return opens();
	if (strcmp(getenv("LUOSIM_BOOT"), "1") == 0)
		before(argv[0]);
	else
		after();
	return 0;
}
