/* module.h: what the files with Python.h (module.c, py_*.c) share. */
#ifndef WDS_MODULE_H
#define WDS_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "blockio.h"
#include "sample.h"
#include "tar.h"

#define BLOCK_BYTES ((size_t)4 << 20)
#define POOL_BLOCKS 16 /* free blocks kept: 64 MiB */

typedef enum { E_TRUNCATED, E_HEADER, E_TRAILING, E_DUPLICATE, E_INTERLEAVED, E_UNSUPPORTED, E_COUNT } error_kind;

typedef struct {
  PyObject *errors[E_COUNT], *source_error;
  PyTypeObject *block_type, *span_type, *stream_type, *reader_type, *walker_type, *writer_type, *rows_type;
  PyObject *s_key, *s_url, *s_local_path, *s_readinto;
  unsigned char *pool[POOL_BLOCKS];
  size_t pooled;
} core_state;

core_state *core_of(PyObject *self); /* of an instance of one of our types */

/* A converter for "O&": an int that is not wrapped, as "K" does. */
int as_u64(PyObject *number, void *to_uint64);

/* Raise one of the errors of wdstools.errors. url may be NULL. Both return NULL. */
void *raise_shard(core_state *st, error_kind kind, const char *reason, PyObject *url, uint64_t offset);
void *raise_errno(int error, PyObject *url);

/* py_block.c: a Python object that owns a block of recycled memory, and read-only views into it. */
typedef struct {
  PyObject_HEAD
  block b;
} BlockObject;
BlockObject *block_new(core_state *st, size_t cap);
PyObject *block_view(core_state *st, BlockObject *owner, const unsigned char *p, size_t n); /* a memoryview */

/* py_source.c: a bio over a file descriptor or a Python object with readinto. `more` needs the GIL, and lets it go
 * while it waits. */
typedef struct {
  bio b;
  core_state *st;
  PyObject *file; /* NULL: fd */
  int fd;
  bool regular;
  prefetch *ra;
  BlockObject *cur, *lent[PREFETCH_MOST];
  size_t nlent, block_bytes;
  pid_t pid;
} py_source;
/* head: bytes of the shard that have been read from the source already. -1: exception. */
int source_open(py_source *s, core_state *st, PyObject *source, const char *head, size_t head_len, size_t block_bytes);
void source_close(py_source *s);
int source_error(py_source *s, int error, PyObject *url); /* turn what bio_* returned into an exception; returns -1 */

/* py_sample.c: members -> sample dicts. */
typedef struct {
  PyObject *name; /* interned, lower case */
  bool wanted;
  size_t len;
  char raw[48]; /* as it stands in member names */
} ext_entry;
enum { EXT_CACHE = 32 };
typedef struct {
  core_state *st;
  PyObject *url, *local_path, *fields, *select, *rename; /* the last four may be NULL */
  bool views;
  ext_entry exts[EXT_CACHE];
  size_t nexts, next_ext;
  PyObject *sample; /* under construction, or NULL */
  bytes_vec key;    /* of it */
} builder;
int builder_init(builder *m, core_state *st, PyObject *fields, bool views);
void builder_clear(builder *m);
int builder_visit(builder *m, visitproc visit, void *arg);
/* What to do with a member. Returns -1 (exception), 0 (skip its payload) or 1: *ext (borrowed) is its field in
 * m->sample. Where it starts another sample, *fresh is true and *done is the sample before it (new reference) or NULL. */
int builder_member(builder *m, const tar_member *member, PyObject **ext, bool *fresh, PyObject **done);
int builder_put(builder *m, PyObject *ext, PyObject *value, uint64_t header); /* steals value */

/* py_scan.c: a bio for reading headers: a window where the file can be read anywhere, else the blocks of a py_source. */
typedef struct {
  bio b;
  py_source source;
  file_window window;
  bool sequential, opened;
} header_source;
int headers_open(header_source *h, core_state *st, PyObject *source); /* -1: exception */
bio *headers_bio(header_source *h);
void headers_close(header_source *h);
PyObject *columns_to_dict(const columns *c);
PyObject *core_scan(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *core_members(PyObject *module, PyObject *args, PyObject *kwargs);

/* py_survey.c */
PyObject *core_survey(PyObject *module, PyObject *args);
PyObject *core_survey_sums(PyObject *module, PyObject *args);

/* py_check.c */
PyObject *core_checksums(PyObject *module, PyObject *args);
PyObject *core_crc32c(PyObject *module, PyObject *data);

/* py_turn.c */
PyObject *core_bring_in(PyObject *module, PyObject *args);
#define LOCK_MEANING "WDS_LOCK is auto, always or never, WDS_LOCK_SLOTS 1 to 1024"

extern PyType_Spec block_spec, span_spec, stream_spec, reader_spec, walker_spec, writer_spec, rows_spec;

#endif
