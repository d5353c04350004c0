#include "batchio.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blockio.h" /* pread_full */

struct batch {
  batch_job *jobs;
  size_t cap;
  atomic_size_t posted, next; /* jobs [0, next) have been begun by somebody */
  atomic_bool cold, waiting;
  size_t inside, wanted; /* helpers at work, and how many may be: under pool.lock */
  batch *after;          /* in the list of those that want help */
  bool listed;
};

enum { HELPERS = 8 };
static struct {
  pthread_mutex_t lock;
  pthread_cond_t work, progress;
  size_t threads, idle;
  batch *first;
  bool watched; /* fork() is */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .progress = PTHREAD_COND_INITIALIZER};

/* The threads are the parent's, and one of them may have held the lock. */
static void after_fork(void) {
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.work, NULL);
  pthread_cond_init(&pool.progress, NULL);
  pool.threads = pool.idle = 0;
  pool.first = NULL;
}

size_t batch_cpus(void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return (size_t)CPU_COUNT(&set);
#endif
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (size_t)n : 1;
}

size_t pread_cached(int fd, const struct iovec *to, int nto, uint64_t pos) {
#ifdef RWF_NOWAIT
  ssize_t got = preadv2(fd, to, nto, (off_t)pos, RWF_NOWAIT);
  return got > 0 ? (size_t)got : 0;
#else
  (void)fd, (void)to, (void)nto, (void)pos;
  return 0;
#endif
}

void batch_advise(int fd, uint64_t pos, uint64_t n) {
#ifdef POSIX_FADV_WILLNEED
  (void)posix_fadvise(fd, (off_t)pos, (off_t)n, POSIX_FADV_WILLNEED); /* a hint: reading tells what is wrong */
#else
  (void)fd, (void)pos, (void)n;
#endif
}

batch *batch_new_jobs(size_t cap) {
  batch *b = calloc(1, sizeof *b);
  if (b && !(b->jobs = malloc(cap * sizeof *b->jobs))) {
    free(b);
    return NULL;
  }
  if (b) b->cap = cap;
  return b;
}

size_t batch_post(batch *b, int fd, const struct iovec *to, int nto, uint64_t pos) {
  size_t job = atomic_load_explicit(&b->posted, memory_order_relaxed);
  if (job == b->cap) return SIZE_MAX;
  batch_job *j = &b->jobs[job];
  j->nto = nto, j->pos = pos, j->n = 0, j->got = 0, j->fd = fd, j->error = 0;
  for (int i = 0; i < nto; i++) j->to[i] = to[i], j->n += to[i].iov_len;
  atomic_init(&j->done, false);
  atomic_store_explicit(&b->posted, job + 1, memory_order_release);
  return job;
}

size_t batch_posted(const batch *b) { return atomic_load_explicit(&b->posted, memory_order_relaxed); }
const batch_job *batch_at(const batch *b, size_t job) { return &b->jobs[job]; }
bool batch_done(const batch *b, size_t job) { return atomic_load_explicit(&b->jobs[job].done, memory_order_acquire); }
bool batch_is_cold(const batch *b) { return atomic_load_explicit(&b->cold, memory_order_relaxed); }

size_t batch_claim(batch *b) {
  size_t next = atomic_load_explicit(&b->next, memory_order_relaxed);
  do {
    if (next >= atomic_load_explicit(&b->posted, memory_order_acquire)) return SIZE_MAX;
  } while (!atomic_compare_exchange_weak(&b->next, &next, next + 1));
  return next;
}

static void finish(batch *b, batch_job *j) {
  atomic_store(&j->done, true);
  if (!atomic_load(&b->waiting)) return;
  pthread_mutex_lock(&pool.lock);
  pthread_cond_broadcast(&pool.progress);
  pthread_mutex_unlock(&pool.lock);
}

bool batch_run_cached(batch *b, size_t job) {
  batch_job *j = &b->jobs[job];
  j->got = pread_cached(j->fd, j->to, j->nto, j->pos);
  if (j->got == j->n) finish(b, j);
  else atomic_store_explicit(&b->cold, true, memory_order_relaxed);
  return j->got == j->n;
}

void batch_run(batch *b, size_t job) {
  batch_job *j = &b->jobs[job];
  size_t before = 0; /* bytes of the parts before this one */
  for (int i = 0; i < j->nto && j->got >= before; before += j->to[i++].iov_len) {
    size_t skip = j->got - before, n = j->to[i].iov_len;
    if (skip >= n) continue;
    ssize_t got = pread_full(j->fd, (unsigned char *)j->to[i].iov_base + skip, n - skip, j->pos + j->got);
    if (got < 0) j->error = errno;
    else j->got += (size_t)got;
    if (got < 0 || (size_t)got < n - skip) break;
  }
  finish(b, j);
}

static void unlist(batch *b) {
  for (batch **at = &pool.first; b->listed && *at; at = &(*at)->after)
    if (*at == b) {
      *at = b->after;
      b->listed = false;
      return;
    }
}

static batch *pick(void) {
  for (batch *b = pool.first; b; b = b->after)
    if (b->inside < b->wanted) return b;
  return NULL;
}

static void *help(void *arg) {
  (void)arg;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    batch *b = pick();
    if (!b) {
      pool.idle++;
      pthread_cond_wait(&pool.work, &pool.lock);
      pool.idle--;
      continue;
    }
    b->inside++;
    pthread_mutex_unlock(&pool.lock);
    for (size_t job; (job = batch_claim(b)) != SIZE_MAX;)
      if (!batch_run_cached(b, job)) batch_run(b, job);
    pthread_mutex_lock(&pool.lock);
    b->inside--;
    unlist(b); /* more may be posted: batch_wake lists it anew */
    pthread_cond_broadcast(&pool.progress);
  }
  return NULL;
}

static bool start_thread(void) {
  pthread_t thread;
  pthread_attr_t detached;
  sigset_t all, before;
  sigfillset(&all);
  if (pthread_attr_init(&detached)) return false;
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&detached, (size_t)256 << 10);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of Python */
  int error = pthread_create(&thread, &detached, help, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&detached);
  return !error;
}

void batch_wake(batch *b, size_t helpers) {
  if (helpers > HELPERS) helpers = HELPERS;
  if (!helpers) return;
  pthread_mutex_lock(&pool.lock);
  if (!pool.watched) pool.watched = pthread_atfork(NULL, NULL, after_fork) == 0;
  b->wanted = helpers;
  if (!b->listed) b->after = pool.first, pool.first = b, b->listed = true;
  while (pool.watched && pool.threads < helpers && start_thread()) pool.threads++;
  if (pool.idle) pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.lock);
}

void batch_wait(batch *b, size_t job) {
  for (int i = 0; i < 200; i++)
    if (batch_done(b, job)) return;
  pthread_mutex_lock(&pool.lock);
  atomic_store(&b->waiting, true);
  while (!atomic_load(&b->jobs[job].done)) pthread_cond_wait(&pool.progress, &pool.lock);
  atomic_store(&b->waiting, false);
  pthread_mutex_unlock(&pool.lock);
}

/* No helper may look at it any more when jobs are posted anew. */
static void retire(batch *b) {
  atomic_store(&b->posted, 0); /* nothing more is begun */
  pthread_mutex_lock(&pool.lock);
  unlist(b);
  while (b->inside) pthread_cond_wait(&pool.progress, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
}

void batch_reset(batch *b) {
  retire(b);
  atomic_store(&b->next, 0);
}

void batch_free_jobs(batch *b) {
  if (!b) return;
  retire(b);
  free(b->jobs);
  free(b);
}
