/* py_batch.c: SampleReader.read_rows, many samples in one call. Rows are read in the order in which they lie in their
 * shards; helper threads read ahead of the parsing; a disk is kept at depth by asking for what comes. */
#include <stdlib.h>

#include "batchio.h"
#include "py_read.h"

enum {
  GROUP_ROWS = 256,          /* read and parsed before the next ones */
  GROUP_BYTES = 2 << 20,     /* of samples up to WHOLE, in scratch */
  GROUP_LARGE = 256 << 20,   /* of larger ones */
  GAP = 8 << 10,             /* neighbours are one read where no more than this lies between them */
  ONE_READ = 256 << 10,      /* at most, of neighbours */
  JOBS = 2 * GROUP_ROWS,
  ALIKE = 4,                 /* large samples in a row, after which the next are thought to be like them */
  FEW_BYTES = 32 << 10,      /* up to this, helpers are not worth waking */
};
#define AHEAD_BYTES ((uint64_t)64 << 20) /* asked of the kernel ahead of the reading, where it is not in the page cache */

typedef struct {
  sample_at at;
  Py_ssize_t place; /* in what was asked for */
  PyObject *file;
  size_t job;           /* SIZE_MAX: none */
  PyObject *backing;
  guess guess;
} plan_row;

struct later {
  ReaderObject *self;
  batch *jobs;
  PyObject *values[JOBS]; /* by job: what it fills, of which row; or NULL */
  size_t row_of[JOBS];
  plan_row *rows;
  size_t nrows, now, advised; /* now: the row that is being read; rows [.., advised) have been asked for */
  uint64_t advised_bytes;     /* of rows [now, advised) */
  size_t helpers;
  bool cold;
};

static uint64_t size_of(const plan_row *row) { return row->at.end - row->at.start; }

static int in_order(const void *a, const void *b) {
  const plan_row *x = a, *y = b;
  if (x->at.shard != y->at.shard) return x->at.shard < y->at.shard ? -1 : 1;
  return x->at.start < y->at.start ? -1 : x->at.start > y->at.start;
}

/* Have the kernel read what comes next, at least half a window of it. */
static void advise(later *l) {
  if (l->advised < l->now) l->advised = l->now, l->advised_bytes = 0;
  if (l->advised == l->nrows || l->advised_bytes > AHEAD_BYTES / 2) return;
  Py_BEGIN_ALLOW_THREADS
  while (l->advised < l->nrows && l->advised_bytes < AHEAD_BYTES) {
    const plan_row *row = &l->rows[l->advised++];
    batch_advise(row->at.fd, row->at.start, size_of(row));
    l->advised_bytes += size_of(row);
  }
  Py_END_ALLOW_THREADS
}

void later_is_cold(later *l) {
  l->cold = true;
  advise(l);
}

static void next_row(later *l, size_t row) {
  if (l->advised > l->now) l->advised_bytes -= size_of(&l->rows[l->now]);
  l->now = row;
  if (l->cold || batch_is_cold(l->jobs)) later_is_cold(l);
}

bool later_read(later *l, int fd, PyObject *value, uint64_t pos) {
  size_t n = (size_t)PyBytes_GET_SIZE(value);
  if (n <= NOWAIT) return false;
  struct iovec to = {PyBytes_AS_STRING(value), n};
  size_t job = batch_post(l->jobs, fd, &to, 1, pos);
  if (job == SIZE_MAX) return false;
  l->values[job] = Py_NewRef(value), l->row_of[job] = l->now;
  batch_wake(l->jobs, l->helpers);
  return true;
}

/* Run a job that is ours. */
static void run(later *l, size_t job) {
  bool cached;
  if (batch_at(l->jobs, job)->n <= NOWAIT) {
    cached = batch_run_cached(l->jobs, job);
  } else {
    Py_BEGIN_ALLOW_THREADS
    cached = batch_run_cached(l->jobs, job);
    Py_END_ALLOW_THREADS
  }
  if (cached) return;
  later_is_cold(l);
  Py_BEGIN_ALLOW_THREADS
  batch_run(l->jobs, job);
  Py_END_ALLOW_THREADS
}

/* Have a job done; others that nobody has begun come first. */
static void finish(later *l, size_t job) {
  while (!batch_done(l->jobs, job)) {
    size_t ours = batch_claim(l->jobs);
    if (ours != SIZE_MAX) {
      run(l, ours);
      continue;
    }
    Py_BEGIN_ALLOW_THREADS
    batch_wait(l->jobs, job);
    Py_END_ALLOW_THREADS
  }
}

