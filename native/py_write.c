/* py_write.c: Writer, samples -> one tar and the columns of its index. */
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Two of them: one is filled while a thread writes the other. Larger ones fall out of the second level cache. */
#define WRITE_BYTES ((size_t)512 << 10)

typedef struct {
  PyObject_HEAD
  int fd;
  uint64_t mtime, flushed; /* bytes that are in the file, or on their way */
  block buf, spare;        /* bytes that follow them; what the thread writes */
  flusher *thread;
  pid_t pid;
  PyObject *encode;        /* or NULL */
  uint64_t maxcount, maxsize;
  columns c;
  seen_set seen;
  bytes_vec name;          /* of the member in hand: key, then "." and field */
  PyObject *key;           /* of the open sample, borrowed for the call */
  size_t key_len;
  uint64_t start, hash;    /* of the open sample */
  size_t old_exts;         /* how many field names there were before it */
  bool open, busy, broken;
} WriterObject;

static uint64_t tell(const WriterObject *self) { return self->flushed + self->buf.len; }

static int write_failed(WriterObject *self, int error) {
  self->broken = true;
  raise_errno(error, NULL);
  return -1;
}

/* Wait for the thread: all that was flushed is in the file. */
static int settle(WriterObject *self) {
  int error = 0;
  if (!self->thread || self->pid != getpid()) return 0;
  Py_BEGIN_ALLOW_THREADS
  error = flusher_submit(self->thread, NULL);
  Py_END_ALLOW_THREADS
  return error ? write_failed(self, error) : 0;
}

/* Hand the buffer to the thread, and take the one that it has finished. */
static int flush(WriterObject *self) {
  int error = 0;
  if (self->pid != getpid()) {
    PyErr_SetString(PyExc_RuntimeError, "a shard that was begun before fork cannot go on in the child");
    return -1;
  }
  if (!self->thread && !(self->thread = flusher_start(self->fd))) return write_failed(self, errno);
  Py_BEGIN_ALLOW_THREADS
  error = flusher_submit(self->thread, NULL);
  if (!error) {
    block full = self->buf;
    self->buf = self->spare;
    self->spare = full;
    error = flusher_submit(self->thread, &self->spare);
  }
  Py_END_ALLOW_THREADS
  if (error) return write_failed(self, error);
  self->flushed += self->spare.len;
  self->buf.len = 0;
  return 0;
}

/* The thread must be gone before the caller closes the descriptor: finish() and stop() see to that too. */
static void stop_thread(WriterObject *self) {
  flusher *thread = self->thread;
  self->thread = NULL;
  if (!thread || self->pid != getpid()) return;
  Py_BEGIN_ALLOW_THREADS
  flusher_stop(thread);
  Py_END_ALLOW_THREADS
}

static int put(WriterObject *self, const void *p, size_t n) {
  const unsigned char *from = p;
  while (n) {
    if (self->buf.len == self->buf.cap && flush(self)) return -1;
    size_t room = self->buf.cap - self->buf.len, take = n < room ? n : room;
    memcpy(self->buf.data + self->buf.len, from, take);
    self->buf.len += take, from += take, n -= take;
  }
  return 0;
}

static int put_padding(WriterObject *self, uint64_t nbytes) {
  static const unsigned char zeros[TAR_BLOCK];
  return put(self, zeros, (size_t)(tar_padded(nbytes) - nbytes));
}

/* Take the open sample back: what was written of it is cut off again. */
static int roll_back(WriterObject *self) {
  self->open = false;
  self->c.nsamples--;
  columns *c = &self->c;
  size_t n = (size_t)c->nsamples;
  c->key_ends.len = c->hashes.len = c->starts.len = c->ends.len = c->field_ends.len = n * 8;
  c->keys.len = n ? (size_t)((uint64_t *)(void *)c->key_ends.data)[n - 1] : 0;
  uint64_t fields = n ? ((uint64_t *)(void *)c->field_ends.data)[n - 1] : 0;
  c->nmembers -= c->nfields - fields;
  c->nfields = fields;
  c->ext_ends.len = self->old_exts * 8;
  c->exts.len = self->old_exts ? (size_t)((uint64_t *)(void *)c->ext_ends.data)[self->old_exts - 1] : 0;
  c->field_codes.len = (size_t)fields * 4;
  c->field_headers.len = c->field_offsets.len = c->field_nbytes.len = (size_t)fields * 8;
  if (self->start >= self->flushed) {
    self->buf.len = (size_t)(self->start - self->flushed);
    return 0;
  }
  self->buf.len = 0;
  if (settle(self)) return -1;
  self->flushed = self->start;
  if (!ftruncate(self->fd, (off_t)self->start) && lseek(self->fd, (off_t)self->start, SEEK_SET) >= 0) return 0;
  self->broken = true; /* a pipe: half of the sample is gone out */
  return -1;
}

