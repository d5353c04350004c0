#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <limits.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000U
#endif
#ifndef STATX_MNT_ID_UNIQUE /* Linux 6.8: ids that are never used again */
#define STATX_MNT_ID_UNIQUE 0x4000U
#endif

#ifndef WDS_SYS /* the tests have their own */
#define WDS_SYS "/sys"
#endif

enum { DEPTH = 8 }; /* of partitions on LVM on md on loop ... */

static int device_of_block(unsigned major, unsigned minor, int depth, device *d);

/* The first line of a file in /sys; false: it is not there. */
static bool sys_line(const char *dir, const char *name, char *line, int size) {
  char path[PATH_MAX];
  if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path) return false;
  FILE *f = fopen(path, "re");
  bool got = f && fgets(line, size, f);
  if (f) fclose(f);
  if (got) line[strcspn(line, "\n")] = 0;
  return got;
}

static bool sys_numbers(const char *dir, unsigned *major, unsigned *minor) {
  char line[64];
  return sys_line(dir, "dev", line, sizeof line) && sscanf(line, "%u:%u", major, minor) == 2;
}

/* The one disk under all slaves of a dm or md device; false where there is none, or are several. */
static bool one_slave(const char *dir, int depth, device *d) {
  char path[PATH_MAX];
  bool one = false;
  DIR *slaves = snprintf(path, sizeof path, "%s/slaves", dir) < (int)sizeof path ? opendir(path) : NULL;
  if (!slaves) return false;
  for (struct dirent *e; (e = readdir(slaves));) {
    device under;
    unsigned major, minor;
    if (e->d_name[0] == '.') continue;
    if (snprintf(path, sizeof path, "%s/slaves/%s", dir, e->d_name) >= (int)sizeof path ||
        !sys_numbers(path, &major, &minor) || device_of_block(major, minor, depth, &under)) {
      one = false;
      break;
    }
    if (one && (under.major != d->major || under.minor != d->minor)) {
      one = false;
      break;
    }
    *d = under;
    one = true;
  }
  closedir(slaves);
  return one;
}

static bool behind_loop(const char *dir, device *d) {
  char line[PATH_MAX];
  if (!sys_line(dir, "loop/backing_file", line, sizeof line)) return false;
  int fd = open(line, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  bool found = fd >= 0 && !device_of(fd, d) && d->kind != DEVICE_MOUNT; /* what is mounted over there we cannot know */
  if (fd >= 0) close(fd);
  return found;
}

static int device_of_block(unsigned major, unsigned minor, int depth, device *d) {
  char path[PATH_MAX], dir[PATH_MAX], line[16];
  snprintf(path, sizeof path, WDS_SYS "/dev/block/%u:%u", major, minor);
  *d = (device){.kind = DEVICE_DISK, .major = major, .minor = minor};
  if (!depth || !realpath(path, dir)) return 0; /* no /sys: the probe decides */
  if (sys_line(dir, "partition", line, sizeof line)) {
    *strrchr(dir, '/') = 0;
    if (sys_numbers(dir, &major, &minor)) return device_of_block(major, minor, depth - 1, d);
  }
  device under;
  if (one_slave(dir, depth - 1, &under) || (depth == DEPTH && behind_loop(dir, &under))) {
    *d = under;
    return 0;
  }
  if (sys_line(dir, "queue/rotational", line, sizeof line) && !strcmp(line, "0")) d->kind = DEVICE_FLAT;
  return 0;
}

/* btrfs and the like have numbers of their own for st_dev: /proc/self/mountinfo names the block device. */
static bool mount_source(uint64_t mount, unsigned *major, unsigned *minor) {
  FILE *f = fopen("/proc/self/mountinfo", "re");
  char *line = NULL;
  size_t size = 0;
  bool found = false;
  while (f && !found && getline(&line, &size, f) > 0) {
    char source[PATH_MAX];
    const char *rest = strstr(line, " - ");
    struct stat st;
    if (strtoull(line, NULL, 10) != mount || !rest || sscanf(rest, " - %*s %4095s", source) != 1) continue;
    found = source[0] == '/' && !stat(source, &st) && S_ISBLK(st.st_mode);
    if (found) *major = major(st.st_rdev), *minor = minor(st.st_rdev);
  }
  free(line);
  if (f) fclose(f);
  return found;
}

static device_kind kind_without_block(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs)) return DEVICE_NONE;
  switch ((unsigned long)fs.f_type) {
  case FUSE_SUPER_MAGIC:
  case OVERLAYFS_SUPER_MAGIC: return DEVICE_MOUNT;
  default: return DEVICE_NONE; /* memory, a network, the kernel's own */
  }
}

int device_of(int fd, device *d) {
  struct statx st, id;
  *d = (device){.kind = DEVICE_NONE};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_MNT_ID, &st)) return errno;
  if (S_ISBLK(st.stx_mode)) return device_of_block(st.stx_rdev_major, st.stx_rdev_minor, DEPTH, d);
  if (!S_ISREG(st.stx_mode)) return 0;
  if (st.stx_dev_major) return device_of_block(st.stx_dev_major, st.stx_dev_minor, DEPTH, d);
  d->kind = kind_without_block(fd);
  d->major = st.stx_dev_major, d->minor = st.stx_dev_minor;
  uint64_t mount = st.stx_mask & STATX_MNT_ID ? *(const uint64_t *)((const char *)&st + 0x90) : 0; /* stx_mnt_id */
  unsigned major, minor;
  if (d->kind == DEVICE_NONE && mount && mount_source(mount, &major, &minor))
    return device_of_block(major, minor, DEPTH, d);
  d->mount = mount;
  if (!statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE, &id) && id.stx_mask & STATX_MNT_ID_UNIQUE)
    d->mount = *(const uint64_t *)((const char *)&id + 0x90);
  return 0;
}

