/* py_source.c: where a stream's blocks come from: a prefetch thread over a file descriptor, or readinto. */
#include "module.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static int lend(py_source *s) {
  BlockObject *fresh = block_new(s->st, s->block_bytes);
  if (!fresh) return BIO_EXCEPTION;
  s->lent[s->nlent++] = fresh;
  prefetch_give(s->ra, &fresh->b);
  return 0;
}

static int more_from_thread(bio *b) {
  py_source *s = b->owner;
  if (s->pid != getpid()) {
    PyErr_SetString(PyExc_RuntimeError, "a stream that was begun before fork cannot go on in the child");
    return BIO_EXCEPTION;
  }
  /* One block less than the ring: the one in use is not lent. */
  while (s->nlent < prefetch_depth(s->ra) - 1)
    if (lend(s)) return BIO_EXCEPTION;
  block *full = NULL;
  int error;
  do { /* in slices, so that Ctrl-C ends the wait for a silent pipe */
    Py_BEGIN_ALLOW_THREADS
    error = prefetch_take(s->ra, &full);
    Py_END_ALLOW_THREADS
    if (error == PREFETCH_WAIT && PyErr_CheckSignals()) return BIO_EXCEPTION;
  } while (error == PREFETCH_WAIT);
  if (!full) { /* after the end */
    if (s->cur) s->cur->b.len = 0;
    return error;
  }
  Py_XSETREF(s->cur, s->lent[0]); /* they come back in order */
  s->nlent--;
  memmove(s->lent, s->lent + 1, s->nlent * sizeof *s->lent);
  b->cur = &s->cur->b;
  b->cur_pos = b->pos;
  /* Bytes that came before the error are used first; the next call meets it again. */
  return b->cur->len ? 0 : error;
}

static int more_from_object(bio *b) {
  py_source *s = b->owner;
  BlockObject *fresh = block_new(s->st, s->block_bytes);
  if (!fresh) return BIO_EXCEPTION;
  PyObject *whole = PyMemoryView_FromObject((PyObject *)fresh);
  if (!whole) goto fail;
  while (fresh->b.len < fresh->b.cap) {
    size_t room = fresh->b.cap - fresh->b.len;
    PyObject *view = PySequence_GetSlice(whole, (Py_ssize_t)fresh->b.len, (Py_ssize_t)fresh->b.cap);
    if (!view) goto fail;
    PyObject *got = PyObject_CallMethodOneArg(s->file, s->st->s_readinto, view);
    /* Nobody may write to it later. Slices that somebody keeps keep the block out of the pool. */
    PyObject *released = got ? PyObject_CallMethod(view, "release", NULL) : NULL;
    Py_DECREF(view);
    Py_XDECREF(released);
    if (!got) goto fail;
    Py_ssize_t n = PyLong_AsSsize_t(got);
    Py_DECREF(got);
    if (!released || (n < 0 && PyErr_Occurred())) goto fail;
    if (n < 0 || (size_t)n > room) {
      PyErr_Format(PyExc_OSError, "readinto returned %zd for %zu bytes", n, room);
      goto fail;
    }
    if (!n) break;
    fresh->b.len += (size_t)n;
  }
  Py_DECREF(whole);
  Py_XSETREF(s->cur, fresh);
  b->cur = &fresh->b;
  b->cur_pos = b->pos;
  return 0;
fail:
  Py_XDECREF(whole);
  Py_DECREF(fresh);
  return BIO_EXCEPTION;
}

static int set_head(py_source *s, const char *head, size_t n) {
  if (!n) return 0;
  s->cur = block_new(s->st, n);
  if (!s->cur) return -1;
  memcpy(s->cur->b.data, head, n);
  s->cur->b.len = n;
  s->b.cur = &s->cur->b;
  return 0;
}

int source_open(py_source *s, core_state *st, PyObject *source, const char *head, size_t head_len, size_t block_bytes) {
  *s = (py_source){.st = st, .fd = -1, .block_bytes = block_bytes, .pid = getpid()};
  s->b = (bio){.owner = s, .size = UINT64_MAX};
  if (set_head(s, head, head_len)) return -1;
  if (!PyLong_Check(source)) {
    s->file = Py_NewRef(source);
    s->b.more = more_from_object;
    return 0;
  }
  struct stat about;
  s->fd = PyObject_AsFileDescriptor(source);
  if (s->fd < 0) return -1;
  if (fstat(s->fd, &about)) {
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
  }
  s->regular = S_ISREG(about.st_mode);
  if (s->regular) s->b.size = (uint64_t)about.st_size;
  s->ra = prefetch_start(s->fd, s->regular, head_len);
  if (!s->ra) {
    if (errno == EINVAL) PyErr_SetString(PyExc_ValueError, LOCK_MEANING);
    else PyErr_SetFromErrno(PyExc_OSError);
    return -1;
  }
  s->b.more = more_from_thread;
  return 0;
}

void source_close(py_source *s) {
  size_t nlent = s->nlent;
  s->nlent = 0;
  if (s->ra && s->pid == getpid()) {
    prefetch *ra = s->ra;
    s->ra = NULL;
    Py_BEGIN_ALLOW_THREADS
    prefetch_stop(ra);
    Py_END_ALLOW_THREADS
    for (size_t i = 0; i < nlent; i++) Py_DECREF(s->lent[i]);
  }
  /* After fork the thread and what it was lent exist in the parent only: the child leaves its copies alone. */
  s->b.cur = NULL;
  Py_CLEAR(s->cur);
  Py_CLEAR(s->file);
  bio_free(&s->b);
}

int source_error(py_source *s, int error, PyObject *url) {
  (void)s;
  if (error == ENOMEM) PyErr_NoMemory();
  else if (error != BIO_EXCEPTION) raise_errno(error, url);
  return -1;
}
