/* py_rows.h: the columns of an index that SampleReader finds rows in, batch by batch, as they lie in the file. */
#ifndef WDS_PY_ROWS_H
#define WDS_PY_ROWS_H

#include "module.h"

typedef struct {
  Py_buffer shard, start, end, key_ends, key_data;
  Py_ssize_t nrows;
} row_batch;
enum { BATCH_COLUMNS = 5 };

/* Of all batches; all but the last have as many rows as the first. A read holds on to those that it began with. */
typedef struct {
  row_batch **batches;
  size_t nbatches, refs;
  Py_buffer shard_nbytes;
} row_columns;

/* Buffers of u32, u64, u64, i32 or i64, bytes. NULL: exception. */
row_batch *batch_new(PyObject *const *args);
void batch_free(row_batch *b); /* may be NULL */
int add_batch(row_columns *r, row_batch *b); /* takes it over; -1: exception, and does not */
void rows_release(row_columns *r);           /* may be NULL */

/* A number of a column that came from a file: it need not be aligned. */
static inline uint64_t number(const Py_buffer *column, size_t i) {
  uint32_t narrow;
  uint64_t wide;
  if (column->itemsize == 8) memcpy(&wide, (char *)column->buf + 8 * i, sizeof wide);
  else memcpy(&narrow, (char *)column->buf + 4 * i, sizeof narrow), wide = narrow;
  return wide;
}

/* Where the key of a row lies in key_data; false where the offsets are none (negative ones are too large). */
static inline bool find_key(const row_batch *batch, size_t row, const char **key, size_t *len) {
  uint64_t a = number(&batch->key_ends, row), b = number(&batch->key_ends, row + 1);
  if (a > b || b > (uint64_t)batch->key_data.len) return false;
  *key = (const char *)batch->key_data.buf + a, *len = (size_t)(b - a);
  __builtin_prefetch(*key); /* it is looked at after the read */
  return true;
}

/* The batch of a row, and the row within it; NULL past the end. */
static inline const row_batch *find_batch(const row_columns *r, size_t *row) {
  size_t n = r->nbatches ? (size_t)r->batches[0]->nrows : 0, i = 0;
  if (*row >= n && n) i = *row / n, *row -= i * n;
  return i < r->nbatches && *row < (size_t)r->batches[i]->nrows ? r->batches[i] : NULL;
}

#endif
