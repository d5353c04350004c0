/* py_write.c: what Writer does: see py_write.h. */
#include "py_write.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

/* Two of them: one is filled while a thread writes the other. Larger ones fall out of the second level cache. */
#define WRITE_BYTES ((size_t)512 << 10)

enum { TOO_LARGE = -1 }; /* no errno: a file system may answer with any */

static core_state *state_of(WriterObject *self) { return core_of((PyObject *)self); }

void *raise_source(core_state *st, const char *format, ...) {
  va_list args;
  va_start(args, format);
  PyObject *text = PyUnicode_FromFormatV(format, args);
  va_end(args);
  if (text) PyErr_SetObject(st->source_error, text);
  Py_XDECREF(text);
  return NULL;
}

static int write_failed(WriterObject *self, int error) {
  self->broken = true;
  raise_errno(error, NULL);
  return -1;
}

/* Wait for the thread: all that was flushed is in the file. */
static int settle(WriterObject *self) {
  int error = 0;
  if (!self->thread || self->pid != getpid()) return 0;
  Py_BEGIN_ALLOW_THREADS
  error = flusher_submit(self->thread, NULL);
  Py_END_ALLOW_THREADS
  return error ? write_failed(self, error) : 0;
}

static int refuse_child(const WriterObject *self) {
  if (self->pid == getpid()) return 0;
  PyErr_SetString(PyExc_RuntimeError, "a shard that was begun before fork cannot go on in the child");
  return -1;
}

static void sum_up(WriterObject *self) { /* all that is in the buffer */
  if (self->sums) writing_sums_add(self->sums, self->buf.data + self->summed, self->buf.len - self->summed);
  self->summed = self->buf.len;
}

/* pass_on and the append functions need no GIL: no other call is in this writer (`busy`). They return 0 or an errno. */

/* Empty the buffer: into the file, or `behind` by way of the thread, which gives back the one that it has finished. */
static int pass_on(WriterObject *self) {
  sum_up(self);
  if (!self->behind) {
    if (write_full(self->fd, self->buf.data, self->buf.len) < 0) return errno;
    self->flushed += self->buf.len;
  } else {
    if (!self->thread && !(self->thread = flusher_start(self->fd))) return errno;
    int error = flusher_submit(self->thread, NULL);
    if (error) return error;
    block full = self->buf;
    self->buf = self->spare;
    self->spare = full;
    error = flusher_submit(self->thread, &self->spare); /* it is idle: this does not wait */
    if (error) return error;
    self->flushed += self->spare.len;
  }
  self->buf.len = self->summed = 0;
  return 0;
}

int write_flush(WriterObject *self) {
  int error = 0;
  if (refuse_child(self)) return -1;
  Py_BEGIN_ALLOW_THREADS
  error = pass_on(self);
  Py_END_ALLOW_THREADS
  return error ? write_failed(self, error) : 0;
}

int write_open(WriterObject *self) {
  self->buf = (block){PyMem_RawMalloc(WRITE_BYTES), 0, WRITE_BYTES};
  if (self->behind) self->spare = (block){PyMem_RawMalloc(WRITE_BYTES), 0, WRITE_BYTES};
  if (self->buf.data && (self->spare.data || !self->behind)) return 0;
  PyErr_NoMemory();
  return -1;
}

void write_stop(WriterObject *self) {
  flusher *thread = self->thread;
  self->broken = true;
  self->thread = NULL;
  if (!thread || self->pid != getpid()) return; /* after fork the thread is the parent's */
  bool busy = self->busy;
  self->busy = true; /* nobody takes it for gone before it is */
  Py_BEGIN_ALLOW_THREADS
  flusher_stop(thread);
  Py_END_ALLOW_THREADS
  self->busy = busy;
}

void write_close(WriterObject *self) {
  write_stop(self);
  PyMem_RawFree(self->buf.data);
  PyMem_RawFree(self->spare.data);
  columns_free(&self->c);
  seen_free(&self->seen);
  writing_sums_free(self->sums);
  free(self->name.data);
  free(self->header.data);
}

static int append(WriterObject *self, const void *p, size_t n) {
  const unsigned char *from = p;
  while (n) {
    int error = self->buf.len == self->buf.cap ? pass_on(self) : 0;
    if (error) return error;
    size_t room = self->buf.cap - self->buf.len, take = n < room ? n : room;
    memcpy(self->buf.data + self->buf.len, from, take);
    self->buf.len += take, from += take, n -= take;
  }
  return 0;
}