/* Read a large row as the ones before it were: its headers into scratch, its payload into a value. 0, or -1: exception. */
static int post_guess(later *l, plan_row *row, unsigned char *scratch, size_t *used) {
  const ReaderObject *self = l->self;
  uint64_t around = self->head + self->tail, size = size_of(row);
  if (self->alike < ALIKE || around > NOWAIT || *used + around > GROUP_BYTES || size <= around + NOWAIT) return 0;
  guess *g = &row->guess;
  if (!(g->value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size - around)))) return -1;
  g->head = scratch + *used, g->tail = g->head + self->head, g->head_len = self->head, g->tail_len = self->tail;
  struct iovec to[BATCH_PARTS] = {{scratch + *used, (size_t)self->head},
                                  {PyBytes_AS_STRING(g->value), (size_t)(size - around)},
                                  {scratch + *used + self->head, (size_t)self->tail}};
  row->job = batch_post(l->jobs, row->at.fd, to, BATCH_PARTS, row->at.start);
  *used += (size_t)around;
  return 0;
}

/* Post the reads of the rows [from, *to) of the next group. scratch has GROUP_BYTES. -1: exception. */
static int post(later *l, unsigned char *scratch, size_t from, size_t *to) {
  size_t used = 0, bytes = 0, large = 0, i = from;
  bool views = l->self->make.views;
  while (i < l->nrows && i - from < GROUP_ROWS && large < GROUP_LARGE) {
    plan_row *row = &l->rows[i];
    uint64_t start = row->at.start, end = row->at.end;
    size_t n = (size_t)(end - start), first = i++;
    row->job = SIZE_MAX;
    if (n > WHOLE) {
      large += n;
      if (!views) { /* read_sample looks at its headers, and leaves its payloads to us */
        if (post_guess(l, row, scratch, &used)) return -1;
        if (row->job != SIZE_MAX) bytes += n;
        continue;
      }
      if (!(row->backing = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n))) return -1;
      struct iovec to = {PyBytes_AS_STRING(row->backing), n};
      row->job = batch_post(l->jobs, row->at.fd, &to, 1, start);
      bytes += n;
      continue;
    }
    if (used + ONE_READ > GROUP_BYTES) {
      i--;
      break;
    }
    for (; i < l->nrows && i - from < GROUP_ROWS; i++) {
      const plan_row *next = &l->rows[i];
      uint64_t until = next->at.end > end ? next->at.end : end;
      if (next->at.shard != row->at.shard || next->at.start > end + GAP || size_of(next) > WHOLE || until - start > ONE_READ) break;
      end = until;
    }
    struct iovec to = {scratch + used, (size_t)(end - start)};
    size_t job = batch_post(l->jobs, row->at.fd, &to, 1, start);
    for (size_t k = first; k < i; k++) l->rows[k].job = job;
    used += (size_t)(end - start), bytes += (size_t)(end - start);
  }
  *to = i;
  if (bytes > FEW_BYTES) batch_wake(l->jobs, l->helpers);
  return 0;
}

/* The sample of a row whose job, if it has one, is done. What its job could not read is read anew, which tells why. */
static PyObject *parse(later *l, plan_row *row) {
  const batch_job *j = row->job == SIZE_MAX ? NULL : batch_at(l->jobs, row->job);
  if (!j) {
    PyObject *sample = read_sample(l->self, &row->at, NULL, NULL, l);
    if (sample) return sample;
    PyErr_Clear(); /* what it left to us may have been wrong before that */
    return read_sample(l->self, &row->at, NULL, NULL, NULL);
  }
  if (j->error || j->got < (size_t)(row->at.end - j->pos)) return read_sample(l->self, &row->at, NULL, NULL, NULL);
  if (row->backing) return read_sample(l->self, &row->at, NULL, row->backing, NULL);
  if (row->guess.value) {
    PyObject *sample = read_guessed(l->self, &row->at, &row->guess);
    return sample ? sample : read_sample(l->self, &row->at, NULL, NULL, NULL);
  }
  return read_sample(l->self, &row->at, (unsigned char *)j->to[0].iov_base + (row->at.start - j->pos), NULL, NULL);
}

static int put(PyObject *found, const plan_row *row, PyObject *sample) {
  return sample ? PyList_SetItem(found, row->place, sample) : -1;
}

/* Have all reads of a group, and the samples of those that failed anew, which tells why. -1: exception. */
static int settle(later *l, PyObject *found) {
  size_t njobs = batch_posted(l->jobs);
  for (size_t job = 0; job < njobs; job++) {
    finish(l, job);
    const batch_job *j = batch_at(l->jobs, job);
    if (!l->values[job]) continue;
    Py_CLEAR(l->values[job]);
    if (!j->error && j->got == j->n) continue;
    const plan_row *row = &l->rows[l->row_of[job]];
    if (put(found, row, read_sample(l->self, &row->at, NULL, NULL, NULL))) return -1;
  }
  return 0;
}

static int read_groups(later *l, unsigned char *scratch, PyObject *found) {
  for (size_t from = 0, to; from < l->nrows; from = to) {
    if (post(l, scratch, from, &to)) return -1;
    for (size_t i = from; i < to; i++) {
      plan_row *row = &l->rows[i];
      next_row(l, i);
      if (row->job != SIZE_MAX) finish(l, row->job);
      if (put(found, row, parse(l, row))) return -1;
      Py_CLEAR(row->backing);
      Py_CLEAR(row->guess.value);
    }
    if (settle(l, found)) return -1;
    batch_reset(l->jobs);
    if (PyErr_CheckSignals()) return -1;
  }
  return 0;
}

