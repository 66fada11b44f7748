// SPDX-License-Identifier: MIT
//
// A service whose memory outlives the kernel, in C: it counts its starts in a memfd. It gets its session from holdfastd
// by varlink, and keeps session and memfd in its fd store, which systemd carries over the kexec.
//
// The order of things is such that a death at any point loses nothing. A session is put into the store only when the
// memory is in it, so what comes back is whole; with more than one file a manifest should say so, which the Go
// library writes.

#define _GNU_SOURCE // memfd_create

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>
#include <systemd/sd-varlink.h>

#if __has_include(<linux/liveupdate.h>)
#include <linux/liveupdate.h>
#else
#include <linux/ioctl.h>
struct liveupdate_session_preserve_fd { uint32_t size; int32_t fd; uint64_t token __attribute__((aligned(8))); };
struct liveupdate_session_retrieve_fd { uint32_t size; int32_t fd; uint64_t token __attribute__((aligned(8))); };
struct liveupdate_session_finish { uint32_t size; uint32_t reserved; };
#define LIVEUPDATE_SESSION_PRESERVE_FD _IO(0xBA, 0x40)
#define LIVEUPDATE_SESSION_RETRIEVE_FD _IO(0xBA, 0x41)
#define LIVEUPDATE_SESSION_FINISH _IO(0xBA, 0x42)
#endif

// The first 8 bytes of the SHA-256 of "memory": any number will do, this is what the Go library would take.
#define TOKEN UINT64_C(0xc064fbca9d9de8dd)

#define SIZE (1 << 20) // bytes

static void fail(const char *what, int error) {
        fprintf(stderr, "memo: %s: %s\n", what, strerror(error));
        exit(EXIT_FAILURE);
}

// keep gives the service manager a copy of a descriptor to keep. It does not tell if the store is full: see
// FileDescriptorStoreMax= in memo.service.
static void keep(const char *name, int fd) {
        char state[64];
        snprintf(state, sizeof state, "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
        int r = sd_pid_notify_with_fds(0, false, state, &fd, 1);
        if (r > 0)
                r = sd_notify_barrier(false, 5 * 1000 * 1000);
        if (r <= 0)
                fail(state, r < 0 ? -r : ENOTCONN);
}

// call calls a method of holdfastd's and returns the reply, which is good until the next call.
static sd_json_variant *call(sd_varlink *link, const char *method, sd_json_variant *parameters) {
        sd_json_variant *reply = NULL;
        const char *error = NULL;
        int r = sd_varlink_call(link, method, parameters, &reply, &error);
        if (r < 0)
                fail(method, -r);
        if (error) {
                fprintf(stderr, "memo: %s: %s ", method, error);
                sd_json_variant_dump(reply, SD_JSON_FORMAT_NEWLINE, stderr, NULL);
                exit(EXIT_FAILURE);
        }
        return reply;
}

static int acquire(sd_varlink *link) {
        sd_json_variant *in = NULL;
        int r = sd_json_buildo(&in, SD_JSON_BUILD_PAIR_STRING("name", "memo"));
        if (r < 0)
                fail("building a call", -r);
        sd_json_variant *out = call(link, "io.holdfast.Sessions.Acquire", in);
        sd_json_variant_unref(in);
        int fd = sd_varlink_take_fd(link, sd_json_variant_unsigned(sd_json_variant_by_key(out, "sessionFileDescriptor")));
        if (fd < 0)
                fail("taking the session from the reply", -fd);
        return fd;
}

// is_incoming tells whether a session is of the previous kernel, after it has made sure that it is one's own: the
// service manager doesn't check that.
static bool is_incoming(sd_varlink *link, int session) {
        int index = sd_varlink_push_dup_fd(link, session);
        if (index < 0)
                fail("sending the session", -index);
        sd_json_variant *in = NULL;
        int r = sd_json_buildo(&in, SD_JSON_BUILD_PAIR_INTEGER("sessionFileDescriptor", index));
        if (r < 0)
                fail("building a call", -r);
        sd_json_variant *out = call(link, "io.holdfast.Sessions.Identify", in);
        sd_json_variant_unref(in);
        if (!sd_json_variant_boolean(sd_json_variant_by_key(out, "yours")))
                fail("the session in the fd store", EPERM);
        const char *direction = sd_json_variant_string(
                        sd_json_variant_by_key(sd_json_variant_by_key(out, "session"), "direction"));
        return direction && strcmp(direction, "incoming") == 0;
}

int main(void) {
        int memory = -1, session = -1;
        char **names = NULL;
        int n = sd_listen_fds_with_names(true, &names);
        for (int i = 0; i < n; i++) {
                if (strcmp(names[i], "memory") == 0)
                        memory = SD_LISTEN_FDS_START + i;
                if (strcmp(names[i], "session") == 0)
                        session = SD_LISTEN_FDS_START + i;
        }
        const char *came = memory >= 0 ? "from the fd store" : "new";

        const char *address = getenv("HOLDFAST_ADDRESS");
        sd_varlink *link = NULL;
        int r = sd_varlink_connect_address(&link, address ? address : "/run/holdfast/io.holdfast");
        if (r >= 0)
                r = sd_varlink_set_allow_fd_passing_input(link, true);
        if (r >= 0)
                r = sd_varlink_set_allow_fd_passing_output(link, true);
        if (r < 0)
                fail("connecting to holdfastd", -r);

        // From the previous kernel: the memory is in the session, unless it was retrieved before a crash.
        if (session >= 0 && is_incoming(link, session)) {
                if (memory < 0) {
                        // The pages are charged to this unit. Were its MemoryMax= too low, they would be lost.
                        struct liveupdate_session_retrieve_fd retrieve = { .size = sizeof retrieve, .token = TOKEN };
                        if (ioctl(session, LIVEUPDATE_SESSION_RETRIEVE_FD, &retrieve) < 0)
                                fail("retrieving the memory", errno);
                        memory = retrieve.fd;
                        keep("memory", memory); // between two sessions, only descriptors hold it
                        came = "from the previous kernel";
                }
                struct liveupdate_session_finish finish = { .size = sizeof finish };
                if (ioctl(session, LIVEUPDATE_SESSION_FINISH, &finish) < 0)
                        fail("finishing the session", errno);
                sd_notify(false, "FDSTOREREMOVE=1\nFDNAME=session");
                close(session);
                session = -1;
        }
        if (memory < 0) {
                memory = memfd_create("memo", MFD_CLOEXEC);
                if (memory < 0 || ftruncate(memory, SIZE) < 0)
                        fail("making the memory", errno);
                keep("memory", memory);
        }
        // For the next kernel. Preserved memory can be written, but not resized.
        if (session < 0) {
                session = acquire(link);
                struct liveupdate_session_preserve_fd preserve = { .size = sizeof preserve, .fd = memory, .token = TOKEN };
                if (ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, &preserve) < 0)
                        fail("preserving the memory", errno);
                keep("session", session);
        }
        sd_varlink_close_unref(link);

        // The work.
        uint64_t *starts = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        if (starts == MAP_FAILED)
                fail("mapping the memory", errno);
        ++*starts;
        sd_notifyf(false, "READY=1\nSTATUS=start %ju, memory %s", (uintmax_t)*starts, came);
        pause();
}
