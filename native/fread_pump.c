#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fread.h"

typedef struct {
  size_t start, filled; /* bytes [start, filled) are there to be written */
  bool ended;
} chunk_state;

struct pump {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t more, less;
  unsigned char *memory;
  size_t chunk;
  unsigned count;
  uint64_t filling, draining; /* chunks, counted from the first; memory at % count */
  int error;
  double writing;
  chunk_state state[];
};

double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int write_out(const void *data, size_t n) {
  for (size_t put = 0; put < n;) {
    ssize_t r = write(STDOUT_FILENO, (const char *)data + put, n - put);
    if (r >= 0) {
      put += (size_t)r;
    } else if (errno == EPIPE) { /* SIGPIPE is ignored or blocked: the end is to be the same */
      sigset_t pipes;
      sigemptyset(&pipes);
      sigaddset(&pipes, SIGPIPE);
      signal(SIGPIPE, SIG_DFL);
      pthread_sigmask(SIG_UNBLOCK, &pipes, NULL);
      raise(SIGPIPE);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

static void *pump_main(void *arg) {
  pump *p = arg;
  pthread_mutex_lock(&p->lock);
  for (;;) {
    chunk_state *s = &p->state[p->draining % p->count];
    size_t start = s->start, n = s->filled - start;
    if (p->error || p->draining > p->filling || (!n && !s->ended)) {
      pthread_cond_wait(&p->more, &p->lock);
    } else if (!n) {
      *s = (chunk_state){0};
      p->draining++;
      pthread_cond_signal(&p->less);
    } else {
      pthread_mutex_unlock(&p->lock);
      double before = now();
      int error = write_out(p->memory + p->draining % p->count * p->chunk + start, n);
      double took = now() - before;
      pthread_mutex_lock(&p->lock);
      p->writing += took;
      s->start = start + n;
      if (error) {
        p->error = error;
        pthread_cond_signal(&p->less);
      }
    }
  }
  return NULL;
}

pump *pump_start(size_t chunk, unsigned ahead) {
  unsigned count = ahead + 1;
  pthread_attr_t attr;
  pump *p = calloc(1, sizeof *p + count * sizeof *p->state);
  if (!p) return NULL;
  p->chunk = chunk;
  p->count = count;
  p->memory = mmap(NULL, chunk * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p->memory == MAP_FAILED) {
    free(p);
    errno = ENOMEM;
    return NULL;
  }
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->more, NULL);
  pthread_cond_init(&p->less, NULL);
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 128 << 10);
  int error = pthread_create(&p->thread, &attr, pump_main, p);
  pthread_attr_destroy(&attr);
  if (!error) return p;
  munmap(p->memory, chunk * count);
  free(p);
  errno = error;
  return NULL;
}

unsigned char *pump_chunk(pump *p) {
  pthread_mutex_lock(&p->lock);
  while (!p->error && p->filling - p->draining >= p->count) pthread_cond_wait(&p->less, &p->lock);
  bool failed = p->error;
  pthread_mutex_unlock(&p->lock);
  return failed ? NULL : p->memory + p->filling % p->count * p->chunk;
}

void pump_add(pump *p, size_t skip, size_t n) {
  pthread_mutex_lock(&p->lock);
  chunk_state *s = &p->state[p->filling % p->count];
  if (skip) s->start = s->filled = skip;
  s->filled += n;
  pthread_cond_signal(&p->more);
  pthread_mutex_unlock(&p->lock);
}

void pump_end(pump *p) {
  pthread_mutex_lock(&p->lock);
  p->state[p->filling++ % p->count].ended = true;
  pthread_cond_signal(&p->more);
  pthread_mutex_unlock(&p->lock);
}

int pump_drain(pump *p, double *writing) {
  pthread_mutex_lock(&p->lock);
  while (!p->error && p->draining < p->filling) pthread_cond_wait(&p->less, &p->lock);
  int error = p->error;
  *writing += p->writing;
  p->writing = 0;
  pthread_mutex_unlock(&p->lock);
  return error;
}