static int append_padding(WriterObject *self, uint64_t nbytes) {
  static const unsigned char zeros[TAR_BLOCK];
  return append(self, zeros, (size_t)(tar_padded(nbytes) - nbytes));
}

/* The header group of a member, self->name: formatted where it goes, or elsewhere if the buffer is too small for it.
 * TOO_LARGE: no tar can say so many bytes. */
static int append_header(WriterObject *self, uint64_t nbytes) {
  size_t len = self->name.len, cap = tar_group_cap(len);
  bool fits = cap <= self->buf.cap;
  int error = fits && self->buf.cap - self->buf.len < cap ? pass_on(self) : 0;
  if (error) return error;
  self->header.len = 0;
  unsigned char *at = fits ? self->buf.data + self->buf.len : vec_grow(&self->header, cap);
  if (!at) return ENOMEM;
  size_t group = tar_format(at, cap, (const char *)self->name.data, len, nbytes, self->mtime);
  if (!group) return TOO_LARGE;
  if (!fits) return append(self, at, group);
  self->buf.len += group;
  return 0;
}

static int put(WriterObject *self, const void *p, size_t n) {
  int error = 0;
  if (n <= self->buf.cap - self->buf.len) return append(self, p, n);
  if (refuse_child(self)) return -1;
  Py_BEGIN_ALLOW_THREADS
  error = append(self, p, n);
  Py_END_ALLOW_THREADS
  return error ? write_failed(self, error) : 0;
}

/* Take the open sample back: what was written of it is cut off again. */
static int roll_back(WriterObject *self) {
  self->open = false;
  self->c.nsamples--;
  columns *c = &self->c;
  size_t n = (size_t)c->nsamples;
  c->key_ends.len = c->hashes.len = c->starts.len = c->ends.len = c->field_ends.len = n * 8;
  c->keys.len = n ? (size_t)((uint64_t *)(void *)c->key_ends.data)[n - 1] : 0;
  uint64_t fields = n ? ((uint64_t *)(void *)c->field_ends.data)[n - 1] : 0;
  c->nfields = fields;
  c->nmembers = self->old_members;
  c->lowered = self->old_lowered;
  if (self->sums) writing_sums_back(self->sums);
  c->ext_ends.len = self->old_exts * 8;
  c->exts.len = self->old_exts ? (size_t)((uint64_t *)(void *)c->ext_ends.data)[self->old_exts - 1] : 0;
  c->field_codes.len = (size_t)fields * 4;
  c->field_headers.len = c->field_offsets.len = c->field_nbytes.len = (size_t)fields * 8;
  if (self->start >= self->flushed) {
    self->buf.len = self->summed = (size_t)(self->start - self->flushed);
    return 0;
  }
  self->buf.len = self->summed = 0;
  if (settle(self)) return -1;
  self->flushed = self->start;
  if (!ftruncate(self->fd, (off_t)self->start) && lseek(self->fd, (off_t)self->start, SEEK_SET) >= 0) return 0;
  self->broken = true; /* a pipe: half of the sample is gone out */
  return -1;
}

void write_give_up(WriterObject *self) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  if (self->open && !self->broken) roll_back(self);
  self->open = false;
  PyErr_Restore(type, value, trace);
}

static int append_name(bytes_vec *v, PyObject *text) {
  PyObject *raw = PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape");
  if (!raw) return -1;
  size_t n = (size_t)PyBytes_GET_SIZE(raw);
  void *at = vec_grow(v, n);
  if (at) memcpy(at, PyBytes_AS_STRING(raw), n);
  else PyErr_NoMemory();
  Py_DECREF(raw);
  return at ? 0 : -1;
}

