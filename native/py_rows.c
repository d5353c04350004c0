/* py_rows.c: Rows, the columns of an index: taking hold of them, looking rows up, and letting go of them. */
#include "py_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>

static void batch_free(row_batch *b) {
  if (!b) return;
  Py_buffer *all[BATCH_COLUMNS] = {&b->shard, &b->start, &b->end, &b->key_ends, &b->key_data};
  for (size_t i = 0; i < BATCH_COLUMNS; i++)
    if (all[i]->obj) PyBuffer_Release(all[i]);
  PyMem_Free(b);
}

void rows_release(row_columns *r) {
  if (!r || --r->refs) return;
  for (size_t i = 0; r->batches && i < r->nbatches; i++) batch_free(r->batches[i]);
  if (r->shard_nbytes.obj) PyBuffer_Release(&r->shard_nbytes);
  if (r->shard_ends.obj) PyBuffer_Release(&r->shard_ends);
  if (r->fd >= 0) close(r->fd);
  PyMem_Free(r->batches);
  PyMem_Free(r->filed);
  PyMem_Free(r->first);
  PyMem_Free(r);
}

/* Buffers of u32, u64, u64, i32 or i64, bytes. NULL: exception. */
static row_batch *batch_new(PyObject *const *args, size_t nrows) {
  row_batch *b = PyMem_Calloc(1, sizeof *b);
  if (!b) return (row_batch *)PyErr_NoMemory();
  Py_buffer *all[BATCH_COLUMNS] = {&b->shard, &b->start, &b->end, &b->key_ends, &b->key_data};
  for (int i = 0; i < BATCH_COLUMNS; i++)
    if (PyObject_GetBuffer(args[i], all[i], PyBUF_FORMAT | PyBUF_ND)) goto fail;
  b->nrows = (Py_ssize_t)nrows;
  if (b->shard.itemsize == 4 && b->start.itemsize == 8 && b->end.itemsize == 8 &&
      (b->key_ends.itemsize == 4 || b->key_ends.itemsize == 8) && b->shard.len == b->nrows * 4 &&
      b->start.len == b->nrows * 8 && b->end.len == b->nrows * 8 &&
      b->key_ends.len >= (b->nrows + 1) * b->key_ends.itemsize)
    return b;
  PyErr_SetString(PyExc_ValueError, "columns that do not go together");
fail:
  batch_free(b);
  return NULL;
}

/* Bytes of the file: at once where they are in the page cache. -1: exception. */
static int get_at(const row_columns *r, void *dst, size_t n, uint64_t at) {
  ssize_t got = -1;
  int error = 0;
#ifdef RWF_NOWAIT
  struct iovec to = {dst, n};
  if (preadv2(r->fd, &to, 1, (off_t)at, RWF_NOWAIT) == (ssize_t)n) return 0;
#endif
  Py_BEGIN_ALLOW_THREADS
  got = pread_full(r->fd, dst, n, at);
  if (got < 0) error = errno;
  Py_END_ALLOW_THREADS
  if (got == (ssize_t)n) return 0;
  if (got < 0) raise_errno(error, NULL);
  else PyErr_SetString(PyExc_ValueError, "the file has been cut");
  return -1;
}

static int not_sound(const char *reason) {
  PyErr_SetString(PyExc_ValueError, reason);
  return ROW_ERROR;
}

static int key_in_file(const row_columns *r, const file_batch *b, size_t i, row_found *f) {
  uint64_t ends[2];
  uint32_t narrow[2];
  if (get_at(r, b->key_width == 8 ? (void *)ends : narrow, 2 * b->key_width, b->key_ends + i * b->key_width))
    return ROW_ERROR;
  if (b->key_width == 4) ends[0] = narrow[0], ends[1] = narrow[1];
  if (ends[0] > ends[1] || ends[1] > b->key_nbytes) return not_sound("key outside of the file");
  f->key_len = (size_t)(ends[1] - ends[0]);
  char *key = f->key_len <= sizeof f->room ? f->room : (f->heap = PyMem_RawMalloc(f->key_len));
  f->key = key;
  if (!key) {
    PyErr_NoMemory();
    return ROW_ERROR;
  }
  return f->key_len && get_at(r, key, f->key_len, b->key_data + ends[0]) ? ROW_ERROR : ROW_FOUND;
}

static int row_in_file(const row_columns *r, const file_batch *b, size_t i, row_found *f, bool key_only) {
  if (!key_only && (get_at(r, &f->start, 8, b->start + 8 * i) || get_at(r, &f->end, 8, b->end + 8 * i)))
    return ROW_ERROR;
  return key_in_file(r, b, i, f);
}

/* The first shard whose rows end behind this one: a shard may have none. */
static uint64_t shard_of(const row_columns *r, uint64_t row) {
  size_t low = 0, high = (size_t)r->shard_ends.len / 8;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (number(&r->shard_ends, middle) <= row) low = middle + 1;
    else high = middle;
  }
  return low;
}