/* Where the rows lie, in order; places that are for Python go into left. -1: exception. */
static int plan(later *l, row_columns *r, PyObject *numbers, PyObject *files, PyObject *left) {
  for (Py_ssize_t i = 0, n = PyTuple_GET_SIZE(numbers); i < n; i++) {
    plan_row *row = &l->rows[l->nrows];
    PyObject *number_of_row = PyTuple_GET_ITEM(numbers, i);
    *row = (plan_row){.place = i};
    int located = PyLong_Check(number_of_row) ? locate_row(r, number_of_row, files, &row->at, &row->file) : 0;
    if (located > 0) {
      l->nrows++;
      continue;
    }
    if (located < 0 && !PyErr_ExceptionMatches(PyExc_OverflowError)) return -1;
    PyErr_Clear();
    PyObject *place = PyLong_FromSsize_t(i);
    int failed = !place || PyList_Append(left, place);
    Py_XDECREF(place);
    if (failed) return -1;
  }
  qsort(l->rows, l->nrows, sizeof *l->rows, in_order);
  return 0;
}

static PyObject *none_list(Py_ssize_t n) {
  PyObject *list = PyList_New(n);
  for (Py_ssize_t i = 0; list && i < n; i++) PyList_SET_ITEM(list, i, Py_NewRef(Py_None));
  return list;
}

/* malloc gives the top of its heap back to the kernel beyond what it has learnt from the largest block that was freed
 * (glibc, mallopt(3), M_TRIM_THRESHOLD). Payloads of a batch would be faulted in anew for every batch, which costs more
 * than reading them. */
static void teach_malloc(const later *l) {
  static size_t taught;
  const size_t most = (size_t)31 << 20; /* of what is learnt from: M_MMAP_THRESHOLD_MAX */
  uint64_t large = 0;
  for (size_t i = 0; i < l->nrows; i++)
    if (size_of(&l->rows[i]) > WHOLE) large += size_of(&l->rows[i]);
  size_t n = large > most ? most : (size_t)large;
  if (n > taught) PyMem_RawFree(PyMem_RawMalloc(taught = n));
}

static PyObject *read_planned(later *l, PyObject *found) {
  ReaderObject *self = l->self;
  unsigned char *scratch = self->group ? self->group : PyMem_RawMalloc(GROUP_BYTES);
  self->group = NULL;
  l->jobs = batch_new_jobs(JOBS);
  int failed = -1;
  if (!scratch || !l->jobs) PyErr_NoMemory();
  else teach_malloc(l), failed = read_groups(l, scratch, found);
  Py_BEGIN_ALLOW_THREADS
  batch_free_jobs(l->jobs); /* nothing is written to any more */
  Py_END_ALLOW_THREADS
  for (size_t i = 0; i < JOBS; i++) Py_XDECREF(l->values[i]);
  if (self->group) PyMem_RawFree(scratch);
  else self->group = scratch;
  return failed ? NULL : found;
}

static void let_go(plan_row *row) {
  PyMem_RawFree(row->at.own_key);
  Py_DECREF(row->file);
  Py_XDECREF(row->backing);
  Py_XDECREF(row->guess.value);
}

PyObject *reader_read_rows(PyObject *op, PyObject *const *args, Py_ssize_t nargs) {
  ReaderObject *self = (ReaderObject *)op;
  if (nargs != 2 || !PyList_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "read_rows(rows: sequence, files: list)");
    return NULL;
  }
  PyObject *numbers = PySequence_Tuple(args[0]), *result = NULL; /* nobody else changes it */
  if (!numbers) return NULL;
  Py_ssize_t n = PyTuple_GET_SIZE(numbers);
  PyObject *found = none_list(n), *left = PyList_New(0);
  later *l = PyMem_Calloc(1, sizeof *l);
  plan_row *rows = PyMem_Malloc(n ? (size_t)n * sizeof *rows : 1);
  row_columns *r = self->rows;
  if (r) r->refs++; /* the keys are in them */
  if (!l || !rows) PyErr_NoMemory();
  if (found && left && l && rows) {
    l->self = self, l->rows = rows, l->helpers = batch_cpus() - 1;
    if (!plan(l, r, numbers, args[1], left) && (!l->nrows || read_planned(l, found))) result = PyTuple_Pack(2, found, left);
    for (size_t i = 0; i < l->nrows; i++) let_go(&rows[i]);
  }
  rows_release(r);
  PyMem_Free(rows);
  PyMem_Free(l);
  Py_XDECREF(found);
  Py_XDECREF(left);
  Py_DECREF(numbers);
  return result;
}