int write_begin(WriterObject *self, PyObject *key) {
  if (self->broken || self->open) {
    PyErr_SetString(PyExc_ValueError, self->broken ? "writer is broken by an earlier error" : "a sample is open");
    return -1;
  }
  self->name.len = 0;
  if (append_name(&self->name, key)) return -1;
  self->key = key;
  self->key_len = self->name.len;
  const char *text = (const char *)self->name.data;
  self->start = write_tell(self);
  self->old_exts = self->c.ext_ends.len / 8;
  self->old_members = self->c.nmembers;
  self->old_lowered = self->c.lowered;
  sum_up(self);
  if (self->sums) writing_sums_begin(self->sums);
  self->hash = sample_hash(text, self->key_len, 0);
  if (!columns_sample(&self->c, text, self->key_len, self->hash, self->start)) {
    PyErr_NoMemory();
    self->broken = true;
    return -1;
  }
  self->open = true;
  return 0;
}

/* self->name becomes key.ext, which readers must take apart as we do. */
static int set_name(WriterObject *self, PyObject *ext, sample_name *n) {
  self->name.len = self->key_len;
  void *dot = vec_grow(&self->name, 1);
  if (!dot) {
    PyErr_NoMemory();
    return -1;
  }
  *(char *)dot = '.';
  if (append_name(&self->name, ext)) return -1;
  const char *name = (const char *)self->name.data;
  size_t len = self->name.len;
  if (memchr(name, 0, len) || !sample_split(name, len, n) || n->key_len != self->key_len) {
    raise_source(state_of(self), "key %R with field %R: readers would not get this key back (a dot in the key's last "
                 "part, a __name__, a NUL byte, or no name at all)", self->key, ext);
    return -1;
  }
  if (tar_group_cap(len) > TAR_GROUP_MAX) { /* readers refuse it */
    raise_source(state_of(self), "a member name of %zu bytes is too long", len);
    return -1;
  }
  return 0;
}

/* The entry in the columns of a member of the open sample, self->name, whose payload is at offset. */
static int enter_field(WriterObject *self, PyObject *ext, const sample_name *n, uint64_t offset, uint64_t nbytes) {
  char *lower = (char *)self->name.data + self->key_len + 1;
  self->c.lowered |= ascii_lower(lower, n->ext, n->ext_len);
  if (columns_has(&self->c, lower, n->ext_len)) {
    raise_source(state_of(self), "two fields %R in one sample", ext);
    return -1;
  }
  if (!columns_field(&self->c, lower, n->ext_len, offset - TAR_BLOCK, offset, nbytes)) {
    PyErr_NoMemory();
    return -1;
  }
  self->c.nmembers++;
  return 0;
}

static void raise_append(WriterObject *self, int error, uint64_t nbytes) {
  if (error == TOO_LARGE)
    raise_source(state_of(self), "a member of %llu bytes is too large for a tar", (unsigned long long)nbytes);
  else write_failed(self, error);
}

static int append_bytes(WriterObject *self, const void *data, size_t nbytes, uint64_t *offset) {
  int error = append_header(self, nbytes);
  *offset = write_tell(self);
  if (!error) error = append(self, data, nbytes);
  return error ? error : append_padding(self, nbytes);
}

static int put_field(WriterObject *self, PyObject *ext, const void *data, size_t nbytes) {
  sample_name n;
  uint64_t offset = 0;
  int error = 0;
  if (set_name(self, ext, &n)) return -1;
  if (tar_group_cap(self->name.len) + tar_padded(nbytes) <= self->buf.cap - self->buf.len) {
    error = append_bytes(self, data, nbytes, &offset); /* nothing but a memcpy */
  } else {
    if (refuse_child(self)) return -1;
    Py_BEGIN_ALLOW_THREADS
    error = append_bytes(self, data, nbytes, &offset);
    Py_END_ALLOW_THREADS
  }
  if (!error) return enter_field(self, ext, &n, offset, nbytes);
  raise_append(self, error, nbytes);
  return -1;
}

static int field_bytes(WriterObject *self, PyObject *ext, PyObject *data) {
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_C_CONTIGUOUS)) return -1;
  int failed = put_field(self, ext, view.buf, (size_t)view.len);
  PyBuffer_Release(&view);
  return failed;
}

typedef struct {
  int fd, error;           /* of opening or reading it */
  uint64_t nbytes, offset; /* of its payload, in the shard */
  enum { FILE_GOOD, FILE_ERROR, FILE_KIND, FILE_CHANGED, FILE_CUT } found;
} taken_file;

