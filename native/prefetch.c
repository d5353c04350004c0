/* prefetch.c: the threads of blockio.h, one that reads blocks ahead, in turns where the disk seeks, and one that writes them. */
#include "blockio.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "turnstile.h"

struct prefetch {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  block *ring[PREFETCH_MOST]; /* given: [taken, given); full: [taken, filled) */
  size_t taken, filled, given;
  uint64_t pos;
  int fd, error, wake[2];
  bool regular, over;
  atomic_bool stop;
  atomic_uint depth;
  lock_mode mode;
  unsigned slots;
  turnstile *turn; /* of the thread; NULL: none is needed */
};

/* Wait until fd has something. 0, ECANCELED: the owner wants us to stop, or an errno. */
static int wait_readable(prefetch *r, int timeout_ms, bool *ready) {
  struct pollfd fds[2] = {{.fd = r->fd, .events = POLLIN}, {.fd = r->wake[0], .events = POLLIN}};
  int n;
  do n = poll(fds, 2, timeout_ms);
  while (n < 0 && errno == EINTR);
  if (n < 0) return errno;
  *ready = fds[0].revents != 0;
  return fds[1].revents ? ECANCELED : 0;
}

static int fill_from_pipe(prefetch *r, block *b) {
  while (b->len < b->cap) {
    bool ready = false;
    int error = wait_readable(r, b->len ? 0 : -1, &ready);
    if (error) return error;
    if (!ready) return 0; /* a pipe that pauses hands out what it has */
    ssize_t n = read(r->fd, b->data + b->len, b->cap - b->len);
    if (n == 0) return 0;
    if (n > 0) b->len += (size_t)n;
    else if (errno != EINTR && errno != EAGAIN) return errno;
  }
  return 0;
}

enum { FIRST_BYTES = 64 << 10, TURN_BLOCKS = (PREFETCH_MOST - 1) / 2 };

/* Fill the next block that was given; the lock is held before and after. */
static void fill_next(prefetch *r) {
  block *b = r->ring[r->filled % PREFETCH_MOST];
  pthread_mutex_unlock(&r->lock);
  b->len = 0;
  size_t cap = b->cap; /* the first ones are small, so that the consumer begins at once */
  if (!r->turn && r->filled < 3 && cap > (size_t)FIRST_BYTES << 2 * r->filled) b->cap = (size_t)FIRST_BYTES << 2 * r->filled;
  int error = r->regular ? block_fill(b, r->fd, true, r->pos) : fill_from_pipe(r, b);
  b->cap = cap;
  r->pos += b->len;
  pthread_mutex_lock(&r->lock);
  if (error) r->error = error;
  if (error || !b->len) r->over = true;
  r->filled++;
  pthread_cond_signal(&r->changed);
}

/* Whether reading on from here means the disk. */
static bool needs_turn(const prefetch *r, size_t nbytes) {
  struct stat st;
  return !fstat(r->fd, &st) && r->pos < (uint64_t)st.st_size && !file_resident(r->fd, r->pos, nbytes);
}

/* A turn's worth of blocks, once there are so many to fill, or the consumer has no more to take. */
static void fill_turn(prefetch *r) {
  size_t n = r->given - r->filled < TURN_BLOCKS ? r->given - r->filled : TURN_BLOCKS;
  if (n < TURN_BLOCKS && r->filled != r->taken) {
    pthread_cond_wait(&r->changed, &r->lock);
    return;
  }
  size_t nbytes = n * r->ring[r->filled % PREFETCH_MOST]->cap;
  pthread_mutex_unlock(&r->lock);
  bool entered = needs_turn(r, nbytes) && !turnstile_enter(r->turn, &r->stop); /* without one reading goes on too */
  if (entered) file_ask(r->fd, r->pos, nbytes);
  pthread_mutex_lock(&r->lock);
  for (; n && !r->over && !atomic_load(&r->stop); n--) {
    fill_next(r);
    if (entered) turnstile_beat(r->turn);
  }
  if (entered) turnstile_leave(r->turn);
}

static void *prefetch_main(void *arg) {
  prefetch *r = arg;
  if (r->regular && !turnstile_open(r->fd, r->mode, r->slots, NULL, &r->turn) && r->turn) atomic_store(&r->depth, PREFETCH_MOST);
  pthread_mutex_lock(&r->lock);
  while (!atomic_load(&r->stop) && !r->over) {
    if (r->filled == r->given) pthread_cond_wait(&r->changed, &r->lock);
    else if (r->turn) fill_turn(r);
    else fill_next(r);
  }
  pthread_mutex_unlock(&r->lock);
  turnstile_close(r->turn);
  return NULL;
}

unsigned prefetch_depth(prefetch *r) { return atomic_load(&r->depth); }