int find_row(row_columns *r, size_t row, row_found *f, bool key_only) {
  f->heap = NULL;
  if (row >= r->nrows) return ROW_NOT_ATTACHED;
  size_t i = batch_of(r, row);
  row -= r->first[i];
  const row_batch *b = r->batches[i];
  if (b) {
    f->shard = number(&b->shard, row), f->start = number(&b->start, row), f->end = number(&b->end, row);
    if (!find_key(b, row, &f->key, &f->key_len)) return not_sound("key outside of the file");
  } else if (r->filed && r->filed[i].key_width) {
    r->refs++;
    f->shard = shard_of(r, r->first[i] + row);
    int status = row_in_file(r, &r->filed[i], row, f, key_only);
    rows_release(r);
    if (status != ROW_FOUND) {
      row_done(f);
      return status;
    }
  } else {
    return ROW_NOT_ATTACHED;
  }
  if (key_only || (f->shard < (uint64_t)r->shard_nbytes.len / 8 && f->start < f->end && f->end <= INT64_MAX &&
                   f->end <= number(&r->shard_nbytes, (size_t)f->shard)))
    return ROW_FOUND;
  row_done(f);
  return not_sound("it lies outside of its shard");
}

void row_done(row_found *f) {
  PyMem_RawFree(f->heap);
  f->heap = NULL;
}

/* 1: *row is a number; 0: there cannot be such a row; -1: exception. */
static int row_number(PyObject *arg, size_t *row) {
  Py_ssize_t n = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
  if (n == -1 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return -1;
    PyErr_Clear();
  }
  *row = (size_t)n;
  return n >= 0;
}

static PyObject *look_up(PyObject *op, PyObject *arg, bool key_only) {
  row_columns *r = ((RowsObject *)op)->rows;
  size_t row;
  row_found f;
  int status = row_number(arg, &row);
  if (status == 1) status = find_row(r, row, &f, key_only);
  if (status == ROW_ERROR) return NULL;
  if (status == ROW_NOT_ATTACHED) Py_RETURN_NONE;
  PyObject *key = PyUnicode_DecodeUTF8(f.key, (Py_ssize_t)f.key_len, "surrogateescape");
  row_done(&f);
  if (!key || key_only) return key;
  return Py_BuildValue("(NIKK)", key, (unsigned)f.shard, (unsigned long long)f.start, (unsigned long long)f.end);
}

static PyObject *rows_locate(PyObject *op, PyObject *arg) { return look_up(op, arg, false); }

static PyObject *rows_key(PyObject *op, PyObject *arg) { return look_up(op, arg, true); }

/* The number of a batch that has no columns yet; -1: it has; -2: exception. */
static Py_ssize_t vacant(const row_columns *r, PyObject *arg) {
  Py_ssize_t i = PyLong_AsSsize_t(arg);
  if (i == -1 && PyErr_Occurred()) return -2;
  if (i < 0 || (size_t)i >= r->nbatches) {
    PyErr_Format(PyExc_IndexError, "batch %zd of %zu", i, r->nbatches);
    return -2;
  }
  return r->batches[i] || (r->filed && r->filed[i].key_width) ? -1 : i;
}

static PyObject *rows_put(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  row_columns *r = ((RowsObject *)op)->rows;
  if (nargs != BATCH_COLUMNS + 1) {
    PyErr_SetString(PyExc_TypeError, "put(number, shard, start, end, key_ends, key_data)");
    return NULL;
  }
  Py_ssize_t i = vacant(r, args[0]);
  if (i == -2) return NULL;
  if (i == -1) Py_RETURN_NONE;
  row_batch *b = batch_new(args + 1, r->first[i + 1] - r->first[i]);
  if (!b) return NULL;
  if (vacant(r, args[0]) == i) r->batches[i] = b;
  else batch_free(b); /* an exporter has run Python, which put another there */
  Py_RETURN_NONE;
}

static PyObject *rows_put_at(PyObject *op, PyObject *args) {
  row_columns *r = ((RowsObject *)op)->rows;
  PyObject *which;
  file_batch b;
  unsigned char width;
  if (!PyArg_ParseTuple(args, "OO&O&O&O&O&b", &which, as_u64, &b.start, as_u64, &b.end, as_u64,
                        &b.key_ends, as_u64, &b.key_data, as_u64, &b.key_nbytes, &width))
    return NULL;
  b.key_width = width;
  Py_ssize_t i = vacant(r, which);
  if (i == -2) return NULL;
  uint64_t most = (uint64_t)INT64_MAX / 4;
  if (!r->filed || (width != 4 && width != 8) || b.start > most || b.end > most || b.key_ends > most ||
      b.key_data > most || b.key_nbytes > most) {
    PyErr_SetString(PyExc_ValueError, "not places in a file");
    return NULL;
  }
  if (i >= 0) r->filed[i] = b;
  Py_RETURN_NONE;
}

