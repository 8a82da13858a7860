/* Faults for a program that is started with LD_PRELOAD: each lasts while a file of its name is in $FAULTS.
 *
 * sync-wal, sync-db: fdatasync of SQLite's log, or of its file, fail with EIO.
 * full:              what is written to a database fails with ENOSPC.
 * hold:              what is read from a database waits.
 * clock:             the wall clock is off by as many seconds as this file says.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Open the file of this fault; -1 if there is none, so the fault is not there. */
static int fault(const char *name)
{
    static __typeof__(&open) real_open;
    char path[4096];
    const char *folder = getenv("FAULTS");
    int before = errno, fd;

    if (!real_open)
        real_open = REAL(open);
    if (!folder)
        return -1;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    fd = real_open(path, O_RDONLY | O_CLOEXEC);
    errno = before;
    return fd;
}

static int happens(const char *name)
{
    int fd = fault(name);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* Does this descriptor's file have a name that ends like this? */
static int ends_with(int fd, const char *end)
{
    char link[64], path[4096];
    ssize_t size;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    if (size < (ssize_t)strlen(end))
        return 0;
    path[size] = 0;
    return !strcmp(path + size - strlen(end), end);
}

/* SQLite syncs with this only. */
int fdatasync(int fd)
{
    if ((ends_with(fd, "-wal") && happens("sync-wal")) || (ends_with(fd, ".db") && happens("sync-db"))) {
        errno = EIO;
        return -1;
    }
    return REAL(fdatasync)(fd);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    if ((ends_with(fd, "-wal") || ends_with(fd, ".db")) && happens("full")) {
        errno = ENOSPC;
        return -1;
    }
    return REAL(pwrite64)(fd, data, size, offset);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset)
{
    while (ends_with(fd, ".db") && happens("hold"))
        usleep(10000);
    return REAL(pread64)(fd, data, size, offset);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) real;
    char text[32] = "";
    int result, fd;

    if (!real)
        real = REAL(clock_gettime);
    result = real(clock, now);
    if (clock == CLOCK_REALTIME && (fd = fault("clock")) >= 0) {
        if (read(fd, text, sizeof text - 1) > 0)
            now->tv_sec += atoll(text);
        close(fd);
    }
    return result;
}
