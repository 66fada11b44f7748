// SPDX-License-Identifier: MIT
//
// Opens the device by the system calls of i386, and then of x32, from a program of x86-64.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	char *path = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	long result;
	int fd;

	strcpy(path, "/dev/liveupdate");
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(5L), "b"(path), "c"((long)O_RDWR), "d"(0L) : "memory", "r8", "r9", "r10", "r11");
	printf("i386 %ld\n", result);
	result = syscall(0x40000000 | SYS_open, path, O_RDWR, 0);
	printf("x32 %ld\n", result);
	fd = open("/dev/liveupdate", O_RDWR);
	printf("x86-64 %d\n", fd >= 0);
	return 0;
}
