#include "lockfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void lockfile_warn(lockfile_warning *to, const char *format, ...) {
  char text[PATH_MAX + 200];
  va_list args;
  if (!to) return;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  to(text);
}

static struct {
  char dir[PATH_MAX], run[PATH_MAX];
} environment;

static void copy_variable(const char *name, char *to) {
  const char *value = getenv(name);
  if (value) snprintf(to, PATH_MAX, "%s", value);
}

static void read_environment(void) {
  copy_variable("WDS_LOCK_DIR", environment.dir);
  copy_variable("XDG_RUNTIME_DIR", environment.run);
}

void lockfile_environment(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_environment);
}

/* A directory that only this user can change: its descriptor, or -1. EPERM: it is there and is not such a one. */
static int own_directory(const char *path) {
  struct stat st;
  if (mkdir(path, 0700) && errno != EEXIST) return -1;
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ELOOP || errno == ENOTDIR || errno == EACCES) errno = EPERM;
    return -1;
  }
  if (!fstat(fd, &st) && st.st_uid == geteuid() && !(st.st_mode & (S_IWGRP | S_IWOTH))) return fd;
  close(fd);
  errno = EPERM;
  return -1;
}

static void *map_file(int dir, const char *name, size_t size, int *fd) {
  struct stat st;
  *fd = openat(dir, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
  if (*fd < 0) return NULL;
  void *at = MAP_FAILED;
  if (fstat(*fd, &st)) goto fail;
  if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & (S_IWGRP | S_IWOTH)) {
    errno = EPERM;
    goto fail;
  }
  int error = posix_fallocate(*fd, 0, size); /* so that a full disk is an error here, and no SIGBUS later */
  if (error) {
    errno = error;
    goto fail;
  }
  at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
  if (at != MAP_FAILED) return at;
fail:
  error = errno;
  close(*fd);
  *fd = -1;
  errno = error;
  return NULL;
}

static bool map_in(lockfile *l, const char *dir) {
  int fd = own_directory(dir);
  if (fd >= 0) l->map = map_file(fd, l->name, l->size, &l->fd);
  int error = errno;
  if (fd >= 0) close(fd);
  errno = error;
  if (!l->map && error == EPERM)
    lockfile_warn(l->warn, "%s: not used for locks: it must be a directory of this user (uid %u) that nobody else can write to", dir, (unsigned)geteuid());
  return l->map != NULL;
}

/* Below a directory of the system, which must be the user's own too. */
static bool map_below(lockfile *l, const char *base) {
  char dir[PATH_MAX];
  struct stat st;
  if (base[0] != '/' || stat(base, &st) || st.st_uid != geteuid()) return false;
  return snprintf(dir, sizeof dir, "%s/wdstools", base) < (int)sizeof dir && map_in(l, dir);
}

bool lockfile_open(lockfile *l) {
  const char *given = environment.dir;
  char run[40], tmp[40], shm[40];
  unsigned uid = (unsigned)geteuid();
  lockfile_environment();
  snprintf(run, sizeof run, "/run/user/%u", uid);
  snprintf(tmp, sizeof tmp, "/tmp/wdstools-%u", uid);
  snprintf(shm, sizeof shm, "/dev/shm/wdstools-%u", uid);
  if (*given) {
    if (map_in(l, given)) return true;
    if (errno != EPERM) lockfile_warn(l->warn, "%s: no lock file can be made here: %s", given, strerror(errno));
  } else if (map_below(l, environment.run) || map_below(l, run) || map_in(l, tmp) || map_in(l, shm)) {
    return true;
  } else {
    lockfile_warn(l->warn, "no lock file can be made in %s or %s (%s); WDS_LOCK_DIR names another directory", tmp, shm, strerror(errno));
  }
  lockfile_warn(l->warn, "reading without the turnstile: other readers of the disk are not waited for");
  return false;
}

void lockfile_close(lockfile *l) {
  if (l->map) munmap(l->map, l->size);
  if (l->fd >= 0) close(l->fd);
  l->map = NULL;
  l->fd = -1;
}
