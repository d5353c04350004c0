/* py_read.c: SampleReader, one sample by its byte range. Its headers check the index at every read. */
#include "module.h"

#include <errno.h>

typedef struct {
  PyObject_HEAD
  builder make;
  unsigned char *scratch; /* recycled; NULL while a read uses it */
  size_t scratch_cap;
} ReaderObject;

enum { SCRATCH_KEPT = 16 << 20 };

/* The payload of a member at p. backing: the bytes object that a view must keep alive, or NULL. */
static PyObject *payload(ReaderObject *self, PyObject *backing, const unsigned char *p, size_t n) {
  if (!backing) return PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)n);
  Py_ssize_t from = (const char *)p - PyBytes_AS_STRING(backing);
  PyObject *whole = PyMemoryView_FromObject(backing);
  PyObject *view = whole ? PySequence_GetSlice(whole, from, from + (Py_ssize_t)n) : NULL;
  Py_XDECREF(whole);
  (void)self;
  return view;
}

/* Parse buf, the bytes [start, start + n) of a shard, as exactly one sample. A new reference. */
static PyObject *parse_sample(ReaderObject *self, const unsigned char *buf, size_t n, uint64_t start, PyObject *backing) {
  builder *m = &self->make;
  tar_walker w = {.pos = start};
  uint64_t end = start + n;
  int nsamples = 0;
  while (w.pos < end) {
    const unsigned char *here = buf + (w.pos - start);
    tar_member member;
    PyObject *ext, *before;
    bool fresh;
    uint64_t at = w.pos;
    tar_status st = tar_next(&w, here, (size_t)(end - w.pos), &member);
    if (st == TAR_ERROR) return raise_shard(m->st, E_HEADER, w.reason, m->url, w.at);
    if (st != TAR_MEMBER || member.next > end)
      return raise_shard(m->st, E_HEADER, "the index has another end for this sample than the shard", m->url, at);
    int wanted = builder_member(m, &member, &ext, &fresh, &before);
    Py_XDECREF(before);
    if (wanted < 0) return NULL;
    nsamples += fresh;
    if (nsamples > 1) return raise_shard(m->st, E_HEADER, "two samples where the index has one", m->url, at);
    if (wanted &&
        builder_put(m, ext, payload(self, backing, buf + (member.offset - start), (size_t)member.nbytes), member.header))
      return NULL;
  }
  if (!m->sample) return raise_shard(m->st, E_HEADER, "no sample where the index has one", m->url, start);
  PyObject *sample = m->sample;
  m->sample = NULL;
  return sample;
}

static PyObject *check_key(ReaderObject *self, PyObject *sample, PyObject *key, uint64_t start) {
  core_state *st = self->make.st;
  PyObject *found = PyDict_GetItemWithError(sample, st->s_key);
  int same = key == Py_None ? 1 : found ? PyObject_RichCompareBool(found, key, Py_EQ) : -1;
  if (same > 0) return sample;
  if (same == 0) {
    PyObject *reason = PyUnicode_FromFormat("sample %R where the index has %R", found, key);
    const char *text = reason ? PyUnicode_AsUTF8(reason) : NULL;
    if (text) raise_shard(st, E_HEADER, text, self->make.url, start);
    Py_XDECREF(reason);
  }
  Py_DECREF(sample);
  return NULL;
}

static PyObject *reader_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  ReaderObject *self = (ReaderObject *)op;
  builder *m = &self->make;
  if (nargs != 6) {
    PyErr_SetString(PyExc_TypeError, "read(fd, start, end, key, url, local_path)");
    return NULL;
  }
  int fd = (int)PyLong_AsLong(args[0]);
  uint64_t start = PyLong_AsUnsignedLongLong(args[1]), end = PyLong_AsUnsignedLongLong(args[2]);
  if (PyErr_Occurred()) return NULL;
  if (start >= end || end - start > PY_SSIZE_T_MAX / 2) {
    PyErr_SetString(PyExc_ValueError, "not a byte range");
    return NULL;
  }
  size_t n = (size_t)(end - start), cap = self->scratch_cap;
  unsigned char *buf = self->scratch;
  PyObject *backing = NULL, *sample = NULL;
  self->scratch = NULL; /* another thread may come while we read without the GIL */
  if (m->views) {
    backing = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
  } else if (!buf || cap < n) {
    PyMem_RawFree(buf);
    cap = n < (1 << 18) ? 1 << 18 : n;
    buf = PyMem_RawMalloc(cap);
    if (!buf) PyErr_NoMemory();
  }
  unsigned char *dst = backing ? (unsigned char *)PyBytes_AS_STRING(backing) : m->views ? NULL : buf;
  if (dst) {
    ssize_t got;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    got = pread_full(fd, dst, n, start);
    if (got < 0) error = errno;
    Py_END_ALLOW_THREADS
    Py_XSETREF(m->url, Py_NewRef(args[4]));
    Py_XSETREF(m->local_path, args[5] == Py_None ? NULL : Py_NewRef(args[5]));
    Py_CLEAR(m->sample);
    if (got < 0) raise_errno(error, m->url);
    else if ((size_t)got < n) raise_shard(m->st, E_TRUNCATED, "truncated in a sample", m->url, start + (uint64_t)got);
    else sample = parse_sample(self, dst, n, start, backing);
    if (sample) sample = check_key(self, sample, args[3], start);
    Py_CLEAR(m->sample);
  }
  Py_XDECREF(backing);
  if (buf && (self->scratch || cap > SCRATCH_KEPT)) PyMem_RawFree(buf);
  else if (buf) self->scratch = buf, self->scratch_cap = cap;
  return sample;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"fields", "views", NULL};
  PyObject *fields = NULL;
  int views = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Op", names, &fields, &views)) return NULL;
  ReaderObject *self = (ReaderObject *)type->tp_alloc(type, 0);
  if (self && builder_init(&self->make, PyType_GetModuleState(type), fields, views)) Py_CLEAR(self);
  return (PyObject *)self;
}

static int reader_traverse(PyObject *op, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(op));
  return builder_visit(&((ReaderObject *)op)->make, visit, arg);
}

static int reader_clear(PyObject *op) {
  builder_clear(&((ReaderObject *)op)->make);
  return 0;
}

static void reader_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  PyObject_GC_UnTrack(op);
  reader_clear(op);
  PyMem_RawFree(((ReaderObject *)op)->scratch);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)(void (*)(void))reader_read, METH_FASTCALL,
     "read(fd, start, end, key, url, local_path): the sample in bytes [start, end) of the shard behind fd"},
    {NULL, NULL, 0, NULL}};
static PyType_Slot reader_slots[] = {{Py_tp_doc, "SampleReader(fields=None, views=False): samples by byte range"},
                                     {Py_tp_new, reader_new},
                                     {Py_tp_dealloc, reader_dealloc},
                                     {Py_tp_traverse, reader_traverse},
                                     {Py_tp_clear, reader_clear},
                                     {Py_tp_methods, reader_methods},
                                     {0, NULL}};
PyType_Spec reader_spec = {"wdstools._core.SampleReader", sizeof(ReaderObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, reader_slots};
