/* py_parse.c: one sample, out of its byte range in a shard. Its headers check the index at every read. */
#include "py_read.h"

#include <errno.h>

#include "batchio.h"

enum { STEP = 4 << 10 }; /* of samples larger than WHOLE, headers are read in STEPs */

/* What is in the page cache comes sooner than the GIL would come back. */
static bool read_cached(int fd, void *dst, size_t n, uint64_t pos) {
  struct iovec to = {dst, n};
  return n <= NOWAIT && pread_cached(fd, &to, 1, pos) == n;
}

static int read_at(read_call *c, void *dst, size_t n, uint64_t pos) {
  ssize_t got;
  int error = 0;
  if (read_cached(c->fd, dst, n, pos)) return 0;
  if (c->later) later_is_cold(c->later);
  Py_BEGIN_ALLOW_THREADS
  got = pread_full(c->fd, dst, n, pos);
  if (got < 0) error = errno;
  Py_END_ALLOW_THREADS
  if (got < 0) raise_errno(error, c->make->url);
  else if ((size_t)got < n) raise_shard(c->make->st, E_TRUNCATED, "truncated in a sample", c->make->url, pos + (uint64_t)got);
  return got < 0 || (size_t)got < n ? -1 : 0;
}

/* Go on in the tail. The exception is for read_guessed. */
static int look_guessed(read_call *c, uint64_t pos, size_t need) {
  uint64_t tail_at = c->end - c->guess->tail_len;
  if (pos < tail_at || pos + need > c->end) {
    PyErr_SetString(PyExc_LookupError, "not as guessed");
    return -1;
  }
  c->buf = (unsigned char *)(uintptr_t)c->guess->tail, c->at = tail_at, c->len = (size_t)c->guess->tail_len;
  return 0;
}

/* The guessed payload, where the header says that it is one. A new reference. */
static PyObject *payload_guessed(read_call *c, const tar_member *m) {
  guess *g = c->guess;
  if (!g->value || m->offset != c->start + g->head_len || m->next != c->end - g->tail_len) {
    PyErr_SetString(PyExc_LookupError, "not as guessed");
    return NULL;
  }
  PyObject *value = g->value;
  g->value = NULL;
  _PyBytes_Resize(&value, (Py_ssize_t)m->nbytes);
  return value;
}

/* Have at least need bytes from pos on in buf, fewer only at the end of the sample. */
static int look(read_call *c, uint64_t pos, size_t need) {
  uint64_t left = c->end - pos, size = c->end - c->start;
  if (need > left) need = (size_t)left;
  if (c->len && pos >= c->at && pos + need <= c->at + c->len) return 0;
  if (c->guess) return look_guessed(c, pos, need);
  size_t n = size <= WHOLE || c->backing ? (size_t)left : need > STEP ? need : left < STEP ? (size_t)left : STEP;
  if (n > c->cap) {
    unsigned char *buf = PyMem_RawRealloc(c->buf, n > WHOLE ? n : WHOLE);
    if (!buf) {
      PyErr_NoMemory();
      return -1;
    }
    c->buf = buf, c->cap = n > WHOLE ? n : WHOLE;
  }
  c->len = 0;
  if (read_at(c, c->buf, n, pos)) return -1;
  c->at = pos, c->len = n;
  return 0;
}

/* The payload of a member: out of buf, or straight from the file into its own bytes. A new reference. */
static PyObject *payload(read_call *c, const tar_member *m) {
  size_t n = (size_t)m->nbytes;
  if (c->backing) {
    Py_ssize_t from = (Py_ssize_t)(m->offset - c->start);
    PyObject *whole = PyMemoryView_FromObject(c->backing);
    PyObject *view = whole ? PySequence_GetSlice(whole, from, from + (Py_ssize_t)n) : NULL;
    Py_XDECREF(whole);
    return view;
  }
  if (m->offset >= c->at && m->offset + n <= c->at + c->len)
    return PyBytes_FromStringAndSize((const char *)c->buf + (m->offset - c->at), (Py_ssize_t)n);
  if (c->guess) return payload_guessed(c, m);
  if (n > c->largest) c->largest = n, c->largest_at = m->offset;
  PyObject *value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
  if (value && c->later && later_read(c->later, c->fd, value, m->offset)) return value;
  if (value && read_at(c, PyBytes_AS_STRING(value), n, m->offset)) Py_CLEAR(value);
  return value;
}

/* The next member, which must lie within the sample. */
static int next_member(read_call *c, tar_walker *w, tar_member *member) {
  builder *m = c->make;
  uint64_t pos = w->pos;
  w->need = TAR_BLOCK;
  for (;;) {
    size_t need = w->need;
    if (look(c, pos, need)) return -1;
    size_t avail = c->len - (size_t)(pos - c->at);
    tar_status st = tar_next(w, c->buf + (pos - c->at), avail, member);
    if (st == TAR_MORE && avail < c->end - pos && w->need > need) continue;
    if (st == TAR_MEMBER && member->next <= c->end) return 0;
    if (st == TAR_ERROR) raise_shard(m->st, E_HEADER, w->reason, m->url, w->at);
    else raise_shard(m->st, E_HEADER, "the index has another end for this sample than the shard", m->url, pos);
    return -1;
  }
}

