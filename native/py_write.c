/* py_write.c: Writer, samples -> one tar and the columns of its index. */
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
  PyObject_HEAD
  int fd;
  uint64_t mtime, flushed; /* bytes that are in the file */
  block buf;               /* bytes that follow them */
  columns c;
  seen_set seen;
  bytes_vec name;          /* of the member in hand: key, then "." and field */
  PyObject *key;           /* of the open sample, borrowed for the call */
  size_t key_len;
  uint64_t start, hash;    /* of the open sample */
  bool open, busy, broken;
} WriterObject;

static uint64_t tell(const WriterObject *self) { return self->flushed + self->buf.len; }

static int flush(WriterObject *self) {
  ssize_t n;
  Py_BEGIN_ALLOW_THREADS
  n = write_full(self->fd, self->buf.data, self->buf.len);
  Py_END_ALLOW_THREADS
  if (n < 0) {
    PyErr_SetFromErrno(PyExc_OSError);
    self->broken = true;
    return -1;
  }
  self->flushed += self->buf.len;
  self->buf.len = 0;
  return 0;
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
  c->field_codes.len = (size_t)fields * 4;
  c->field_headers.len = c->field_offsets.len = c->field_nbytes.len = (size_t)fields * 8;
  if (self->start >= self->flushed) {
    self->buf.len = (size_t)(self->start - self->flushed);
    return 0;
  }
  self->buf.len = 0;
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
  if (self->buf.cap - self->buf.len < cap && flush(self)) return -1;
  if (self->buf.cap < cap) {
    raise_source(op, "a member name of %zu bytes is too long", len);
    return -1;
  }
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

static PyObject *writer_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  WriterObject *self = (WriterObject *)op;
  if (nargs != 2 || !PyUnicode_Check(args[0]) || !PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "write(key: str, fields: dict)");
    return NULL;
  }
  if (self->busy) {
    PyErr_SetString(PyExc_ValueError, "writer already executing");
    return NULL;
  }
  PyObject *names = PyDict_Keys(args[1]);
  if (!names || PyList_Sort(names)) {
    Py_XDECREF(names);
    return NULL;
  }
  self->busy = true;
  int failed = begin(op, args[0]);
  for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(names); i++) {
    PyObject *ext = PyList_GET_ITEM(names, i), *value = PyDict_GetItemWithError(args[1], ext);
    if (!PyUnicode_Check(ext)) {
      raise_source(op, "field name %R is not a str", ext);
      failed = -1;
    } else if (PyUnicode_GET_LENGTH(ext) && PyUnicode_READ_CHAR(ext, 0) == '_') {
      continue; /* __key__, __url__ and their like are not written */
    } else {
      failed = value ? put_value(op, ext, value) : -1;
    }
  }
  if (!failed) failed = end(op);
  self->busy = false;
  Py_DECREF(names);
  if (failed) return give_up(self);
  return PyLong_FromUnsignedLongLong(tell(self) - self->start);
}

static PyObject *writer_finish(PyObject *op, PyObject *Py_UNUSED(ignored)) {
  static const unsigned char marker[2 * TAR_BLOCK];
  WriterObject *self = (WriterObject *)op;
  if (self->broken || self->busy) {
    PyErr_SetString(PyExc_ValueError, "writer is broken by an earlier error");
    return NULL;
  }
  if (put(self, marker, sizeof marker) || flush(self)) return NULL;
  self->broken = true; /* nothing may follow the end marker */
  PyObject *result = columns_to_dict(&self->c), *nbytes = PyLong_FromUnsignedLongLong(self->flushed);
  if (!result || !nbytes || PyDict_SetItemString(result, "nbytes", nbytes)) Py_CLEAR(result);
  Py_XDECREF(nbytes);
  return result;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"fd", "mtime", NULL};
  unsigned long long mtime;
  int fd;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iK", names, &fd, &mtime)) return NULL;
  WriterObject *self = (WriterObject *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->fd = fd;
  self->mtime = mtime;
  self->buf = (block){PyMem_RawMalloc(BLOCK_BYTES), 0, BLOCK_BYTES};
  if (self->buf.data) return (PyObject *)self;
  Py_DECREF(self);
  return PyErr_NoMemory();
}

static void writer_dealloc(PyObject *op) {
  WriterObject *self = (WriterObject *)op;
  PyTypeObject *type = Py_TYPE(op);
  PyMem_RawFree(self->buf.data);
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
    {"finish", writer_finish, METH_NOARGS, "Write the end marker and all that is buffered; returns the columns of the index."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot writer_slots[] = {{Py_tp_doc, "Writer(fd, mtime): samples into one tar"},
                                     {Py_tp_new, writer_new},
                                     {Py_tp_dealloc, writer_dealloc},
                                     {Py_tp_methods, writer_methods},
                                     {Py_tp_getset, writer_getset},
                                     {0, NULL}};
PyType_Spec writer_spec = {"wdstools._core.Writer", sizeof(WriterObject), 0, Py_TPFLAGS_DEFAULT, writer_slots};