static int append_payload(WriterObject *self, taken_file *f) {
  for (uint64_t done = 0; done < f->nbytes;) {
    int error = self->buf.len == self->buf.cap ? pass_on(self) : 0;
    if (error) return error;
    size_t room = self->buf.cap - self->buf.len, take = f->nbytes - done < room ? (size_t)(f->nbytes - done) : room;
    ssize_t n = pread_full(f->fd, self->buf.data + self->buf.len, take, done);
    if (n < 0) {
      f->error = errno, f->found = FILE_ERROR;
      return 0;
    }
    self->buf.len += (size_t)n, done += (uint64_t)n;
    if ((size_t)n < take) {
      f->found = FILE_CUT;
      return 0;
    }
  }
  int error = append_padding(self, f->nbytes);
  sum_up(self); /* while it is in the cache */
  return error;
}

/* A whole file as the member self->name; what is wrong with the file is put down in f. expected -1: whatever it has. */
static int append_file(WriterObject *self, const char *path, long long expected, taken_file *f) {
  struct stat about;
  int error = 0;
  f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (f->fd < 0 || fstat(f->fd, &about)) f->error = errno, f->found = FILE_ERROR;
  else if (!S_ISREG(about.st_mode)) f->found = FILE_KIND;
  else {
    f->nbytes = (uint64_t)about.st_size;
    if (expected >= 0 && about.st_size != expected) f->found = FILE_CHANGED;
    else if (!(error = append_header(self, f->nbytes))) {
      f->offset = write_tell(self);
      error = append_payload(self, f);
    }
  }
  if (f->fd >= 0) close(f->fd);
  return error;
}

static int field_file(WriterObject *self, PyObject *ext, PyObject *path, long long expected) {
  core_state *st = state_of(self);
  PyObject *raw = NULL;
  taken_file f = {.found = FILE_GOOD};
  sample_name n;
  int error = 0;
  if (set_name(self, ext, &n) || refuse_child(self) || !PyUnicode_FSConverter(path, &raw)) return -1;
  Py_BEGIN_ALLOW_THREADS
  error = append_file(self, PyBytes_AS_STRING(raw), expected, &f);
  Py_END_ALLOW_THREADS
  Py_DECREF(raw);
  if (error) {
    raise_append(self, error, f.nbytes);
    return -1;
  }
  switch (f.found) {
  case FILE_GOOD: return enter_field(self, ext, &n, f.offset, f.nbytes);
  case FILE_ERROR:
    errno = f.error;
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    return -1;
  case FILE_KIND: raise_source(st, "%S: not a regular file", path); return -1;
  case FILE_CHANGED:
    raise_source(st, "%S: changed while it was packed: %lld bytes when listed, %lld now", path, expected,
                 (long long)f.nbytes);
    return -1;
  case FILE_CUT: raise_source(st, "%S: cut short while it was read", path); return -1;
  }
  Py_UNREACHABLE();
}

int write_value(WriterObject *self, PyObject *ext, PyObject *value) {
  if (!PyTuple_Check(value)) return field_bytes(self, ext, value);
  PyObject *path;
  long long nbytes;
  if (!PyArg_ParseTuple(value, "OL;a file to copy is (path, nbytes)", &path, &nbytes)) return -1;
  return field_file(self, ext, path, nbytes);
}

int write_end(WriterObject *self) {
  core_state *st = state_of(self);
  uint32_t ordinal;
  if (write_tell(self) == self->start) {
    raise_source(st, "key %R: a sample without fields", self->key);
    return -1;
  }
  int fresh = seen_add(&self->seen, (const char *)self->name.data, self->key_len, self->hash, &ordinal);
  if (fresh < 0) PyErr_NoMemory();
  if (fresh == 0) raise_source(st, "key %R is in this shard already (sample %u)", self->key, ordinal);
  if (fresh <= 0) return -1;
  sum_up(self);
  if (self->sums && !writing_sums_end(self->sums)) {
    PyErr_NoMemory();
    self->broken = true; /* its key is taken */
    return -1;
  }
  columns_end(&self->c, write_tell(self));
  self->open = false;
  return 0;
}

int write_finish(WriterObject *self) {
  static const unsigned char marker[2 * TAR_BLOCK];
  int failed = put(self, marker, sizeof marker) || write_flush(self) || settle(self);
  write_stop(self); /* nothing may follow the end marker */
  return failed ? -1 : 0;
}
