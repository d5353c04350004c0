/* py_stream.c: Stream, the samples of one shard in order. */
#include "module.h"

typedef enum { AT_HEADER, AT_PAYLOAD, AT_TAIL, AT_END } stream_state;

typedef struct {
  PyObject_HEAD
  py_source source;
  builder make;
  tar_walker walker;
  seen_set seen;
  stream_state state;
  PyObject *ext;       /* field of the payload at the cursor, or NULL to skip it */
  uint64_t header, nbytes, next; /* of that payload */
  bool running;
} StreamObject;

static void *fail_at(StreamObject *self, error_kind kind, const char *reason, uint64_t offset) {
  return raise_shard(self->make.st, kind, reason, self->make.url, offset);
}

static int io_error(StreamObject *self, int error) { return source_error(&self->source, error, self->make.url); }

/* The payload in one piece of bytes, from as many blocks as it takes. A size is believed only as far as bytes come. */
static PyObject *copy_payload(StreamObject *self) {
  bio *b = &self->source.b;
  const uint64_t step = (uint64_t)64 << 20;
  uint64_t have = 0, room = b->size != UINT64_MAX || self->nbytes < step ? self->nbytes : step;
  PyObject *value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
  while (value && have < self->nbytes) {
    size_t copied;
    int error = bio_copy(b, (unsigned char *)PyBytes_AS_STRING(value) + have, (size_t)(room - have), &copied);
    have += copied;
    if (error || have < room) {
      if (error) io_error(self, error);
      else fail_at(self, E_TRUNCATED, "truncated in a member", b->pos);
      Py_CLEAR(value);
    } else if (room < self->nbytes) {
      room = room * 2 < self->nbytes ? room * 2 : self->nbytes;
      _PyBytes_Resize(&value, (Py_ssize_t)room);
    }
  }
  return value;
}

static PyObject *take_payload(StreamObject *self) {
  bio *b = &self->source.b;
  const unsigned char *p = bio_here(b, self->nbytes);
  if (!p || (self->make.views && !self->source.cur)) {
    PyObject *value = copy_payload(self);
    if (value && self->make.views) Py_SETREF(value, PyMemoryView_FromObject(value));
    return value;
  }
  b->pos += self->nbytes;
  return self->make.views ? block_view(self->make.st, self->source.cur, p, (size_t)self->nbytes)
                          : PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)self->nbytes);
}

/* The payload at the cursor, and its padding. */
static int do_payload(StreamObject *self) {
  bio *b = &self->source.b;
  if (self->ext) {
    if (builder_put(&self->make, self->ext, take_payload(self), self->header)) return -1;
    Py_CLEAR(self->ext);
  }
  uint64_t want = self->next - b->pos, skipped;
  int error = bio_skip(b, want, &skipped);
  if (error) return io_error(self, error);
  if (skipped < want) {
    fail_at(self, E_TRUNCATED, "truncated in a member", b->pos);
    return -1;
  }
  self->state = AT_HEADER;
  return 0;
}

/* A key that was there before: half of its sample has been delivered, or it is in the shard twice. */
static int check_fresh(StreamObject *self, const tar_member *m) {
  const bytes_vec *key = &self->make.key;
  uint32_t ordinal;
  int isnew = seen_add(&self->seen, (char *)key->data, key->len, sample_hash((char *)key->data, key->len, 0), &ordinal);
  if (isnew > 0) return 0;
  if (isnew < 0) {
    PyErr_NoMemory();
    return -1;
  }
  PyObject *name = PyDict_GetItem(self->make.sample, self->make.st->s_key);
  PyObject *reason = PyUnicode_FromFormat("key %R comes back after other keys (first: sample %u)", name, ordinal);
  const char *text = reason ? PyUnicode_AsUTF8(reason) : NULL;
  if (text) fail_at(self, E_INTERLEAVED, text, m->header);
  Py_XDECREF(reason);
  return -1;
}

static int do_member(StreamObject *self, const tar_member *m, PyObject **done) {
  bio *b = &self->source.b;
  PyObject *ext;
  bool fresh;
  if (m->next > b->size) {
    fail_at(self, E_TRUNCATED, "truncated in a member", b->size);
    return -1;
  }
  int wanted = builder_member(&self->make, m, &ext, &fresh, done);
  if (wanted < 0) return -1;
  if (fresh && check_fresh(self, m)) {
    Py_CLEAR(*done);
    return -1;
  }
  Py_XSETREF(self->ext, wanted ? Py_NewRef(ext) : NULL);
  self->header = m->header, self->nbytes = m->nbytes, self->next = m->next;
  b->pos = m->offset;
  self->state = AT_PAYLOAD;
  return 0;
}

