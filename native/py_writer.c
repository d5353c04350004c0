/* py_writer.c: Writer, samples -> one tar and the columns of its index. */
#include "py_write.h"

static bool is_hidden(PyObject *name) { /* __key__, __url__ and their like are not written */
  return PyUnicode_Check(name) && PyUnicode_GET_LENGTH(name) && PyUnicode_READ_CHAR(name, 0) == '_';
}

/* Readers see str.lower() of a field name. ASCII is compared where the columns are made; the rest of Unicode here. */
static int check_folding(core_state *st, PyObject *names) {
  bool ascii = true;
  for (Py_ssize_t i = 0; ascii && i < PyList_GET_SIZE(names); i++) {
    PyObject *name = PyList_GET_ITEM(names, i);
    ascii = !PyUnicode_Check(name) || PyUnicode_IS_ASCII(name);
  }
  if (ascii) return 0;
  PyObject *seen = PySet_New(NULL);
  int failed = seen ? 0 : -1;
  for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(names); i++) {
    PyObject *name = PyList_GET_ITEM(names, i);
    if (!PyUnicode_Check(name) || is_hidden(name)) continue;
    PyObject *lower = PyObject_CallMethod(name, "lower", NULL);
    failed = lower ? PySet_Contains(seen, lower) : -1;
    if (failed > 0) raise_source(st, "two fields %R in one sample", lower);
    if (!failed) failed = PySet_Add(seen, lower);
    Py_XDECREF(lower);
  }
  Py_XDECREF(seen);
  return failed ? -1 : 0;
}

static int put_sample(PyObject *op, PyObject *key, PyObject *names, PyObject *const *values) {
  WriterObject *self = (WriterObject *)op;
  core_state *st = core_of(op);
  if (write_begin(self, key) || check_folding(st, names)) return -1;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
    PyObject *name = PyList_GET_ITEM(names, i);
    if (!PyUnicode_Check(name)) {
      raise_source(st, "field name %R is not a str", name);
      return -1;
    }
    if (!is_hidden(name) && write_value(self, name, values[i])) return -1;
  }
  return write_end(self);
}

static int refuse_busy(const WriterObject *self) {
  if (self->busy) PyErr_SetString(PyExc_ValueError, "writer already executing");
  return self->busy ? -1 : 0;
}

/* names: a sorted list; values: one for each. Returns the bytes that the sample takes. */
static PyObject *write_sample(PyObject *op, PyObject *key, PyObject *names, PyObject *const *values) {
  WriterObject *self = (WriterObject *)op;
  if (refuse_busy(self)) return NULL;
  self->busy = true;
  int failed = put_sample(op, key, names, values);
  if (failed) write_give_up(self);
  self->busy = false;
  return failed ? NULL : PyLong_FromUnsignedLongLong(write_tell(self) - self->start);
}

/* The value of a name that a dict had when its names were listed. A new reference. */
static PyObject *value_of(PyObject *dict, PyObject *name) {
  PyObject *value = PyDict_GetItemWithError(dict, name);
  if (!value && !PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, name);
  return Py_XNewRef(value);
}

/* The bytes of one field: as they are, or from the encoder. A new reference. */
static PyObject *encoded(WriterObject *self, PyObject *name, PyObject *sample) {
  if (!PyUnicode_Check(name) || is_hidden(name)) return Py_NewRef(Py_None);
  Py_ssize_t n = PyUnicode_GET_LENGTH(name);
  bool gz = n >= 3 && PyUnicode_READ_CHAR(name, n - 1) == 'z' && PyUnicode_READ_CHAR(name, n - 2) == 'g' &&
            PyUnicode_READ_CHAR(name, n - 3) == '.';
  PyObject *value = value_of(sample, name);
  if (!value || !self->encode || (PyBytes_CheckExact(value) && !gz)) return value;
  Py_SETREF(value, PyObject_CallFunctionObjArgs(self->encode, value, name, NULL));
  return value;
}

typedef struct {
  PyObject *names, **values; /* a sorted list; one for each */
  Py_ssize_t have;
} sorted_fields;

