#include "turnstile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "lockfile.h"

enum { PLACES = 509, WATCHED = 16, POLL_MS = 20, BEAT_BITS = 24 };
#define BEAT_STALE (((uint64_t)1 << BEAT_BITS) - 1)
#define TICKETS ((uint64_t)1 << 40) /* enough for a thousand turns a second over thirty years */

typedef struct {
  _Atomic uint64_t next, verdict;
  _Atomic uint32_t turns, nothing;
  _Atomic uint64_t place[PLACES];
} page;
_Static_assert(sizeof(page) == 4096, "the file is one page");

struct turnstile {
  lockfile file;
  page *shared; /* the file's map */
  unsigned slots;
  uint64_t ticket, beat;
  struct {
    uint64_t place;
    double since;
  } watch[WATCHED]; /* those that are in the way, at ticket % WATCHED, since they beat last */
};

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static unsigned patience = 10; /* $WDS_LOCK_PATIENCE */

static void read_environment(void) {
  const char *given = getenv("WDS_LOCK_PATIENCE");
  int n = given ? atoi(given) : 0;
  if (n > 0) patience = (unsigned)n;
  lockfile_environment();
}

void turnstile_environment(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_environment);
}

/* ------------------------------------------------------------------------------------------------------- the queue */

static int lock_ticket(const turnstile *t, short type, uint64_t ticket) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)ticket, .l_len = 1};
  return fcntl(t->file.fd, F_OFD_SETLK, &lock) ? errno : 0;
}

static void pause_ms(unsigned ms) { nanosleep(&(struct timespec){.tv_nsec = (long)ms * 1000000}, NULL); }

/* The byte is locked before the ticket counts as taken: a lower byte that is free belongs to nobody any more. */
static int take_ticket(turnstile *t) {
  page *s = t->shared;
  for (int tries = 0;; tries++) {
    uint64_t n = atomic_load(&s->next), expected = n;
    if (n >= TICKETS) { /* not ours: somebody has written to the file */
      atomic_compare_exchange_strong(&s->next, &expected, 0);
      continue;
    }
    int error = lock_ticket(t, F_WRLCK, n);
    if (error && error != EAGAIN && error != EACCES) return error;
    if (error) { /* its taker is between these two lines; one that was stopped there is passed by */
      pause_ms(1);
      if (tries > 100) atomic_compare_exchange_strong(&s->next, &expected, n + 1), tries = 0;
    } else if (atomic_load(&s->next) != n) {
      lock_ticket(t, F_UNLCK, n);
    } else {
      t->ticket = n, t->beat = 0;
      turnstile_beat(t);
      atomic_compare_exchange_strong(&s->next, &expected, n + 1);
      return 0;
    }
  }
}

void turnstile_beat(turnstile *t) {
  t->beat = (t->beat + 1) % (BEAT_STALE - 1);
  atomic_store(&t->shared->place[t->ticket % PLACES], t->ticket << BEAT_BITS | t->beat);
}

/* Whether the holder of a locked ticket counts: not when it has been still for too long. */
static bool is_awake(turnstile *t, uint64_t ticket) {
  _Atomic uint64_t *place = &t->shared->place[ticket % PLACES];
  uint64_t now = atomic_load(place);
  if (now >> BEAT_BITS != ticket) return now >> BEAT_BITS < ticket; /* overwritten: hundreds came after it */
  if ((now & BEAT_STALE) == BEAT_STALE) return false;
  if (t->watch[ticket % WATCHED].place != now) {
    t->watch[ticket % WATCHED].place = now;
    t->watch[ticket % WATCHED].since = seconds();
  } else if (seconds() - t->watch[ticket % WATCHED].since > patience) {
    if (atomic_compare_exchange_strong(place, &now, ticket << BEAT_BITS | BEAT_STALE))
      lockfile_warn(t->file.warn, "a reader has stood still in its turn for %u seconds (stopped?): it is overtaken", patience);
    return false;
  }
  return true;
}

/* How many of the tickets [from, to) have a living holder, counted up to most. */
static unsigned count_awake(turnstile *t, uint64_t from, uint64_t to, unsigned most) {
  if (from >= to || !most) return 0;
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)from, .l_len = (off_t)(to - from)};
  if (fcntl(t->file.fd, F_OFD_GETLK, &lock) || lock.l_type == F_UNLCK) return 0;
  uint64_t at = (uint64_t)lock.l_start < from ? from : (uint64_t)lock.l_start;
  unsigned n = is_awake(t, at);
  n += count_awake(t, from, at, most - n);
  return n + count_awake(t, at + 1, to, most - n);
}

static void futex_wait(_Atomic uint32_t *at, uint32_t seen, unsigned ms) {
  struct timespec timeout = {.tv_nsec = (long)ms * 1000000};
  syscall(SYS_futex, at, FUTEX_WAIT, seen, &timeout, NULL, 0);
}

