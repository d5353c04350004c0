#include "blockio.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "turnstile.h"

ssize_t pread_full(int fd, void *dst, size_t n, uint64_t pos) {
  size_t got = 0;
  while (got < n) {
    ssize_t r = pread(fd, (char *)dst + got, n - got, (off_t)(pos + got));
    if (r == 0) break;
    if (r > 0) got += (size_t)r;
    else if (errno != EINTR) return -1;
  }
  return (ssize_t)got;
}

ssize_t write_full(int fd, const void *src, size_t n) {
  size_t put = 0;
  while (put < n) {
    ssize_t r = write(fd, (const char *)src + put, n - put);
    if (r >= 0) put += (size_t)r;
    else if (errno != EINTR) return -1;
  }
  return (ssize_t)put;
}

int block_fill(block *b, int fd, bool regular, uint64_t pos) {
  while (b->len < b->cap) {
    ssize_t r = regular ? pread(fd, b->data + b->len, b->cap - b->len, (off_t)(pos + b->len))
                        : read(fd, b->data + b->len, b->cap - b->len);
    if (r == 0) return 0;
    if (r > 0) b->len += (size_t)r;
    else if (errno != EINTR) return errno;
  }
  return 0;
}

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

static size_t left(const bio *b) {
  if (!b->cur || b->pos < b->cur_pos || b->pos - b->cur_pos >= b->cur->len) return 0;
  return b->cur->len - (size_t)(b->pos - b->cur_pos);
}

const unsigned char *bio_here(const bio *b, uint64_t n) {
  return left(b) >= n && b->cur ? b->cur->data + (b->pos - b->cur_pos) : NULL;
}

/* The bytes lie in two blocks or more: put them together, and leave the cursor where it is. A second look at the same
 * place wants more of what was joined: b->cur is behind the cursor then, and the joint is all there is of it. */
static int join_blocks(bio *b, size_t n, const unsigned char **p, size_t *avail) {
  uint64_t pos = b->pos;
  int error = 0;
  if (b->joint_pos != pos) b->joint.len = 0;
  b->joint_pos = pos;
  b->pos += b->joint.len;
  while (b->joint.len < n) {
    size_t have = left(b), take = n - b->joint.len < have ? n - b->joint.len : have;
    if (take) {
      void *at = vec_grow(&b->joint, take);
      if (!at) {
        error = ENOMEM;
        break;
      }
      memcpy(at, bio_here(b, take), take);
      b->pos += take;
    } else if ((error = b->more(b)) || !b->cur->len) {
      break;
    }
  }
  b->pos = pos;
  *p = b->joint.data;
  *avail = b->joint.len;
  return error;
}

int bio_peek(bio *b, size_t n, const unsigned char **p, size_t *avail) {
  b->wanted = n;
  if (left(b) < n) {
    bool joined = b->joint.len && b->joint_pos == b->pos;
    if (!b->random && (left(b) || joined)) return join_blocks(b, n, p, avail);
    int error = b->more(b);
    if (error) return error;
    if (left(b) < n && b->cur->len && !b->random) return join_blocks(b, n, p, avail);
  }
  *avail = left(b);
  *p = bio_here(b, *avail);
  return 0;
}

int bio_copy(bio *b, unsigned char *dst, size_t n, size_t *copied) {
  *copied = 0;
  while (*copied < n) {
    size_t have = left(b), take = n - *copied < have ? n - *copied : have;
    if (!have) {
      int error = b->more(b);
      if (error) return error;
      if (!b->cur->len) return 0;
      continue;
    }
    memcpy(dst + *copied, bio_here(b, take), take);
    *copied += take;
    b->pos += take;
  }
  return 0;
}

int bio_skip(bio *b, uint64_t n, uint64_t *skipped) {
  *skipped = 0;
  if (b->random) {
    b->pos += n;
    *skipped = n;
    return 0;
  }
  while (*skipped < n) {
    uint64_t have = left(b), take = n - *skipped < have ? n - *skipped : have;
    if (!have) {
      int error = b->more(b);
      if (error) return error;
      if (!b->cur->len) return 0;
    }
    *skipped += take;
    b->pos += take;
  }
  return 0;
}

void bio_free(bio *b) {
  free(b->joint.data);
  b->joint = (bytes_vec){0};
}

/* 256 KiB stay in the second level cache: half again as fast as 1 MiB. */
enum { WINDOW_MIN = 4096, WINDOW_MAX = 256 << 10, JUMP = 32 << 10 };

int bio_window_more(bio *b) {
  file_window *w = b->owner;
  bool jumped = b->pos > w->last_end + JUMP; /* over a payload; otherwise it reads on */
  w->want = jumped ? WINDOW_MIN : w->want * 2 > WINDOW_MAX ? WINDOW_MAX : w->want * 2;
  if (w->want < b->wanted) w->want = b->wanted < w->window.cap ? b->wanted : w->window.cap;
  ssize_t n = pread_full(w->fd, w->window.data, w->want, b->pos);
  if (n < 0) return errno;
  w->window.len = (size_t)n;
  b->cur_pos = b->pos;
  w->last_end = b->pos + (size_t)n;
  return 0;
}

bool bio_open_window(bio *b, file_window *w, int fd, uint64_t size) {
  *w = (file_window){.fd = fd, .want = WINDOW_MIN};
  w->window.cap = TAR_GROUP_MAX; /* what is not used of it is never paged in */
  w->window.data = malloc(w->window.cap);
  *b = (bio){.more = bio_window_more, .owner = w, .cur = &w->window, .size = size, .random = true};
  return w->window.data != NULL;
}

void bio_close_window(bio *b, file_window *w) {
  bio_free(b);
  free(w->window.data);
  w->window = (block){0};
}