/* With the exception that is set: roll back, and keep the exception. */
static PyObject *give_up(WriterObject *self) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  if (self->open && !self->broken) roll_back(self);
  self->open = false;
  PyErr_Restore(type, value, trace);
  return NULL;
}

static int append_name(bytes_vec *v, PyObject *text) {
  PyObject *raw = PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape");
  if (!raw) return -1;
  size_t n = (size_t)PyBytes_GET_SIZE(raw);
  void *at = vec_grow(v, n);
  if (at) memcpy(at, PyBytes_AS_STRING(raw), n);
  else PyErr_NoMemory();
  Py_DECREF(raw);
  return at ? 0 : -1;
}

static void *raise_source(PyObject *op, const char *format, ...) {
  va_list args;
  va_start(args, format);
  PyObject *text = PyUnicode_FromFormatV(format, args);
  va_end(args);
  if (text) PyErr_SetObject(core_of(op)->source_error, text);
  Py_XDECREF(text);
  return NULL;
}

static int begin(PyObject *op, PyObject *key) {
  WriterObject *self = (WriterObject *)op;
  if (self->broken || self->open) {
    PyErr_SetString(PyExc_ValueError, self->broken ? "writer is broken by an earlier error" : "a sample is open");
    return -1;
  }
  self->name.len = 0;
  if (append_name(&self->name, key)) return -1;
  self->key = key;
  self->key_len = self->name.len;
  const char *text = (const char *)self->name.data;
  self->start = tell(self);
  self->old_exts = self->c.ext_ends.len / 8;
  self->hash = sample_hash(text, self->key_len, 0);
  if (!columns_sample(&self->c, text, self->key_len, self->hash, self->start)) {
    PyErr_NoMemory();
    self->broken = true;
    return -1;
  }
  self->open = true;
  return 0;
}

/* Header of a member of the open sample, and its entry in the columns. */
static int begin_field(PyObject *op, PyObject *ext, uint64_t nbytes) {
  WriterObject *self = (WriterObject *)op;
  sample_name n;
  self->name.len = self->key_len;
  void *dot = vec_grow(&self->name, 1);
  if (!dot) {
    PyErr_NoMemory();
    return -1;
  }
  *(char *)dot = '.';
  if (append_name(&self->name, ext)) return -1;
  char *name = (char *)self->name.data;
  size_t len = self->name.len, cap = tar_group_cap(len);
  if (memchr(name, 0, len) || !sample_split(name, len, &n) || n.key_len != self->key_len) {
    raise_source(op, "key %R with field %R: readers would not get this key back (a dot in the key's last part, a "
                     "__name__, a NUL byte, or no name at all)",
                 self->key, ext);
    return -1;
  }
  if (cap > TAR_GROUP_MAX) { /* readers refuse it */
    raise_source(op, "a member name of %zu bytes is too long", len);
    return -1;
  }
  if (self->buf.cap - self->buf.len < cap && flush(self)) return -1;
  size_t group = tar_format(self->buf.data + self->buf.len, cap, name, len, nbytes, self->mtime);
  uint64_t offset = tell(self) + group;
  self->buf.len += group;
  ascii_lower(name + self->key_len + 1, n.ext, n.ext_len);
  if (columns_has(&self->c, n.ext, n.ext_len)) {
    raise_source(op, "two fields %R in one sample", ext);
    return -1;
  }
  if (!columns_field(&self->c, n.ext, n.ext_len, offset - TAR_BLOCK, offset, nbytes)) {
    PyErr_NoMemory();
    return -1;
  }
  self->c.nmembers++;
  return 0;
}

static int field_bytes(PyObject *op, PyObject *ext, PyObject *data) {
  WriterObject *self = (WriterObject *)op;
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_C_CONTIGUOUS)) return -1;
  int failed = begin_field(op, ext, (uint64_t)view.len) || put(self, view.buf, (size_t)view.len) ||
               put_padding(self, (uint64_t)view.len);
  PyBuffer_Release(&view);
  return failed ? -1 : 0;
}