static int do_header(StreamObject *self, PyObject **done) {
  bio *b = &self->source.b;
  tar_walker *w = &self->walker;
  tar_member m;
  w->pos = b->pos;
  w->need = TAR_BLOCK;
  for (;;) {
    const unsigned char *p;
    size_t avail, need = w->need;
    int error = bio_peek(b, need, &p, &avail);
    if (error) return io_error(self, error);
    switch (tar_next(w, p, avail, &m)) {
    case TAR_MEMBER: return do_member(self, &m, done);
    case TAR_ERROR: fail_at(self, E_HEADER, w->reason, w->at); return -1;
    case TAR_END:
      b->pos = w->pos;
      self->state = AT_TAIL;
      *done = self->make.sample;
      self->make.sample = NULL;
      return 0;
    case TAR_MORE:
      if (avail >= need && w->need > need) break;
      fail_at(self, E_TRUNCATED, b->pos + avail ? "truncated: no end-of-archive marker" : "empty, not even an end marker",
              b->pos + avail);
      return -1;
    }
  }
}

/* Behind the end marker there may be zeros, and nothing else. */
static int do_tail(StreamObject *self) {
  bio *b = &self->source.b;
  for (;;) {
    const unsigned char *p;
    size_t avail;
    int error = bio_peek(b, 1, &p, &avail);
    if (error) return io_error(self, error);
    if (!avail) break;
    size_t zeros = tar_zeros(p, avail);
    b->pos += zeros;
    if (zeros < avail) {
      fail_at(self, E_TRAILING, "bytes after the end-of-archive marker", b->pos);
      return -1;
    }
  }
  self->state = AT_END;
  return 0;
}

static void stream_shut(StreamObject *self) {
  self->state = AT_END;
  source_close(&self->source);
  Py_CLEAR(self->ext);
  Py_CLEAR(self->make.sample);
  seen_free(&self->seen);
}

static PyObject *stream_next(PyObject *op) {
  StreamObject *self = (StreamObject *)op;
  PyObject *done = NULL;
  int failed = 0;
  if (self->running) {
    PyErr_SetString(PyExc_ValueError, "stream already executing");
    return NULL;
  }
  self->running = true;
  while (!done && !failed && self->state != AT_END) {
    failed = self->state == AT_HEADER ? do_header(self, &done) : self->state == AT_PAYLOAD ? do_payload(self) : do_tail(self);
  }
  if (failed || !done) stream_shut(self); /* still running: it lets go of the GIL until the thread is gone */
  self->running = false;
  return done;
}

static PyObject *stream_close(PyObject *op, PyObject *Py_UNUSED(ignored)) {
  StreamObject *self = (StreamObject *)op;
  if (self->running) {
    PyErr_SetString(PyExc_ValueError, "stream already executing");
    return NULL;
  }
  self->running = true;
  stream_shut(self);
  self->running = false;
  Py_RETURN_NONE;
}

static PyObject *none_to_null(PyObject *value) { return value == Py_None ? NULL : Py_XNewRef(value); }

static PyObject *stream_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"source", "url", "local_path", "fields", "views", "select", "rename", "head", "block_bytes", NULL};
  PyObject *source, *url, *local_path = NULL, *fields = NULL, *select = NULL, *rename = NULL;
  int views = 0;
  const char *head = NULL;
  Py_ssize_t head_len = 0;
  Py_ssize_t block_bytes = BLOCK_BYTES;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OU|O$OpOOy#n", names, &source, &url, &local_path, &fields, &views,
                                   &select, &rename, &head, &head_len, &block_bytes))
    return NULL;
  if (block_bytes < 1) {
    PyErr_SetString(PyExc_ValueError, "block_bytes must be positive");
    return NULL;
  }
  StreamObject *self = (StreamObject *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  core_state *st = PyType_GetModuleState(type);
  self->state = AT_END;
  if (builder_init(&self->make, st, fields, views)) goto fail;
  self->make.url = Py_NewRef(url);
  self->make.local_path = none_to_null(local_path);
  self->make.select = none_to_null(select);
  self->make.rename = none_to_null(rename);
  if (source_open(&self->source, st, source, head, (size_t)head_len, (size_t)block_bytes)) goto fail;
  self->state = AT_HEADER;
  return (PyObject *)self;
fail:
  Py_DECREF(self);
  return NULL;
}

static int stream_traverse(PyObject *op, visitproc visit, void *arg) {
  StreamObject *self = (StreamObject *)op;
  Py_VISIT(Py_TYPE(op));
  Py_VISIT(self->source.file);
  Py_VISIT(self->ext);
  return builder_visit(&self->make, visit, arg);
}

static int stream_clear(PyObject *op) {
  StreamObject *self = (StreamObject *)op;
  stream_shut(self);
  builder_clear(&self->make);
  return 0;
}

static void stream_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  PyObject_GC_UnTrack(op);
  stream_clear(op);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyMethodDef stream_methods[] = {
    {"close", stream_close, METH_NOARGS, "Stop reading. The file descriptor stays the caller's."}, {NULL, NULL, 0, NULL}};
static PyType_Slot stream_slots[] = {
    {Py_tp_doc, "Stream(source, url, local_path=None, *, fields, views, select, rename, head, block_bytes): samples of a tar.\n\nhead: bytes that have been read from the source already"},
    {Py_tp_new, stream_new},           {Py_tp_dealloc, stream_dealloc},   {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},       {Py_tp_iter, PyObject_SelfIter},   {Py_tp_iternext, stream_next},
    {Py_tp_methods, stream_methods},   {0, NULL}};
PyType_Spec stream_spec = {"wdstools._core.Stream", sizeof(StreamObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           stream_slots};