/* self NULL: values as they are; else encoded. -1: exception. Either way fields_free. */
static int fields_open(sorted_fields *f, PyObject *dict, WriterObject *self) {
  *f = (sorted_fields){.names = PyDict_Keys(dict)};
  if (!f->names || PyList_Sort(f->names)) return -1;
  Py_ssize_t n = PyList_GET_SIZE(f->names);
  f->values = PyMem_New(PyObject *, n + 1);
  if (!f->values) {
    PyErr_NoMemory();
    return -1;
  }
  while (f->have < n) {
    PyObject *name = PyList_GET_ITEM(f->names, f->have);
    PyObject *value = self ? encoded(self, name, dict) : value_of(dict, name);
    if (!value) return -1;
    f->values[f->have++] = value;
  }
  return 0;
}

static void fields_free(sorted_fields *f) {
  while (f->have) Py_DECREF(f->values[--f->have]);
  PyMem_Free(f->values);
  Py_XDECREF(f->names);
}

static PyObject *writer_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  if (nargs != 2 || !PyUnicode_Check(args[0]) || !PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "write(key: str, fields: dict)");
    return NULL;
  }
  sorted_fields f;
  PyObject *result = NULL;
  if (!fields_open(&f, args[1], NULL)) result = write_sample(op, args[0], f.names, f.values);
  fields_free(&f);
  return result;
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
    if (out) group = tar_format(out, cap, PyBytes_AS_STRING(raw), (size_t)PyBytes_GET_SIZE(raw), n, 0);
    PyMem_Free(out);
    Py_DECREF(raw);
    if (!out) {
      PyErr_NoMemory();
      return -1;
    }
  }
  *total += group + tar_padded(n);
  return 0;
}

static PyObject *add_fields(PyObject *op, PyObject *key, const sorted_fields *f) {
  WriterObject *self = (WriterObject *)op;
  uint64_t nbytes = 0;
  for (Py_ssize_t i = 0; i < f->have; i++)
    if (field_nbytes(key, PyList_GET_ITEM(f->names, i), f->values[i], &nbytes)) return NULL;
  if (refuse_busy(self)) return NULL; /* the numbers are those of a sample that is not there yet */
  bool full = self->c.nsamples &&
              (self->c.nsamples >= self->maxcount || write_tell(self) + nbytes + 2 * TAR_BLOCK > self->maxsize);
  return full ? Py_NewRef(Py_None) : write_sample(op, key, f->names, f->values);
}

static PyObject *writer_add(PyObject *op, PyObject *sample) {
  PyObject *key = PyDict_Check(sample) ? PyDict_GetItemWithError(sample, core_of(op)->s_key) : NULL, *result = NULL;
  if (!key || !PyUnicode_Check(key)) {
    if (!PyErr_Occurred())
      raise_source(core_of(op), "a sample is a dict with a str under '__key__', not %R", key ? key : sample);
    return NULL;
  }
  sorted_fields f;
  Py_INCREF(key); /* the encoder may take it out of the sample */
  if (!fields_open(&f, sample, (WriterObject *)op)) result = add_fields(op, key, &f);
  fields_free(&f);
  Py_DECREF(key);
  return result;
}

static int put_checksums(PyObject *result, const writing_sums *sums) {
  const bytes_vec *each = writing_sums_samples(sums);
  PyObject *shard = PyLong_FromUnsignedLongLong(writing_sums_shard(sums));
  PyObject *samples = each ? PyBytes_FromStringAndSize((const char *)each->data, (Py_ssize_t)each->len) : Py_NewRef(Py_None);
  int failed = !shard || !samples || PyDict_SetItemString(result, "checksum", shard) ||
               (each && PyDict_SetItemString(result, "checksums", samples));
  Py_XDECREF(shard);
  Py_XDECREF(samples);
  return failed ? -1 : 0;
}

static PyObject *writer_copy(PyObject *op, PyObject *args) {
  WriterObject *self = (WriterObject *)op;
  PyObject *key, *url;
  uint64_t from, to;
  int fd;
  if (!PyArg_ParseTuple(args, "UiO&O&U", &key, &fd, as_u64, &from, as_u64, &to, &url)) return NULL;
  if (from >= to || from % TAR_BLOCK || to % TAR_BLOCK) {
    PyErr_SetString(PyExc_ValueError, "[start, end) must be blocks of a tar");
    return NULL;
  }
  if (refuse_busy(self)) return NULL;
  self->busy = true;
  int failed = write_range(self, key, fd, from, to, url);
  if (failed) write_give_up(self);
  self->busy = false;
  return failed ? NULL : PyLong_FromUnsignedLongLong(write_tell(self) - self->start);
}