/* Copy nbytes from fd through the buffer. 1: the file is shorter now. */
static int copy_file(WriterObject *self, int fd, uint64_t nbytes) {
  for (uint64_t done = 0; done < nbytes;) {
    if (self->buf.len == self->buf.cap && flush(self)) return -1;
    size_t room = self->buf.cap - self->buf.len, take = nbytes - done < room ? (size_t)(nbytes - done) : room;
    ssize_t n;
    Py_BEGIN_ALLOW_THREADS
    n = pread_full(fd, self->buf.data + self->buf.len, take, done);
    Py_END_ALLOW_THREADS
    if (n < 0) {
      PyErr_SetFromErrno(PyExc_OSError);
      return -1;
    }
    self->buf.len += (size_t)n, done += (uint64_t)n;
    if ((size_t)n < take) return 1;
  }
  return 0;
}

static int field_file(PyObject *op, PyObject *ext, PyObject *path, long long nbytes) {
  WriterObject *self = (WriterObject *)op;
  PyObject *raw = NULL;
  struct stat about;
  int fd = -1, failed = -1, error = 0;
  if (!PyUnicode_FSConverter(path, &raw)) return -1;
  Py_BEGIN_ALLOW_THREADS
  fd = open(PyBytes_AS_STRING(raw), O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (fd < 0 || fstat(fd, &about)) error = errno;
  Py_END_ALLOW_THREADS
  if (error) {
    errno = error;
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
  } else if (!S_ISREG(about.st_mode)) {
    raise_source(op, "%S: not a regular file", path);
  } else if (nbytes >= 0 && about.st_size != nbytes) {
    raise_source(op, "%S: changed while it was packed: %lld bytes when listed, %lld now", path, nbytes,
                 (long long)about.st_size);
  } else if (!begin_field(op, ext, (uint64_t)about.st_size)) {
    failed = copy_file(self, fd, (uint64_t)about.st_size);
    if (failed > 0) raise_source(op, "%S: cut short while it was read", path);
    if (!failed) failed = put_padding(self, (uint64_t)about.st_size);
  }
  if (fd >= 0) close(fd);
  Py_DECREF(raw);
  return failed ? -1 : 0;
}

static int end(PyObject *op) {
  WriterObject *self = (WriterObject *)op;
  uint32_t ordinal;
  const char *key = (const char *)self->name.data;
  if (tell(self) == self->start) {
    raise_source(op, "key %R: a sample without fields", self->key);
    return -1;
  }
  int fresh = seen_add(&self->seen, key, self->key_len, self->hash, &ordinal);
  if (fresh < 0) PyErr_NoMemory();
  if (fresh == 0)
    raise_source(op, "key %R is in this shard already (sample %u)",
                 self->key, ordinal);
  if (fresh <= 0) return -1;
  columns_end(&self->c, tell(self));
  self->open = false;
  return 0;
}

/* One value of a sample: bytes-like, or a tuple (path, nbytes) of a file to copy; nbytes -1: whatever it has. */
static int put_value(PyObject *op, PyObject *ext, PyObject *value) {
  if (!PyTuple_Check(value)) return field_bytes(op, ext, value);
  PyObject *path;
  long long nbytes;
  if (!PyArg_ParseTuple(value, "OL;a file to copy is (path, nbytes)", &path, &nbytes)) return -1;
  return field_file(op, ext, path, nbytes);
}

static bool is_hidden(PyObject *name) { /* __key__, __url__ and their like are not written */
  return PyUnicode_Check(name) && PyUnicode_GET_LENGTH(name) && PyUnicode_READ_CHAR(name, 0) == '_';
}

/* names: a sorted list; values: one for each. Returns the bytes that the sample takes. */
static PyObject *write_sample(PyObject *op, PyObject *key, PyObject *names, PyObject *const *values) {
  WriterObject *self = (WriterObject *)op;
  if (self->busy) {
    PyErr_SetString(PyExc_ValueError, "writer already executing");
    return NULL;
  }
  self->busy = true;
  int failed = begin(op, key);
  for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(names); i++) {
    PyObject *name = PyList_GET_ITEM(names, i);
    if (!PyUnicode_Check(name)) {
      raise_source(op, "field name %R is not a str", name);
      failed = -1;
    } else if (!is_hidden(name)) {
      failed = put_value(op, name, values[i]);
    }
  }
  if (!failed) failed = end(op);
  self->busy = false;
  if (failed) return give_up(self);
  return PyLong_FromUnsignedLongLong(tell(self) - self->start);
}

static PyObject *writer_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  if (nargs != 2 || !PyUnicode_Check(args[0]) || !PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "write(key: str, fields: dict)");
    return NULL;
  }
  PyObject *names = PyDict_Keys(args[1]), *result = NULL;
  PyObject **values = names ? PyMem_New(PyObject *, PyList_GET_SIZE(names) + 1) : NULL;
  if (values && !PyList_Sort(names)) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++)
      values[i] = Py_XNewRef(PyDict_GetItemWithError(args[1], PyList_GET_ITEM(names, i)));
    result = write_sample(op, args[0], names, values);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) Py_XDECREF(values[i]);
  }
  PyMem_Free(values);
  Py_XDECREF(names);
  return result;
}