/* Copy the first rows of the batches, and say what they have in common. -1: exception. */
static int layout(row_columns *r, PyObject *first) {
  Py_buffer view;
  if (PyObject_GetBuffer(first, &view, PyBUF_FORMAT | PyBUF_ND)) return -1;
  bool good = view.itemsize == 8 && view.len >= 8 && number(&view, 0) == 0;
  r->nbatches = good ? (size_t)view.len / 8 - 1 : 0;
  r->first = PyMem_Malloc((r->nbatches + 1) * 8);
  r->batches = PyMem_Calloc(r->nbatches + 1, sizeof *r->batches);
  bool room = r->first && r->batches;
  if (good && room) memcpy(r->first, view.buf, (r->nbatches + 1) * 8);
  PyBuffer_Release(&view);
  for (size_t i = 0; good && room && i < r->nbatches; i++)
    good = r->first[i] < r->first[i + 1] && r->first[i + 1] <= INT64_MAX / 64;
  if (!room) PyErr_NoMemory();
  else if (!good) PyErr_SetString(PyExc_ValueError, "not the first rows of batches");
  if (!room || !good) return -1;
  r->nrows = r->first[r->nbatches];
  r->batch_rows = r->nbatches ? r->first[1] : 0;
  for (size_t i = 0; r->batch_rows && i < r->nbatches; i++) {
    size_t n = r->first[i + 1] - r->first[i];
    if (n > r->batch_rows || (n < r->batch_rows && i + 1 < r->nbatches)) r->batch_rows = 0;
  }
  return 0;
}

/* shard_ends, fd: NULL and -1, or both there. */
static row_columns *columns_new(PyObject *first, PyObject *shard_nbytes, PyObject *shard_ends, int fd) {
  row_columns *r = PyMem_Calloc(1, sizeof *r);
  if (!r) return (row_columns *)PyErr_NoMemory();
  r->refs = 1, r->fd = -1;
  if (layout(r, first) || PyObject_GetBuffer(shard_nbytes, &r->shard_nbytes, PyBUF_FORMAT | PyBUF_ND)) goto fail;
  if (r->shard_nbytes.itemsize != 8) {
    PyErr_SetString(PyExc_ValueError, "sizes of shards that are not of 64 bits");
    goto fail;
  }
  if (fd >= 0 && shard_ends) {
    if (PyObject_GetBuffer(shard_ends, &r->shard_ends, PyBUF_FORMAT | PyBUF_ND)) goto fail;
    if (r->shard_ends.itemsize != 8 || r->shard_ends.len != r->shard_nbytes.len) {
      PyErr_SetString(PyExc_ValueError, "not one end for every shard");
      goto fail;
    }
    if (!(r->filed = PyMem_Calloc(r->nbatches + 1, sizeof *r->filed))) {
      PyErr_NoMemory();
      goto fail;
    }
    if ((r->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0) {
      raise_errno(errno, NULL);
      goto fail;
    }
  }
  return r;
fail:
  rows_release(r);
  return NULL;
}

static PyObject *rows_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"first", "shard_nbytes", "shard_ends", "fd", NULL};
  PyObject *first, *shard_nbytes, *shard_ends = NULL;
  int fd = -1;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|Oi", names, &first, &shard_nbytes, &shard_ends, &fd)) return NULL;
  row_columns *r = columns_new(first, shard_nbytes, shard_ends, fd);
  if (!r) return NULL;
  RowsObject *self = (RowsObject *)type->tp_alloc(type, 0);
  if (self) self->rows = r;
  else rows_release(r);
  return (PyObject *)self;
}

/* Not a container for the collector: nothing leads from the buffers back to it, and before CPython 3.11.10 and 3.12.6
 * the collector cleared memoryviews that were still exported (gh-77894). */
static void rows_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  rows_release(((RowsObject *)op)->rows);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyMethodDef rows_methods[] = {
    {"put", (PyCFunction)(void (*)(void))rows_put, METH_FASTCALL,
     "put(number, shard, start, end, key_ends, key_data): the columns of a batch, which stay those that were put first"},
    {"put_at", rows_put_at, METH_VARARGS,
     "put_at(number, start, end, key_ends, key_data, key_nbytes, key_width): where they begin in the file; "
     "key_width: 4 or 8 bytes for an end of a key"},
    {"locate", rows_locate, METH_O,
     "locate(row): (key, shard, start, end), or None where the batch is not there; ValueError where it is not sound"},
    {"key", rows_key, METH_O, "key(row): the key; otherwise as locate"},
    {NULL, NULL, 0, NULL}};
static PyType_Slot rows_slots[] = {
    {Py_tp_doc, "Rows(first, shard_nbytes, shard_ends=..., fd=-1): the columns of an index that rows are found in. first: u64, "
                "the first row of every batch and the end; fd: the file of put_at, of which a copy is held; shard_ends: for "
                "put_at, the row behind the last of each shard"},
    {Py_tp_new, rows_new},
    {Py_tp_dealloc, rows_dealloc},
    {Py_tp_methods, rows_methods},
    {0, NULL}};
PyType_Spec rows_spec = {"wdstools._core.Rows", sizeof(RowsObject), 0, Py_TPFLAGS_DEFAULT, rows_slots};
