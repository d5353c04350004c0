/* py_copy.c: samples that are copied from shard to shard as they are, headers included. Every header is looked at on the
 * way: bytes that are not the one sample they should be are an error, and the columns are made of what is there. */
#include "batchio.h"
#include "py_write.h"
#include "scan.h"

#include <errno.h>

enum { CACHED = 64 << 10 }; /* bytes that are copied from the page cache sooner than the GIL would come back */

static int no_more(bio *b) { /* the sample ends here */
  (void)b;
  return 0;
}

/* n bytes of the file from pos on, behind what is in the buffer, which has room for them. */
static int read_range(WriterObject *self, int fd, size_t n, uint64_t pos, PyObject *url) {
  struct iovec to = {self->buf.data + self->buf.len, n};
  ssize_t got = (ssize_t)n;
  int error = 0;
  if (n > CACHED || pread_cached(fd, &to, 1, pos) != n) {
    Py_BEGIN_ALLOW_THREADS
    got = pread_full(fd, to.iov_base, n, pos);
    if (got < 0) error = errno;
    Py_END_ALLOW_THREADS
  }
  if (got == (ssize_t)n) return 0;
  if (got < 0) raise_errno(error, url);
  else raise_shard(core_of((PyObject *)self), E_TRUNCATED, "truncated in a sample", url, pos + (uint64_t)got);
  return -1;
}

static int raise_other_key(WriterObject *self, const sample_name *n, PyObject *url, uint64_t at) {
  PyObject *found = PyUnicode_DecodeUTF8(n->key, (Py_ssize_t)n->key_len, "replace");
  PyObject *reason = found ? PyUnicode_FromFormat("sample %R where the index has %R", found, self->key) : NULL;
  const char *text = reason ? PyUnicode_AsUTF8(reason) : NULL;
  if (text) raise_shard(core_of((PyObject *)self), E_HEADER, text, url, at);
  Py_XDECREF(found);
  Py_XDECREF(reason);
  return -1;
}

/* A member of the sample at `from`: its entry in the columns. m->name is the sample's key and a field. */
static int take_member(WriterObject *self, const tar_member *m, uint64_t from, PyObject *url) {
  core_state *st = core_of((PyObject *)self);
  sample_name n;
  self->c.nmembers++;
  if ((m->type != TAR_FILE && m->type != TAR_SPARSE) || !sample_split(m->name, m->name_len, &n)) return 0;
  if (m->type == TAR_SPARSE) {
    raise_shard(st, E_UNSUPPORTED, "sparse member, which cannot be a field", url, m->header);
    return -1;
  }
  if (n.key_len != self->key_len || memcmp(n.key, self->name.data, n.key_len) != 0)
    return raise_other_key(self, &n, url, m->header);
  self->name.len = self->key_len;
  char *lower = vec_grow(&self->name, n.ext_len);
  if (!lower) {
    PyErr_NoMemory();
    return -1;
  }
  self->c.lowered |= ascii_lower(lower, n.ext, n.ext_len);
  if (columns_has(&self->c, lower, n.ext_len)) {
    raise_shard(st, E_DUPLICATE, "two members of a sample have one field", url, m->header);
    return -1;
  }
  uint64_t shift = self->start - from;
  if (columns_field(&self->c, lower, n.ext_len, m->header + shift, m->offset + shift, m->nbytes)) return 0;
  PyErr_NoMemory();
  return -1;
}

/* The members in [from, b->size), which must be all that is there. */
static int take_members(WriterObject *self, bio *b, uint64_t from, PyObject *url) {
  core_state *st = core_of((PyObject *)self);
  uint64_t fields = self->c.nfields, skipped;
  tar_walker w = {0};
  tar_member m;
  scan_result r = {SCAN_OK, 0, NULL, 0};
  while (b->pos < b->size) {
    uint64_t at = b->pos;
    tar_status found = scan_member(b, &w, &m, &r);
    if (r.status == SCAN_IO) {
      raise_errno(r.error, url);
      return -1;
    }
    if (found != TAR_MEMBER) {
      const char *reason = found == TAR_ERROR && r.status == SCAN_HEADER
                               ? r.reason
                               : "the index has another end for this sample than the shard";
      raise_shard(st, E_HEADER, reason, url, r.status == SCAN_HEADER ? r.at : at);
      return -1;
    }
    if (take_member(self, &m, from, url)) return -1;
    int error = bio_skip(b, m.next - b->pos, &skipped);
    if (error) {
      raise_errno(error, url);
      return -1;
    }
  }
  if (self->c.nfields > fields) return 0;
  raise_shard(st, E_HEADER, "no sample where the index has one", url, from);
  return -1;
}

/* A sample that fits into the buffer: read to where it goes, and looked at there. */
static int copy_small(WriterObject *self, int fd, uint64_t from, size_t n, PyObject *url) {
  if (self->buf.cap - self->buf.len < n && write_flush(self)) return -1;
  if (read_range(self, fd, n, from, url)) return -1;
  block here = {self->buf.data + self->buf.len, n, n};
  bio b = {.more = no_more, .cur = &here, .pos = from, .cur_pos = from, .size = from + n, .random = true};
  int failed = take_members(self, &b, from, url);
  bio_free(&b);
  if (!failed) self->buf.len += n;
  return failed;
}

/* A larger one: its headers first. */
static int copy_large(WriterObject *self, int fd, uint64_t from, uint64_t to, PyObject *url) {
  bio b = {0};
  file_window window = {0};
  if (!bio_open_window(&b, &window, fd, to)) {
    PyErr_NoMemory();
    return -1;
  }
  b.pos = from;
  int failed = take_members(self, &b, from, url);
  bio_close_window(&b, &window);
  while (!failed && from < to) {
    if (self->buf.len == self->buf.cap && write_flush(self)) return -1;
    size_t room = self->buf.cap - self->buf.len, n = to - from < room ? (size_t)(to - from) : room;
    failed = read_range(self, fd, n, from, url);
    if (!failed) self->buf.len += n, from += n;
  }
  return failed;
}

int write_range(WriterObject *self, PyObject *key, int fd, uint64_t from, uint64_t to, PyObject *url) {
  if (write_begin(self, key)) return -1;
  int failed = to - from <= self->buf.cap ? copy_small(self, fd, from, (size_t)(to - from), url)
                                          : copy_large(self, fd, from, to, url);
  return failed ? -1 : write_end(self);
}
