/* py_turn.c: reading a range of a file into the page cache, in turn. */
#include <errno.h>

#include "device.h"
#include "module.h"
#include "turnstile.h"

enum { PIECE = 1 << 20 };

/* 0 or an errno. Less than that is there is no error: whoever sends it will notice. */
static int bring_in(int fd, uint64_t start, uint64_t end, unsigned char *buffer, lock_mode mode, unsigned slots) {
  turnstile *t = NULL;
  int error = turnstile_open(fd, mode, slots, NULL, &t);
  if (error) return error;
  bool entered = t && !file_resident(fd, start, (size_t)(end - start)) && !turnstile_enter(t, NULL);
  file_ask(fd, start, (size_t)(end - start));
  while (start < end) {
    ssize_t got = pread_full(fd, buffer, end - start < PIECE ? (size_t)(end - start) : PIECE, start);
    if (got <= 0) {
      error = got < 0 ? errno : 0;
      break;
    }
    start += (uint64_t)got;
    if (entered) turnstile_beat(t);
  }
  if (entered) turnstile_leave(t);
  turnstile_close(t);
  return error;
}

PyObject *core_bring_in(PyObject *Py_UNUSED(module), PyObject *args) {
  int fd, error;
  uint64_t start, end;
  lock_mode mode;
  unsigned slots;
  if (!PyArg_ParseTuple(args, "iO&O&", &fd, as_u64, &start, as_u64, &end)) return NULL;
  if (start > end || end > INT64_MAX) {
    PyErr_SetString(PyExc_ValueError, "not a byte range");
    return NULL;
  }
  if (!lock_choice(&mode, &slots)) {
    PyErr_SetString(PyExc_ValueError, LOCK_MEANING);
    return NULL;
  }
  turnstile_environment();
  unsigned char *buffer = PyMem_RawMalloc(PIECE);
  if (!buffer) return PyErr_NoMemory();
  Py_BEGIN_ALLOW_THREADS
  error = bring_in(fd, start, end, buffer, mode, slots);
  Py_END_ALLOW_THREADS
  PyMem_RawFree(buffer);
  if (!error) Py_RETURN_NONE;
  errno = error;
  return PyErr_SetFromErrno(PyExc_OSError);
}
