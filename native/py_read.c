/* py_read.c: SampleReader, samples by byte range or by their rows in an index. */
#include "py_read.h"

static PyObject *reader_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  if (nargs != 6 || !PyUnicode_Check(args[3])) {
    PyErr_SetString(PyExc_TypeError, "read(fd: int, start: int, end: int, key: str, url: str, local_path)");
    return NULL;
  }
  uint64_t start, end;
  int fd = PyObject_AsFileDescriptor(args[0]);
  if (fd < 0 || !as_u64(args[1], &start) || !as_u64(args[2], &end)) return NULL;
  if (start >= end || end > INT64_MAX) {
    PyErr_SetString(PyExc_ValueError, "not a byte range");
    return NULL;
  }
  PyObject *key = PyUnicode_AsEncodedString(args[3], "utf-8", "surrogateescape");
  if (!key) return NULL;
  sample_at at = {fd, 0, start, end, PyBytes_AS_STRING(key), (size_t)PyBytes_GET_SIZE(key), args[4], args[5], NULL};
  PyObject *sample = read_sample((ReaderObject *)op, &at, NULL, NULL, NULL);
  Py_DECREF(key);
  return sample;
}

static PyObject *reader_parse(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  if (nargs != 5 || !PyUnicode_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "parse(data: Buffer, start: int, key: str, url: str, local_path)");
    return NULL;
  }
  uint64_t start;
  Py_buffer data;
  if (!as_u64(args[1], &start) || PyObject_GetBuffer(args[0], &data, PyBUF_SIMPLE)) return NULL;
  PyObject *sample = NULL, *key = NULL;
  if (!data.len || start > INT64_MAX - (uint64_t)data.len) PyErr_SetString(PyExc_ValueError, "not a byte range");
  else if ((key = PyUnicode_AsEncodedString(args[2], "utf-8", "surrogateescape"))) {
    sample_at at = {-1, 0, start, start + (uint64_t)data.len, PyBytes_AS_STRING(key), (size_t)PyBytes_GET_SIZE(key),
                    args[3], args[4], NULL};
    sample = read_sample((ReaderObject *)op, &at, data.buf, NULL, NULL);
  }
  Py_XDECREF(key);
  PyBuffer_Release(&data);
  return sample;
}

/* The key of a row that was found, kept where it is in memory, else in at->own_key. */
static bool keep_key(sample_at *at, const row_columns *r, const row_found *f) {
  at->key = f->key, at->key_len = f->key_len, at->own_key = NULL;
  if (!r->filed) return true;
  if (!(at->own_key = PyMem_RawMalloc(f->key_len + 1))) return false;
  memcpy(at->own_key, f->key, f->key_len);
  at->key = at->own_key;
  return true;
}

int locate_row(row_columns *r, PyObject *row_number, PyObject *files, sample_at *at, PyObject **file) {
  Py_ssize_t row = PyLong_AsSsize_t(row_number);
  if (row == -1 && PyErr_Occurred()) return -1;
  row_found f;
  int status = r && row >= 0 ? find_row(r, (size_t)row, &f, false) : ROW_NOT_ATTACHED;
  if (status == ROW_NOT_ATTACHED) return 0;
  if (status == ROW_ERROR) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) return -1;
    PyErr_Clear(); /* Python says what is not sound */
    return 0;
  }
  at->shard = f.shard, at->start = f.start, at->end = f.end;
  PyObject *open = f.shard < (uint64_t)PyList_GET_SIZE(files) ? PyList_GET_ITEM(files, (Py_ssize_t)f.shard) : Py_None;
  bool simple = PyTuple_Check(open) && PyTuple_GET_SIZE(open) >= 3, kept = simple && keep_key(at, r, &f);
  row_done(&f);
  if (!simple) return 0;
  if (!kept) {
    PyErr_NoMemory();
    return -1;
  }
  *file = Py_NewRef(open);
  at->fd = PyObject_AsFileDescriptor(PyTuple_GET_ITEM(open, 0));
  at->url = PyTuple_GET_ITEM(open, 1), at->local_path = PyTuple_GET_ITEM(open, 2);
  if (at->fd >= 0) return 1;
  Py_CLEAR(*file);
  PyMem_RawFree(at->own_key);
  return -1;
}

static PyObject *reader_read_row(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  ReaderObject *self = (ReaderObject *)op;
  row_columns *r = self->rows;
  if (nargs != 2 || !PyLong_Check(args[0]) || !PyList_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "read_row(row: int, files: list)");
    return NULL;
  }
  sample_at at;
  PyObject *file, *sample = NULL; /* file: the list may let go of it while we read, as the reader of the columns */
  if (r) r->refs++;
  int found = locate_row(r, args[0], args[1], &at, &file);
  if (found > 0) {
    sample = read_sample(self, &at, NULL, NULL, NULL);
    PyMem_RawFree(at.own_key);
    Py_DECREF(file);
  }
  rows_release(r);
  if (!found) Py_RETURN_NONE;
  return sample;
}

static PyObject *reader_attach(PyObject *op, PyObject *rows) {
  ReaderObject *self = (ReaderObject *)op;
  if (!PyObject_TypeCheck(rows, self->make.st->rows_type)) {
    PyErr_SetString(PyExc_TypeError, "attach(rows: Rows)");
    return NULL;
  }
  row_columns *before = self->rows;
  self->rows = ((RowsObject *)rows)->rows;
  self->rows->refs++;
  rows_release(before);
  Py_RETURN_NONE;
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

/* The buffers of rows are not visited: nothing leads from them back to the reader, and before CPython 3.11.10 and 3.12.6
 * the collector cleared memoryviews that were still exported (gh-77894). */
static int reader_traverse(PyObject *op, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(op));
  return builder_visit(&((ReaderObject *)op)->make, visit, arg);
}

static int reader_clear(PyObject *op) {
  row_columns *rows = ((ReaderObject *)op)->rows;
  ((ReaderObject *)op)->rows = NULL;
  rows_release(rows);
  builder_clear(&((ReaderObject *)op)->make);
  return 0;
}

static void reader_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  PyObject_GC_UnTrack(op);
  reader_clear(op);
  PyMem_RawFree(((ReaderObject *)op)->scratch);
  PyMem_RawFree(((ReaderObject *)op)->group);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)(void (*)(void))reader_read, METH_FASTCALL,
     "read(fd, start, end, key, url, local_path): the sample in bytes [start, end) of the shard behind fd"},
    {"parse", (PyCFunction)(void (*)(void))reader_parse, METH_FASTCALL,
     "parse(data, start, key, url, local_path): the sample in data, which are the bytes of the shard from start on; views are "
     "into a copy"},
    {"attach", reader_attach, METH_O, "attach(rows): the columns of an index, for read_row"},
    {"read_row", (PyCFunction)(void (*)(void))reader_read_row, METH_FASTCALL,
     "read_row(row, files): the sample of a row, files being None or (fd, url, local_path, ...) for each shard; None where "
     "the shard is not open or the row is not sound"},
    {"read_rows", (PyCFunction)(void (*)(void))reader_read_rows, METH_FASTCALL,
     "read_rows(rows, files): what read_row has for each of rows, read in the order in which they lie in their shards; and "
     "the places of those that are None, or no row numbers"},
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