/* The bytes of one field: as they are, or from the encoder. A new reference. */
static PyObject *encoded(WriterObject *self, PyObject *name, PyObject *value) {
  if (!value || !PyUnicode_Check(name) || is_hidden(name)) return Py_NewRef(Py_None);
  Py_ssize_t n = PyUnicode_GET_LENGTH(name);
  bool gz = n >= 3 && PyUnicode_READ_CHAR(name, n - 1) == 'z' && PyUnicode_READ_CHAR(name, n - 2) == 'g' &&
            PyUnicode_READ_CHAR(name, n - 3) == '.';
  if (!self->encode || (PyBytes_CheckExact(value) && !gz)) return Py_NewRef(value);
  return PyObject_CallFunctionObjArgs(self->encode, value, name, NULL);
}

/* Bytes that a field will take: the same arithmetic as tar_format. */
static int field_nbytes(PyObject *key, PyObject *name, PyObject *value, uint64_t *total) {
  if (!PyUnicode_Check(name) || is_hidden(name)) return 0;
  if (!PyBytes_Check(value)) {
    PyErr_Format(PyExc_TypeError, "the encoder of field %R gave a %s, not bytes", name, Py_TYPE(value)->tp_name);
    return -1;
  }
  uint64_t n = (uint64_t)PyBytes_GET_SIZE(value);
  size_t group = TAR_BLOCK;
  if (!PyUnicode_IS_ASCII(key) || !PyUnicode_IS_ASCII(name) ||
      PyUnicode_GET_LENGTH(key) + PyUnicode_GET_LENGTH(name) >= 100 || n >> 33) {
    PyObject *text = PyUnicode_FromFormat("%U.%U", key, name);
    PyObject *raw = text ? PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape") : NULL;
    Py_XDECREF(text);
    if (!raw) return -1;
    size_t cap = tar_group_cap((size_t)PyBytes_GET_SIZE(raw));
    unsigned char *out = PyMem_Malloc(cap);
    group = out ? tar_format(out, cap, PyBytes_AS_STRING(raw), (size_t)PyBytes_GET_SIZE(raw), n, 0) : 0;
    PyMem_Free(out);
    Py_DECREF(raw);
  }
  *total += group + tar_padded(n);
  return 0;
}

static PyObject *writer_add(PyObject *op, PyObject *sample) {
  WriterObject *self = (WriterObject *)op;
  PyObject *key = PyDict_Check(sample) ? PyDict_GetItemWithError(sample, core_of(op)->s_key) : NULL, *result = NULL;
  if (!key || !PyUnicode_Check(key)) {
    if (!PyErr_Occurred()) raise_source(op, "a sample is a dict with a str under '__key__', not %R", key ? key : sample);
    return NULL;
  }
  PyObject *names = PyDict_Keys(sample);
  Py_ssize_t n = names ? PyList_GET_SIZE(names) : 0, have = 0;
  PyObject **values = names ? PyMem_New(PyObject *, n + 1) : NULL;
  uint64_t nbytes = 0;
  bool good = values && !PyList_Sort(names);
  Py_INCREF(key);
  for (; good && have < n; have++) {
    PyObject *name = PyList_GET_ITEM(names, have);
    values[have] = encoded(self, name, PyDict_GetItemWithError(sample, name));
    if (!values[have]) break;
    if (field_nbytes(key, name, values[have], &nbytes)) {
      have++;
      good = false;
      break;
    }
  }
  if (good && have == n) {
    bool full = self->c.nsamples && (self->c.nsamples >= self->maxcount ||
                                     tell(self) + nbytes + 2 * TAR_BLOCK > self->maxsize);
    result = full ? Py_NewRef(Py_None) : write_sample(op, key, names, values);
  }
  for (Py_ssize_t i = 0; i < have; i++) Py_DECREF(values[i]);
  PyMem_Free(values);
  Py_XDECREF(names);
  Py_DECREF(key);
  return result;
}