/* Bytes [start, end) as exactly one sample. A new reference. */
static PyObject *parse_sample(read_call *c) {
  builder *m = c->make;
  tar_walker w = {.pos = c->start};
  int nsamples = 0;
  while (w.pos < c->end) {
    tar_member member;
    PyObject *ext, *before;
    bool fresh;
    uint64_t at = w.pos;
    if (next_member(c, &w, &member)) return NULL;
    int wanted = builder_member(m, &member, &ext, &fresh, &before);
    Py_XDECREF(before);
    if (wanted < 0) return NULL;
    nsamples += fresh;
    if (nsamples > 1) return raise_shard(m->st, E_HEADER, "two samples where the index has one", m->url, at);
    if (wanted && builder_put(m, ext, payload(c, &member), member.header)) return NULL;
  }
  if (!m->sample) return raise_shard(m->st, E_HEADER, "no sample where the index has one", m->url, c->start);
  PyObject *sample = m->sample;
  m->sample = NULL;
  return sample;
}

static PyObject *check_key(read_call *c, PyObject *sample, const char *key, size_t len) {
  builder *m = c->make;
  if (m->key.len == len && memcmp(m->key.data, key, len) == 0) return sample;
  PyObject *found = PyDict_GetItemWithError(sample, m->st->s_key);
  PyObject *want = PyUnicode_DecodeUTF8(key, (Py_ssize_t)len, "replace");
  PyObject *reason = found && want ? PyUnicode_FromFormat("sample %R where the index has %R", found, want) : NULL;
  const char *text = reason ? PyUnicode_AsUTF8(reason) : NULL;
  if (text) raise_shard(m->st, E_HEADER, text, m->url, c->start);
  Py_XDECREF(want);
  Py_XDECREF(reason);
  Py_DECREF(sample);
  return NULL;
}

/* What the largest payload of this sample has around it, to guess from. */
static void learn(ReaderObject *self, const read_call *c) {
  if (c->largest <= NOWAIT) return;
  uint64_t head = c->largest_at - c->start, tail = c->end - c->largest_at - tar_padded(c->largest);
  self->alike = head == self->head && tail == self->tail ? self->alike + 1 : 0;
  self->head = head, self->tail = tail;
}

/* Parse with the reader's builder, or with one of its own where that is busy. */
static PyObject *parse_call(ReaderObject *self, read_call *c, const sample_at *at) {
  Py_XSETREF(c->make->url, Py_NewRef(at->url));
  Py_XSETREF(c->make->local_path, at->local_path == Py_None ? NULL : Py_NewRef(at->local_path));
  Py_CLEAR(c->make->sample);
  PyObject *sample = parse_sample(c);
  if (sample) sample = check_key(c, sample, at->key, at->key_len);
  Py_CLEAR(c->make->sample);
  if (sample && !c->guess) learn(self, c);
  return sample;
}

PyObject *read_guessed(ReaderObject *self, const sample_at *at, guess *g) {
  read_call c = {.fd = -1, .start = at->start, .end = at->end, .make = &self->make, .guess = g};
  if (self->busy) return NULL;
  self->busy = true;
  c.buf = (unsigned char *)(uintptr_t)g->head, c.at = at->start, c.len = (size_t)g->head_len;
  PyObject *sample = parse_call(self, &c, at);
  self->busy = false;
  if (!sample) PyErr_Clear(), self->alike = 0; /* reading it tells what is wrong, if anything is */
  return sample;
}

PyObject *read_sample(ReaderObject *self, const sample_at *at, const unsigned char *data, PyObject *backing, later *later) {
  size_t size = (size_t)(at->end - at->start);
  read_call c = {.fd = at->fd, .start = at->start, .end = at->end, .make = &self->make, .later = later};
  PyObject *sample = NULL;
  builder own; /* where the reader's is busy */
  bool mine = !self->busy;
  if (mine) {
    self->busy = true;
    c.buf = self->scratch, c.cap = self->scratch_cap;
    self->scratch = NULL, self->scratch_cap = 0;
  } else {
    c.make = &own;
    if (builder_init(&own, self->make.st, self->make.fields, self->make.views)) return NULL;
  }
  unsigned char *scratch = c.buf;
  size_t scratch_cap = c.cap;
  bool filled = data || backing;
  if (self->make.views) {
    c.backing = backing ? Py_NewRef(backing) : PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    c.buf = c.backing ? (unsigned char *)PyBytes_AS_STRING(c.backing) : NULL;
    c.cap = size;
  } else if (data) {
    c.buf = (unsigned char *)(uintptr_t)data; /* nothing writes to it: all is there */
  }
  if (filled) c.at = at->start, c.len = c.cap = size;
  if (!self->make.views || c.backing) sample = parse_call(self, &c, at);
  if (!self->make.views && !filled) scratch = c.buf, scratch_cap = c.cap;
  Py_XDECREF(c.backing);
  if (mine) self->scratch = scratch, self->scratch_cap = scratch_cap, self->busy = false;
  else PyMem_RawFree(scratch), builder_clear(&own);
  return sample;
}
