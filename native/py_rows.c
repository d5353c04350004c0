/* py_rows.c: taking hold of the columns of an index, and letting go of them. */
#include "py_rows.h"

void batch_free(row_batch *b) {
  if (!b) return;
  Py_buffer *all[BATCH_COLUMNS] = {&b->shard, &b->start, &b->end, &b->key_ends, &b->key_data};
  for (size_t i = 0; i < BATCH_COLUMNS; i++)
    if (all[i]->obj) PyBuffer_Release(all[i]);
  PyMem_Free(b);
}

void rows_release(row_columns *r) {
  if (!r || --r->refs) return;
  for (size_t i = 0; i < r->nbatches; i++) batch_free(r->batches[i]);
  if (r->shard_nbytes.obj) PyBuffer_Release(&r->shard_nbytes);
  PyMem_Free(r->batches);
  PyMem_Free(r);
}

row_batch *batch_new(PyObject *const *args) {
  row_batch *b = PyMem_Calloc(1, sizeof *b);
  if (!b) return (row_batch *)PyErr_NoMemory();
  Py_buffer *all[BATCH_COLUMNS] = {&b->shard, &b->start, &b->end, &b->key_ends, &b->key_data};
  for (int i = 0; i < BATCH_COLUMNS; i++)
    if (PyObject_GetBuffer(args[i], all[i], PyBUF_FORMAT | PyBUF_ND)) goto fail;
  b->nrows = b->shard.len / 4;
  if (b->shard.itemsize == 4 && b->start.itemsize == 8 && b->end.itemsize == 8 &&
      (b->key_ends.itemsize == 4 || b->key_ends.itemsize == 8) && b->start.len == b->nrows * 8 &&
      b->end.len == b->nrows * 8 && b->key_ends.len >= (b->nrows + 1) * b->key_ends.itemsize)
    return b;
  PyErr_SetString(PyExc_ValueError, "columns that do not go together");
fail:
  batch_free(b);
  return NULL;
}

int add_batch(row_columns *r, row_batch *b) {
  row_batch **grown = PyMem_Realloc(r->batches, (r->nbatches + 1) * sizeof *grown);
  if (!grown) {
    PyErr_NoMemory();
    return -1;
  }
  r->batches = grown;
  r->batches[r->nbatches++] = b;
  return 0;
}
