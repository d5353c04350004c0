/* py_check.c: checksums(), of a shard and of its samples; crc32c(). */
#include "checksum.h"
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

enum { CHUNK = 256 << 10 }; /* stays in the second level cache between reading and hashing */

/* Returns 0 or an errno. Needs no GIL. */
static int sum_file(int fd, reading_sums *s) {
  unsigned char *buf = malloc(CHUNK);
  ssize_t n = 0;
  int error = 0;
  if (!buf) return ENOMEM;
#ifdef POSIX_FADV_SEQUENTIAL
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint */
#endif
  while (!error && (n = pread_full(fd, buf, CHUNK, s->pos)) > 0) reading_sums_add(s, buf, (size_t)n);
  if (n < 0) error = errno;
  free(buf);
  return error;
}

static int sum_source(py_source *source, reading_sums *s) {
  for (;;) {
    const unsigned char *p;
    size_t avail;
    int error = bio_peek(&source->b, 1, &p, &avail);
    if (error || !avail) return error;
    Py_BEGIN_ALLOW_THREADS
    reading_sums_add(s, p, avail);
    Py_END_ALLOW_THREADS
    source->b.pos += avail;
  }
}

static int check_places(const reading_sums *s) {
  if (reading_sums_sound(s)) return 0;
  PyErr_SetString(PyExc_ValueError, "samples must be ascending, apart and not empty");
  return -1;
}

static int sum_all(core_state *st, PyObject *given, PyObject *url, reading_sums *s) {
  struct stat about;
  int fd = PyLong_Check(given) ? PyObject_AsFileDescriptor(given) : -1, error;
  if (fd < 0 && PyErr_Occurred()) return -1;
  if (fd >= 0 && !fstat(fd, &about) && S_ISREG(about.st_mode)) {
    Py_BEGIN_ALLOW_THREADS
    error = sum_file(fd, s);
    Py_END_ALLOW_THREADS
    if (error) raise_errno(error, url);
    return error ? -1 : 0;
  }
  py_source source;
  if (source_open(&source, st, given, NULL, 0, BLOCK_BYTES)) return -1;
  error = sum_source(&source, s);
  if (error) source_error(&source, error, url);
  source_close(&source);
  return error ? -1 : 0;
}

PyObject *core_checksums(PyObject *module, PyObject *args) {
  PyObject *given, *url, *result = NULL;
  Py_buffer starts = {0}, ends = {0};
  reading_sums s = {0};
  if (!PyArg_ParseTuple(args, "OUy*y*", &given, &url, &starts, &ends)) return NULL;
  s.n = (size_t)starts.len / 8;
  PyObject *out = NULL;
  if (starts.len != ends.len || starts.len % 8) {
    PyErr_SetString(PyExc_ValueError, "starts and ends must be as many 64-bit numbers");
    goto done;
  }
  s.starts = starts.buf, s.ends = ends.buf;
  if (check_places(&s) || !(out = PyBytes_FromStringAndSize(NULL, starts.len))) goto done;
  s.out = (uint64_t *)(void *)PyBytes_AS_STRING(out);
  if (!reading_sums_open(&s)) {
    PyErr_NoMemory();
    goto done;
  }
  if (sum_all(PyModule_GetState(module), given, url, &s)) goto done;
  reading_sums_finish(&s);
  if (s.done < s.n && _PyBytes_Resize(&out, (Py_ssize_t)s.done * 8)) goto done;
  result = Py_BuildValue("(KKO)", (unsigned long long)s.pos, (unsigned long long)s.shard, out);
done:
  reading_sums_close(&s);
  Py_XDECREF(out);
  PyBuffer_Release(&starts);
  PyBuffer_Release(&ends);
  return result;
}

PyObject *core_crc32c(PyObject *Py_UNUSED(module), PyObject *data) {
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)) return NULL;
  uint32_t crc;
  Py_BEGIN_ALLOW_THREADS
  crc = crc32c(view.buf, (size_t)view.len);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&view);
  return PyLong_FromUnsignedLong(crc);
}
