/* py_read.h: what SampleReader's files share. */
#ifndef WDS_PY_READ_H
#define WDS_PY_READ_H

#include "module.h"
#include "py_rows.h"

typedef struct {
  PyObject_HEAD
  builder make;
  row_columns *rows;      /* or NULL */
  unsigned char *scratch; /* recycled */
  size_t scratch_cap;
  unsigned char *group;   /* recycled, of read_rows */
  uint64_t head, tail;    /* bytes before and after the largest payload in the last sample beyond WHOLE */
  unsigned alike;         /* how many in a row had these */
  bool busy;              /* a read uses make and scratch; it may have let go of the GIL */
} ReaderObject;

enum { WHOLE = 64 << 10, NOWAIT = 16 << 10 }; /* samples up to WHOLE are one read; up to NOWAIT is tried with the GIL */

/* Where a sample lies, and what it must be. */
typedef struct {
  int fd;
  uint64_t shard, start, end;
  const char *key;
  size_t key_len;
  PyObject *url, *local_path; /* borrowed; local_path may be None */
  char *own_key;              /* of a key that is not in memory: key points at it; or NULL */
} sample_at;

typedef struct later later; /* reads that are left to the end of a batch */

/* A large sample that was read in three parts, by what the ones before it were like. */
typedef struct {
  const unsigned char *head, *tail;
  uint64_t head_len, tail_len;
  PyObject *value; /* bytes: the payload and its padding */
} guess;

/* One read. Bytes [at, at + len) of the shard are in buf. */
typedef struct {
  builder *make;
  PyObject *backing; /* the bytes object that buf belongs to, and views keep alive; or NULL */
  unsigned char *buf;
  size_t cap, len;
  uint64_t start, end, at;
  int fd;
  later *later; /* or NULL */
  guess *guess; /* or NULL */
  uint64_t largest, largest_at; /* nbytes and offset of the largest payload that was read apart */
} read_call;

/* py_parse.c */
/* The sample in bytes [start, end) of a shard, which must have the key: out of data, or of backing, a bytes object that
 * views keep alive, where they are there, else from at->fd. A new reference. */
PyObject *read_sample(ReaderObject *self, const sample_at *at, const unsigned char *data, PyObject *backing, later *later);
/* The same out of a guess, whose value it takes. NULL without an exception: the sample is not like that. */
PyObject *read_guessed(ReaderObject *self, const sample_at *at, guess *g);

/* py_read.c */
/* files: per shard None or (fd, url, local_path, ...); *file is a new reference to the one of this row, and at->own_key is
 * to be freed (PyMem_RawFree). r, which may be NULL, is held by the caller: the GIL may be let go of. 0: not as simple as
 * that, let Python see to it; -1: exception. */
int locate_row(row_columns *r, PyObject *row, PyObject *files, sample_at *at, PyObject **file);

/* py_batch.c */
PyObject *reader_read_rows(PyObject *op, PyObject *const *args, Py_ssize_t nargs);
/* Take over to fill value (bytes) from pos on, before the batch is handed out. False: the caller is to do it. */
bool later_read(later *l, int fd, PyObject *value, uint64_t pos);
void later_is_cold(later *l); /* something was not in the page cache */

#endif