static PyObject *writer_finish(PyObject *op, PyObject *Py_UNUSED(ignored)) {
  WriterObject *self = (WriterObject *)op;
  if (self->broken || self->busy) {
    PyErr_SetString(PyExc_ValueError, self->busy ? "writer already executing" : "writer is broken by an earlier error");
    return NULL;
  }
  self->busy = true;
  int failed = write_finish(self);
  self->busy = false;
  if (failed) return NULL;
  PyObject *result = columns_to_dict(&self->c), *nbytes = PyLong_FromUnsignedLongLong(self->flushed);
  if (!result || !nbytes || PyDict_SetItemString(result, "nbytes", nbytes)) Py_CLEAR(result);
  Py_XDECREF(nbytes);
  if (result && self->sums && put_checksums(result, self->sums)) Py_CLEAR(result);
  return result;
}

static PyObject *writer_stop(PyObject *op, PyObject *Py_UNUSED(ignored)) {
  if (refuse_busy((WriterObject *)op)) return NULL; /* another thread is in a call, and uses ours */
  write_stop((WriterObject *)op);
  Py_RETURN_NONE;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"fd", "mtime", "encode", "maxcount", "maxsize", "checksum", "behind", NULL};
  uint64_t mtime, maxcount = UINT64_MAX, maxsize = UINT64_MAX;
  PyObject *encode = Py_None;
  int fd, checksum = 0, behind = 1;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO&|$OO&O&ip", names, &fd, as_u64, &mtime, &encode, as_u64, &maxcount,
                                   as_u64, &maxsize, &checksum, &behind))
    return NULL;
  WriterObject *self = (WriterObject *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->fd = fd, self->mtime = mtime, self->pid = getpid(), self->behind = behind;
  self->maxcount = maxcount, self->maxsize = maxsize;
  self->encode = encode == Py_None ? NULL : Py_NewRef(encode);
  if (checksum && !(self->sums = writing_sums_new(checksum > 1))) PyErr_NoMemory();
  else if (!write_open(self)) return (PyObject *)self;
  Py_DECREF(self);
  return NULL;
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

static void writer_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  PyObject_GC_UnTrack(op);
  write_close((WriterObject *)op);
  writer_clear(op);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyObject *get_nbytes(PyObject *op, void *Py_UNUSED(closure)) {
  return PyLong_FromUnsignedLongLong(write_tell((WriterObject *)op));
}

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
     "add(sample): append a sample dict, its values through encode(value, field). Returns its bytes in the tar, or "
     "None where maxcount or maxsize would be passed: nothing is written then."},
    {"copy", writer_copy, METH_VARARGS,
     "copy(key, fd, start, end, url): append bytes [start, end) of another shard, which must be the sample with this "
     "key and nothing else. Returns their number. HeaderError, which names url, where they are not."},
    {"stop", writer_stop, METH_NOARGS, "Stop writing for good; the descriptor can be closed then."},
    {"finish", writer_finish, METH_NOARGS,
     "Write the end marker and all that is buffered; returns the columns of the index."},
    {NULL, NULL, 0, NULL}};
static const char writer_doc[] = "Writer(fd, mtime, *, encode, maxcount, maxsize, checksum, behind): samples into one tar. "
                                 "checksum: 0 none, 1 XXH3 of the shard, 2 of every sample too. behind: a thread of its "
                                 "own writes";
static PyType_Slot writer_slots[] = {{Py_tp_doc, (void *)(uintptr_t)writer_doc},
                                     {Py_tp_new, writer_new},
                                     {Py_tp_dealloc, writer_dealloc},
                                     {Py_tp_traverse, writer_traverse},
                                     {Py_tp_clear, writer_clear},
                                     {Py_tp_methods, writer_methods},
                                     {Py_tp_getset, writer_getset},
                                     {0, NULL}};
PyType_Spec writer_spec = {"wdstools._core.Writer", sizeof(WriterObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, writer_slots};