int turnstile_enter(turnstile *t, const atomic_bool *stop) {
  struct stat st;
  if (!t->shared) return ENOENT; /* lost in an earlier call */
  if (!fstat(t->file.fd, &st) && !st.st_nlink) { /* somebody cleaned up: meet the others in a new file */
    lockfile_close(&t->file);
    t->shared = lockfile_open(&t->file) ? t->file.map : NULL;
    if (!t->shared) return ENOENT;
  }
  int error = take_ticket(t);
  if (error) return error;
  for (;;) {
    uint32_t seen = atomic_load(&t->shared->turns);
    if (count_awake(t, 0, t->ticket, t->slots) < t->slots) break;
    if (stop && atomic_load(stop)) {
      turnstile_leave(t);
      return ECANCELED;
    }
    futex_wait(&t->shared->turns, seen, POLL_MS);
    turnstile_beat(t);
  }
  turnstile_beat(t);
  return 0;
}

void turnstile_leave(turnstile *t) {
  lock_ticket(t, F_UNLCK, t->ticket);
  atomic_fetch_add(&t->shared->turns, 1);
  syscall(SYS_futex, &t->shared->turns, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ----------------------------------------------------------------------------------------------------- which device */

/* Verdicts hold for one boot, and for one mount where the device is a mount. */
static uint64_t verdict_tag(const device *d) {
  static const char path[] = "/proc/sys/kernel/random/boot_id";
  char id[64] = "";
  uint64_t h = 14695981039346656037u ^ d->mount; /* FNV-1a */
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? 0 : read(fd, id, sizeof id);
  if (fd >= 0) close(fd);
  for (ssize_t i = 0; i < n; i++) h = (h ^ (unsigned char)id[i]) * 1099511628211u;
  return h << 2;
}

/* Asked under the turn, so that the first of many readers probes an idle disk and the others find the answer. */
static probe_result verdict_of(turnstile *t, int fd, const device *d) {
  uint64_t tag = verdict_tag(d), known = atomic_load(&t->shared->verdict);
  if ((known & ~(uint64_t)3) == tag) return known & 3;
  unsigned slots = t->slots;
  t->slots = 1;
  int error = turnstile_enter(t, NULL);
  t->slots = slots;
  if (error) return PROBE_UNSURE;
  known = atomic_load(&t->shared->verdict);
  if ((known & ~(uint64_t)3) != tag) {
    known = tag | device_probe(fd, d);
    if ((known & 3) != PROBE_UNSURE) atomic_store(&t->shared->verdict, known);
  }
  turnstile_leave(t);
  return known & 3;
}

/* File systems on disks that do not seek, so that a process asks once: st_dev + 1, which a boot does not use again
 * for block devices. No lock: what is overwritten is asked again. */
static _Atomic uint64_t flat[16];

int turnstile_open(int fd, lock_mode mode, unsigned slots, lockfile_warning *warning, turnstile **out) {
  device d;
  struct stat st;
  *out = NULL;
  turnstile_environment();
  if (mode == LOCK_NEVER || fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) return 0;
  uint64_t number = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
  _Atomic uint64_t *known = &flat[(number ^ number >> 8) % 16];
  if ((mode == LOCK_AUTO && atomic_load(known) == number + 1) || device_of(fd, &d)) return 0;
  probe_result found = mode == LOCK_ALWAYS ? PROBE_SEEKS : d.kind == DEVICE_FLAT ? PROBE_FLAT : PROBE_UNSURE;
  turnstile *t = NULL;
  if (mode == LOCK_ALWAYS || d.kind == DEVICE_DISK || d.kind == DEVICE_MOUNT) {
    if (!(t = calloc(1, sizeof *t))) return ENOMEM;
    *t = (turnstile){.file = {.size = sizeof(page), .warn = warning, .fd = -1}, .slots = slots ? slots : 1};
    snprintf(t->file.name, sizeof t->file.name, "turnstile1-%u:%u", d.major, d.minor);
    if (!lockfile_open(&t->file)) found = PROBE_UNSURE;
    else if (t->shared = t->file.map, mode == LOCK_AUTO) found = verdict_of(t, fd, &d);
  }
  if (found == PROBE_SEEKS) {
    *out = t;
    return 0;
  }
  turnstile_close(t);
  if (found == PROBE_FLAT && (d.kind == DEVICE_FLAT || d.kind == DEVICE_DISK)) atomic_store(known, number + 1);
  return 0;
}

void turnstile_close(turnstile *t) {
  if (!t) return;
  lockfile_close(&t->file);
  free(t);
}

bool lock_mode_of(const char *name, lock_mode *mode) {
  static const char *const names[] = {"auto", "always", "never"};
  for (int i = 0; i < 3; i++)
    if (!strcmp(name, names[i])) {
      *mode = (lock_mode)i;
      return true;
    }
  return false;
}

bool lock_choice(lock_mode *mode, unsigned *slots) {
  const char *name = getenv("WDS_LOCK"), *number = getenv("WDS_LOCK_SLOTS");
  char *end = NULL;
  long n = number && *number ? strtol(number, &end, 10) : 1;
  *mode = LOCK_AUTO;
  if (n < 1 || n > 1024 || (end && *end) || (name && *name && !lock_mode_of(name, mode))) return false;
  *slots = (unsigned)n;
  return true;
}