/* In the caller's thread, for only there is the environment at rest. What does not parse is left at its default. */
static void read_environment(prefetch *r) {
  const char *mode = getenv("WDS_LOCK"), *slots = getenv("WDS_LOCK_SLOTS");
  if (mode) lock_mode_of(mode, &r->mode);
  r->slots = slots && atoi(slots) > 0 ? (unsigned)atoi(slots) : 1;
  turnstile_environment();
}

prefetch *prefetch_start(int fd, bool regular, uint64_t pos) {
  prefetch *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->fd = fd;
  r->regular = regular;
  r->pos = pos;
  atomic_init(&r->depth, PREFETCH_DEPTH);
  read_environment(r);
  if (pipe2(r->wake, O_CLOEXEC)) {
    free(r);
    return NULL;
  }
  pthread_condattr_t clock;
  pthread_condattr_init(&clock);
  pthread_condattr_setclock(&clock, CLOCK_MONOTONIC); /* waits do not grow when somebody sets the time */
  pthread_mutex_init(&r->lock, NULL);
  pthread_cond_init(&r->changed, &clock);
  pthread_condattr_destroy(&clock);
  int error = pthread_create(&r->thread, NULL, prefetch_main, r);
  if (error) {
    close(r->wake[0]), close(r->wake[1]);
    free(r);
    errno = error;
    return NULL;
  }
  return r;
}

void prefetch_give(prefetch *r, block *empty) {
  pthread_mutex_lock(&r->lock);
  r->ring[r->given++ % PREFETCH_MOST] = empty;
  pthread_cond_signal(&r->changed);
  pthread_mutex_unlock(&r->lock);
}

int prefetch_take(prefetch *r, block **full) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_nsec += 100 * 1000 * 1000;
  if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  int error = 0;
  *full = NULL;
  pthread_mutex_lock(&r->lock);
  while (!error && r->filled == r->taken && !r->over)
    if (pthread_cond_timedwait(&r->changed, &r->lock, &until)) error = PREFETCH_WAIT;
  if (r->filled > r->taken) {
    *full = r->ring[r->taken++ % PREFETCH_MOST];
    pthread_cond_signal(&r->changed); /* a thread that waits until all are taken */
    error = r->over && r->filled == r->taken ? r->error : 0;
  } else if (r->over) { /* asked again after the end */
    error = r->error;
  }
  pthread_mutex_unlock(&r->lock);
  return error;
}

void prefetch_stop(prefetch *r) {
  pthread_mutex_lock(&r->lock);
  atomic_store(&r->stop, true);
  pthread_cond_signal(&r->changed);
  pthread_mutex_unlock(&r->lock);
  (void)!write(r->wake[1], "", 1); /* one byte into an empty pipe cannot fail */
  pthread_join(r->thread, NULL);
  pthread_mutex_destroy(&r->lock);
  pthread_cond_destroy(&r->changed);
  close(r->wake[0]), close(r->wake[1]);
  free(r);
}

struct flusher {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  const block *work; /* being written, or NULL */
  int fd, error;
  bool stop;
};

static void *flusher_main(void *arg) {
  flusher *f = arg;
  pthread_mutex_lock(&f->lock);
  while (!f->stop || f->work) {
    if (!f->work) {
      pthread_cond_wait(&f->changed, &f->lock);
      continue;
    }
    const block *b = f->work;
    pthread_mutex_unlock(&f->lock);
    int error = write_full(f->fd, b->data, b->len) < 0 ? errno : 0;
    pthread_mutex_lock(&f->lock);
    if (error) f->error = error;
    f->work = NULL;
    pthread_cond_signal(&f->changed);
  }
  pthread_mutex_unlock(&f->lock);
  return NULL;
}

flusher *flusher_start(int fd) {
  flusher *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  f->fd = fd;
  pthread_mutex_init(&f->lock, NULL);
  pthread_cond_init(&f->changed, NULL);
  int error = pthread_create(&f->thread, NULL, flusher_main, f);
  if (!error) return f;
  free(f);
  errno = error;
  return NULL;
}

int flusher_submit(flusher *f, const block *b) {
  pthread_mutex_lock(&f->lock);
  while (f->work) pthread_cond_wait(&f->changed, &f->lock);
  int error = f->error;
  if (!error && b && b->len) {
    f->work = b;
    pthread_cond_signal(&f->changed);
  }
  pthread_mutex_unlock(&f->lock);
  return error;
}

void flusher_stop(flusher *f) {
  pthread_mutex_lock(&f->lock);
  f->stop = true;
  pthread_cond_signal(&f->changed);
  pthread_mutex_unlock(&f->lock);
  pthread_join(f->thread, NULL);
  pthread_mutex_destroy(&f->lock);
  pthread_cond_destroy(&f->changed);
  free(f);
}
