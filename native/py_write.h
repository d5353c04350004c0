/* py_write.h: the writer behind Writer: a buffer that a thread writes out, members with their columns, taking a sample
 * back. py_write.c does that; py_writer.c is the Python type. */
#ifndef WDS_PY_WRITE_H
#define WDS_PY_WRITE_H

#include "checksum.h"
#include "module.h"

#include <unistd.h>

typedef struct {
  PyObject_HEAD
  int fd;
  uint64_t mtime, flushed; /* bytes that are in the file, or on their way */
  block buf, spare;        /* bytes that follow them; what the thread writes */
  flusher *thread;
  pid_t pid;
  PyObject *encode;        /* or NULL */
  uint64_t maxcount, maxsize;
  columns c;
  seen_set seen;
  bytes_vec name;          /* of the member in hand: key, then "." and field */
  bytes_vec header;        /* of a member whose name is too long for the buffer */
  PyObject *key;           /* of the open sample, borrowed for the call */
  size_t key_len;
  uint64_t start, hash;    /* of the open sample */
  size_t old_exts;         /* how many field names there were before it */
  uint64_t old_members;    /* and members */
  bool old_lowered;
  writing_sums *sums;      /* NULL: no checksums are asked for */
  size_t summed;           /* bytes of buf that are in them */
  bool open, busy, broken, behind; /* behind: a thread writes, while the next bytes are taken in */
} WriterObject;

/* All of these return 0, or -1 with an exception. */
int write_open(WriterObject *self); /* the buffers; the rest of self is set */
void write_close(WriterObject *self);
int write_begin(WriterObject *self, PyObject *key);
/* A field of the open sample: bytes-like, or a tuple (path, nbytes) of a file to copy; nbytes -1: whatever it has. */
int write_value(WriterObject *self, PyObject *ext, PyObject *value);
int write_end(WriterObject *self);
int write_flush(WriterObject *self); /* the buffer is empty then */
/* py_copy.c: a whole sample with this key, bytes [from, to) of a shard. HeaderError, with url: it is not that. */
int write_range(WriterObject *self, PyObject *key, int fd, uint64_t from, uint64_t to, PyObject *url);
/* With an exception that is set: take the open sample back, and keep the exception. */
void write_give_up(WriterObject *self);
int write_finish(WriterObject *self); /* the end marker, and all of it is in the file */
void write_stop(WriterObject *self);  /* the thread is gone: the descriptor can be closed */

static inline uint64_t write_tell(const WriterObject *self) { return self->flushed + self->buf.len; }
void *raise_source(core_state *st, const char *format, ...); /* SourceError; returns NULL */

#endif