/* ------------------------------------------------------------------------------------------------------------ probe */

enum { ALONE = 16, TOGETHER = 8, EACH = 3, PAGE = 4096 };
static const double MILLI = 1e-3;

typedef struct {
  int fd;
  bool direct;
  uint64_t pages, random;
  double deadline;
  void *room;
  int done; /* reads */
  bool failed;
} prober;

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* How long one random read takes; < 0: it cannot be said. */
static double probe_once(prober *p) {
  p->random ^= p->random << 13, p->random ^= p->random >> 7, p->random ^= p->random << 17;
  off_t at = (off_t)(p->random % p->pages * PAGE);
  if (!p->direct) posix_fadvise(p->fd, at, PAGE, POSIX_FADV_DONTNEED);
  double before = seconds();
  if (pread(p->fd, p->room, PAGE, at) <= 0) return -1;
  double took = seconds() - before;
  return !p->direct && took < 5e-6 ? -1 : took; /* it was in memory */
}

static void *probe_together(void *arg) {
  prober *p = arg;
  for (int i = 0; i < EACH && seconds() < p->deadline && !p->failed; i++) {
    p->failed = probe_once(p) < 0;
    p->done++;
  }
  return NULL;
}

/* Reads a second of TOGETHER readers, against those of one: a single head stays near 1. */
static double probe_scaling(const prober *one, double alone) {
  pthread_t threads[TOGETHER];
  prober each[TOGETHER];
  int n = 0, done = 0;
  char *rooms = aligned_alloc(PAGE, (size_t)TOGETHER * PAGE);
  if (!rooms) return 0;
  double before = seconds();
  for (; n < TOGETHER; n++) {
    each[n] = *one;
    each[n].random = one->random + (uint64_t)(n + 1) * 0x9e3779b97f4a7c15u;
    each[n].random += !each[n].random;
    each[n].room = rooms + (size_t)n * PAGE;
    each[n].done = 0;
    each[n].deadline = before + 0.2;
    if (pthread_create(&threads[n], NULL, probe_together, &each[n])) break;
  }
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL), done += each[i].done;
  double took = seconds() - before;
  free(rooms);
  return done / took * alone;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static probe_result judge(prober *p, const device *d) {
  double took[ALONE], sum = 0;
  int n = 0;
  probe_once(p); /* the first one may read the file's extents */
  double start = seconds();
  for (int i = 0; i < ALONE && (seconds() - start < 0.15 || n < 4) && seconds() - start < 1; i++) {
    double t = probe_once(p);
    if (t >= 0) took[n++] = t, sum += t;
  }
  if (n < 4) return PROBE_UNSURE;
  qsort(took, (size_t)n, sizeof *took, ascending);
  if (took[n / 8] < MILLI) return PROBE_FLAT; /* a disk that does not seek may be busy, or this machine */
  if (d->kind == DEVICE_MOUNT && probe_scaling(p, sum / n) > 0.6 * TOGETHER) return PROBE_FLAT;
  return PROBE_SEEKS;
}

probe_result device_probe(int fd, const device *d) {
  char path[40];
  prober p = {.direct = true};
  off_t size = lseek(fd, 0, SEEK_END); /* a block device has no st_size */
  if (size < 2048 * PAGE) return PROBE_UNSURE; /* a disk's own buffer would hold it */
  p.pages = (uint64_t)size / PAGE;
  p.random = (uint64_t)(seconds() * 1e9) | 1;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  p.fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
  p.room = aligned_alloc(PAGE, PAGE);
  if (p.fd >= 0 && p.room && pread(p.fd, p.room, PAGE, 0) < 0) close(p.fd), p.fd = -1;
  if (p.fd < 0) {
    p.direct = false;
    p.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (p.fd >= 0) posix_fadvise(p.fd, 0, 0, POSIX_FADV_RANDOM);
  }
  probe_result result = p.fd >= 0 && p.room ? judge(&p, d) : PROBE_UNSURE;
  if (p.fd >= 0) close(p.fd);
  free(p.room);
  return result;
}

/* -------------------------------------------------------------------------------------------------------- page cache */

bool file_resident(int fd, uint64_t pos, size_t n) {
  struct stat st;
  if (fstat(fd, &st) || st.st_uid != geteuid() || st.st_size < 0 || pos >= (uint64_t)st.st_size) return false;
  if (n > (uint64_t)st.st_size - pos) n = (size_t)((uint64_t)st.st_size - pos);
  n += pos % PAGE;
  pos -= pos % PAGE;
  size_t pages = (n + PAGE - 1) / PAGE;
  unsigned char *there = malloc(pages);
  void *map = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, (off_t)pos);
  bool resident = there && map != MAP_FAILED && !mincore(map, n, there);
  for (size_t i = 0; i < pages && resident; i++) resident = there[i] & 1;
  if (map != MAP_FAILED) munmap(map, n);
  free(there);
  return resident;
}

/* One call reads no more than the device's read-ahead, which is 128 KiB unless somebody has raised it. */
void file_ask(int fd, uint64_t pos, size_t n) {
  const size_t step = 128 << 10;
  for (size_t at = 0; at < n; at += step)
    posix_fadvise(fd, (off_t)(pos + at), (off_t)(n - at < step ? n - at : step), POSIX_FADV_WILLNEED);
}