static PyObject *writer_finish(PyObject *op, PyObject *Py_UNUSED(ignored)) {
  static const unsigned char marker[2 * TAR_BLOCK];
  WriterObject *self = (WriterObject *)op;
  if (self->broken || self->busy) {
    PyErr_SetString(PyExc_ValueError, "writer is broken by an earlier error");
    return NULL;
  }
  self->busy = true;
  int failed = put(self, marker, sizeof marker) || flush(self) || settle(self);
  self->busy = false;
  self->broken = true; /* nothing may follow the end marker */
  stop_thread(self);
  if (failed) return NULL;
  PyObject *result = columns_to_dict(&self->c), *nbytes = PyLong_FromUnsignedLongLong(self->flushed);
  if (!result || !nbytes || PyDict_SetItemString(result, "nbytes", nbytes)) Py_CLEAR(result);
  Py_XDECREF(nbytes);
  return result;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"fd", "mtime", "encode", "maxcount", "maxsize", NULL};
  unsigned long long mtime, maxcount = UINT64_MAX, maxsize = UINT64_MAX;
  PyObject *encode = Py_None;
  int fd;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iK|$OKK", names, &fd, &mtime, &encode, &maxcount, &maxsize)) return NULL;
  WriterObject *self = (WriterObject *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->fd = fd, self->mtime = mtime, self->pid = getpid();
  self->maxcount = maxcount, self->maxsize = maxsize;
  self->encode = encode == Py_None ? NULL : Py_NewRef(encode);
  self->buf = (block){PyMem_RawMalloc(WRITE_BYTES), 0, WRITE_BYTES};
  self->spare = (block){PyMem_RawMalloc(WRITE_BYTES), 0, WRITE_BYTES};
  if (self->buf.data && self->spare.data) return (PyObject *)self;
  Py_DECREF(self);
  return PyErr_NoMemory();
}

static int writer_traverse(PyObject *op, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(op));
  Py_VISIT(((WriterObject *)op)->encode);
  return 0;
}

static int writer_clear(PyObject *op) {
  Py_CLEAR(((WriterObject *)op)->encode);
  return 0;
}

static PyObject *writer_stop(PyObject *op, PyObject *Py_UNUSED(ignored)) {
  if (((WriterObject *)op)->busy) { /* in another thread, which uses ours */
    PyErr_SetString(PyExc_ValueError, "writer already executing");
    return NULL;
  }
  ((WriterObject *)op)->broken = true;
  stop_thread((WriterObject *)op);
  Py_RETURN_NONE;
}

static void writer_dealloc(PyObject *op) {
  WriterObject *self = (WriterObject *)op;
  PyTypeObject *type = Py_TYPE(op);
  PyObject_GC_UnTrack(op);
  stop_thread(self);
  writer_clear(op);
  PyMem_RawFree(self->buf.data);
  PyMem_RawFree(self->spare.data);
  columns_free(&self->c);
  seen_free(&self->seen);
  free(self->name.data);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyObject *get_nbytes(PyObject *op, void *Py_UNUSED(closure)) { return PyLong_FromUnsignedLongLong(tell((WriterObject *)op)); }
static PyObject *get_nsamples(PyObject *op, void *Py_UNUSED(closure)) {
  return PyLong_FromUnsignedLongLong(((WriterObject *)op)->c.nsamples);
}

static PyGetSetDef writer_getset[] = {{"nbytes", get_nbytes, NULL, "bytes written so far, without the end marker", NULL},
                                      {"nsamples", get_nsamples, NULL, "samples written so far", NULL},
                                      {NULL, NULL, NULL, NULL, NULL}};
static PyMethodDef writer_methods[] = {
    {"write", (PyCFunction)(void (*)(void))writer_write, METH_FASTCALL,
     "write(key, fields): append a sample; a value is bytes-like or (path, nbytes). Returns its bytes in the tar. After "
     "an error the sample is not in the tar."},
    {"add", writer_add, METH_O,
     "add(sample): append a sample dict, its values through encode(value, field). Returns its bytes in the tar, or None "
     "where maxcount or maxsize would be passed: nothing is written then."},
    {"stop", writer_stop, METH_NOARGS, "Stop writing for good; the descriptor can be closed then."},
    {"finish", writer_finish, METH_NOARGS, "Write the end marker and all that is buffered; returns the columns of the index."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot writer_slots[] = {{Py_tp_doc, "Writer(fd, mtime, *, encode, maxcount, maxsize): samples into one tar"},
                                     {Py_tp_new, writer_new},
                                     {Py_tp_dealloc, writer_dealloc},
                                     {Py_tp_traverse, writer_traverse},
                                     {Py_tp_clear, writer_clear},
                                     {Py_tp_methods, writer_methods},
                                     {Py_tp_getset, writer_getset},
                                     {0, NULL}};
PyType_Spec writer_spec = {"wdstools._core.Writer", sizeof(WriterObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, writer_slots};
