/* py_survey.c: survey, what is left of a shard as columns, a member a row; with its checksums, if they are asked for. */
#include "checksum.h"
#include "module.h"
#include "survey.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { CHUNK = 256 << 10 }; /* stays in the second level cache between reading and hashing */

/* A window over a shard, whose bytes are summed up in order as they pass by: what is jumped over is read for it. */
typedef struct {
  file_window window; /* first: the bio's owner */
  reading_sums sums;
  unsigned char *chunk;
} summing_window;

/* Sum up what is not yet before `end`, or before the end of the file. Returns 0 or an errno. */
static int sum_until(summing_window *s, uint64_t end) {
  while (s->sums.pos < end) {
    uint64_t left = end - s->sums.pos;
    ssize_t n = pread_full(s->window.fd, s->chunk, left < CHUNK ? (size_t)left : CHUNK, s->sums.pos);
    if (n < 0) return errno;
    if (!n) return 0;
    reading_sums_add(&s->sums, s->chunk, (size_t)n);
  }
  return 0;
}

static int summing_more(bio *b) {
  summing_window *s = b->owner;
  int error = bio_window_more(b);
  uint64_t from = b->cur_pos, end = from + b->cur->len;
  if (error || end <= s->sums.pos) return error;
  if ((error = sum_until(s, from))) return error;
  size_t known = (size_t)(s->sums.pos - from);
  if (s->sums.pos >= from && known < b->cur->len) reading_sums_add(&s->sums, b->cur->data + known, b->cur->len - known);
  return 0;
}

static int put(PyObject *dict, const char *name, PyObject *value) {
  int failed = value ? PyDict_SetItemString(dict, name, value) : -1;
  Py_XDECREF(value);
  return failed;
}

static int put_bytes(PyObject *dict, const char *name, const bytes_vec *v) {
  return put(dict, name, PyBytes_FromStringAndSize((const char *)v->data, (Py_ssize_t)v->len));
}

static int put_count(PyObject *dict, const char *name, uint64_t n) {
  return put(dict, name, PyLong_FromUnsignedLongLong(n));
}

static PyObject *marks_to_list(const bytes_vec *v) {
  const survey_mark *marks = (const void *)v->data;
  Py_ssize_t n = (Py_ssize_t)(v->len / sizeof *marks);
  PyObject *list = PyList_New(n);
  for (Py_ssize_t i = 0; list && i < n; i++) {
    const survey_mark *m = marks + i;
    PyObject *item = Py_BuildValue("(KKKKKz)", (unsigned long long)m->kind, (unsigned long long)m->from,
                                   (unsigned long long)m->at, (unsigned long long)m->end,
                                   (unsigned long long)m->before, m->reason);
    if (!item) Py_CLEAR(list);
    else PyList_SET_ITEM(list, i, item);
  }
  return list;
}

static PyObject *survey_to_dict(const survey *s) {
  PyObject *d = PyDict_New();
  if (d && (put_bytes(d, "names", &s->names) || put_bytes(d, "name_ends", &s->name_ends) ||
            put_bytes(d, "types", &s->types) || put_bytes(d, "flags", &s->flags) || put_bytes(d, "starts", &s->starts) ||
            put_bytes(d, "headers", &s->headers) || put_bytes(d, "offsets", &s->offsets) ||
            put_bytes(d, "nbytes", &s->nbytes) || put_bytes(d, "key_lens", &s->key_lens) ||
            put_bytes(d, "hashes", &s->hashes) || put_bytes(d, "codes", &s->codes) || put_bytes(d, "exts", &s->exts) ||
            put_bytes(d, "ext_ends", &s->ext_ends) || put(d, "marks", marks_to_list(&s->marks)) ||
            put_count(d, "size", s->nbytes_total) || put_count(d, "pax_members", s->pax_members) ||
            put_count(d, "pax_bytes", s->pax_bytes)))
    Py_CLEAR(d);
  return d;
}

static PyObject *summed_survey(int fd, summing_window *w) {
  PyObject *result = NULL, *sums = NULL;
  survey s = {0};
  struct stat about;
  bio b = {0};
  int error = 0;
  if (fstat(fd, &about)) return PyErr_SetFromErrno(PyExc_OSError);
  if (!S_ISREG(about.st_mode)) {
    PyErr_SetString(PyExc_ValueError, "only a regular file is surveyed and summed up at once");
    return NULL;
  }
  if (!bio_open_window(&b, &w->window, fd, (uint64_t)about.st_size) || !reading_sums_open(&w->sums) ||
      !(w->chunk = malloc(CHUNK)))
    error = ENOMEM;
  b.more = summing_more;
  if (!error) {
    Py_BEGIN_ALLOW_THREADS
    error = survey_shard(&b, &s);
    if (!error) error = sum_until(w, UINT64_MAX);
    Py_END_ALLOW_THREADS
  }
  if (error == ENOMEM) PyErr_NoMemory();
  else if (error) raise_errno(error, NULL);
  else reading_sums_finish(&w->sums);
  if (!error && (result = survey_to_dict(&s)))
    sums = Py_BuildValue("(KKy#)", (unsigned long long)w->sums.pos, (unsigned long long)w->sums.shard,
                         (const char *)w->sums.out, (Py_ssize_t)w->sums.done * 8);
  if (result && put(result, "sums", sums)) Py_CLEAR(result);
  free(w->chunk);
  reading_sums_close(&w->sums);
  bio_close_window(&b, &w->window);
  survey_free(&s);
  return result;
}

PyObject *core_survey_sums(PyObject *Py_UNUSED(module), PyObject *args) {
  int fd;
  Py_buffer starts = {0}, ends = {0};
  summing_window w = {0};
  if (!PyArg_ParseTuple(args, "iy*y*", &fd, &starts, &ends)) return NULL;
  w.sums.n = (size_t)starts.len / 8;
  w.sums.starts = starts.buf, w.sums.ends = ends.buf;
  PyObject *result = NULL;
  if (starts.len != ends.len || starts.len % 8 || !reading_sums_sound(&w.sums))
    PyErr_SetString(PyExc_ValueError, "starts and ends must be as many 64-bit numbers, of samples that are apart");
  else if (!(w.sums.out = malloc((size_t)starts.len + 1))) PyErr_NoMemory();
  else result = summed_survey(fd, &w);
  free(w.sums.out);
  PyBuffer_Release(&starts);
  PyBuffer_Release(&ends);
  return result;
}

PyObject *core_survey(PyObject *module, PyObject *args) {
  core_state *st = PyModule_GetState(module);
  PyObject *source, *result = NULL;
  header_source h = {0};
  survey s = {0};
  int error;
  if (!PyArg_ParseTuple(args, "O", &source)) return NULL;
  if (headers_open(&h, st, source)) return NULL;
  if (h.sequential) { /* its `more` needs the GIL, and lets it go while it waits */
    error = survey_shard(headers_bio(&h), &s);
  } else {
    Py_BEGIN_ALLOW_THREADS
    error = survey_shard(headers_bio(&h), &s);
    Py_END_ALLOW_THREADS
  }
  if (!error) result = survey_to_dict(&s);
  else if (error == ENOMEM) PyErr_NoMemory();
  else if (error != BIO_EXCEPTION) raise_errno(error, NULL);
  survey_free(&s);
  headers_close(&h);
  return result;
}
