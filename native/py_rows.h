/* py_rows.h: the columns of an index that rows are found in, batch by batch: in memory, or as places in its file. */
#ifndef WDS_PY_ROWS_H
#define WDS_PY_ROWS_H

#include "module.h"

/* A batch in memory. */
typedef struct {
  Py_buffer shard, start, end, key_ends, key_data;
  Py_ssize_t nrows;
} row_batch;
enum { BATCH_COLUMNS = 5 };

/* A batch in the file: the offsets of its columns. The shards of its rows follow from their numbers of samples. */
typedef struct {
  uint64_t start, end, key_ends, key_data, key_nbytes;
  uint8_t key_width; /* of an offset of a key: 4 or 8; 0: this batch is not attached */
} file_batch;

/* Of all batches; each is attached when a row of it is first asked for, and then stays as it is. Under the GIL. A read
 * that lets go of the GIL holds on to them by refs. */
typedef struct {
  row_batch **batches; /* NULL: not attached, or in the file */
  file_batch *filed;   /* NULL without a file */
  uint64_t *first;     /* the first row of every batch, and the end */
  size_t nbatches, nrows, refs;
  size_t batch_rows; /* of every batch but the last; 0: they differ */
  Py_buffer shard_nbytes, shard_ends; /* shard_ends: of the rows of every shard; with a file only */
  int fd; /* our own, or -1 */
} row_columns;

typedef struct {
  PyObject_HEAD
  row_columns *rows;
} RowsObject;

void rows_release(row_columns *r); /* may be NULL */

/* Where a row lies. The key is somewhere in the columns, in room, or in heap. */
typedef struct {
  uint64_t shard, start, end;
  const char *key;
  size_t key_len;
  char room[256], *heap;
} row_found;
enum { ROW_ERROR = -1, ROW_NOT_ATTACHED = 0, ROW_FOUND = 1 };

/* Look a row up, in memory or in the file, where it may let go of the GIL. ROW_ERROR: exception, ValueError where the
 * row is not sound. ROW_FOUND: the key is to be let go of by row_done while the columns are still held. */
int find_row(row_columns *r, size_t row, row_found *found, bool key_only);
void row_done(row_found *found);

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

/* The number of the batch of a row before the end. */
static inline size_t batch_of(const row_columns *r, size_t row) {
  if (r->batch_rows) return row / r->batch_rows;
  size_t low = 0, high = r->nbatches;
  while (high - low > 1) {
    size_t middle = low + (high - low) / 2;
    if (r->first[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

/* The batch of a row, and the row within it; NULL past the end, and where it is not in memory: ask Python. */
static inline const row_batch *find_batch(const row_columns *r, size_t *row) {
  if (*row >= r->nrows) return NULL;
  size_t i = batch_of(r, *row);
  if (r->batches[i]) *row -= r->first[i];
  return r->batches[i];
}

#endif
