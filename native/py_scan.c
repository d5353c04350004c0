/* py_scan.c: Walker, the members of a tar one by one; members, all of them as columns; scan, a whole shard as the columns
 * of its index. */
#include "module.h"
#include "scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int window_more_unlocked(bio *b) {
  int error;
  Py_BEGIN_ALLOW_THREADS
  error = bio_window_more(b);
  Py_END_ALLOW_THREADS
  return error;
}

int headers_open(header_source *h, core_state *st, PyObject *source) {
  struct stat about;
  int fd = PyLong_Check(source) ? PyObject_AsFileDescriptor(source) : -1;
  if (fd < 0 && PyErr_Occurred()) return -1;
  h->sequential = fd < 0 || fstat(fd, &about) || !S_ISREG(about.st_mode);
  if (h->sequential) {
    if (source_open(&h->source, st, source, NULL, 0, BLOCK_BYTES)) return -1;
  } else if (!bio_open_window(&h->b, &h->window, fd, (uint64_t)about.st_size)) {
    PyErr_NoMemory();
    return -1;
  }
  h->opened = true;
  return 0;
}

bio *headers_bio(header_source *h) { return h->sequential ? &h->source.b : &h->b; }

void headers_close(header_source *h) {
  if (!h->opened) return;
  h->opened = false;
  if (h->sequential) source_close(&h->source);
  else bio_close_window(&h->b, &h->window);
}

static void *raise_scan(core_state *st, const scan_result *r, PyObject *url) {
  static const error_kind kinds[] = {[SCAN_HEADER] = E_HEADER,       [SCAN_TRUNCATED] = E_TRUNCATED,
                                     [SCAN_TRAILING] = E_TRAILING,   [SCAN_DUPLICATE] = E_DUPLICATE,
                                     [SCAN_INTERLEAVED] = E_INTERLEAVED, [SCAN_SPARSE] = E_UNSUPPORTED};
  if (r->status == SCAN_IO) return r->error == BIO_EXCEPTION ? NULL : raise_errno(r->error, url);
  return raise_shard(st, kinds[r->status], r->reason, url, r->at);
}

static int put_bytes(PyObject *dict, const char *name, const bytes_vec *v) {
  PyObject *value = PyBytes_FromStringAndSize((const char *)v->data, (Py_ssize_t)v->len);
  int failed = value ? PyDict_SetItemString(dict, name, value) : -1;
  Py_XDECREF(value);
  return failed;
}

static int put_count(PyObject *dict, const char *name, uint64_t n) {
  PyObject *value = PyLong_FromUnsignedLongLong(n);
  int failed = value ? PyDict_SetItemString(dict, name, value) : -1;
  Py_XDECREF(value);
  return failed;
}

PyObject *columns_to_dict(const columns *c) {
  PyObject *d = PyDict_New();
  if (d && (put_bytes(d, "keys", &c->keys) || put_bytes(d, "key_ends", &c->key_ends) ||
            put_bytes(d, "hashes", &c->hashes) || put_bytes(d, "starts", &c->starts) || put_bytes(d, "ends", &c->ends) ||
            put_bytes(d, "field_ends", &c->field_ends) || put_bytes(d, "field_codes", &c->field_codes) ||
            put_bytes(d, "field_headers", &c->field_headers) || put_bytes(d, "field_offsets", &c->field_offsets) ||
            put_bytes(d, "field_nbytes", &c->field_nbytes) || put_bytes(d, "exts", &c->exts) ||
            put_bytes(d, "ext_ends", &c->ext_ends) || put_count(d, "nmembers", c->nmembers) ||
            put_count(d, "exact", columns_exact(c))))
    Py_CLEAR(d);
  return d;
}

/* scan.c compares field names by ASCII; in a sample they are str.lower(). canonical[code]: the first code that has the
 * same name, or reserved where it is a name that a sample has anyway. 1: some differ from their code. -1: exception. */
#define RESERVED UINT32_MAX
static int fold_exts(core_state *st, const columns *c, uint32_t *canonical) {
  const uint64_t *ends = (const void *)c->ext_ends.data;
  PyObject *first = PyDict_New();
  int failed = first ? 0 : -1, differ = 0;
  for (size_t code = 0, from = 0; !failed && code < c->ext_ends.len / 8; from = (size_t)ends[code++]) {
    PyObject *raw = PyUnicode_DecodeUTF8((char *)c->exts.data + from, (Py_ssize_t)(ends[code] - from), "surrogateescape");
    PyObject *name = raw ? PyObject_CallMethod(raw, "lower", NULL) : NULL;
    PyObject *number = name ? PyLong_FromSize_t(code) : NULL;
    PyObject *known = number ? PyDict_SetDefault(first, name, number) : NULL;
    if (known) {
      bool reserved = PyUnicode_Compare(name, st->s_key) == 0 || PyUnicode_Compare(name, st->s_url) == 0 ||
                      PyUnicode_Compare(name, st->s_local_path) == 0;
      canonical[code] = reserved ? RESERVED : (uint32_t)PyLong_AsUnsignedLong(known);
      differ |= canonical[code] != code;
    } else {
      failed = -1;
    }
    Py_XDECREF(raw);
    Py_XDECREF(name);
    Py_XDECREF(number);
  }
  Py_XDECREF(first);
  return failed ? -1 : differ;
}

/* The first entry whose field its sample has already, or UINT64_MAX. */
static uint64_t find_twice(const columns *c, const uint32_t *canonical) {
  const uint64_t *ends = (const void *)c->field_ends.data;
  const uint32_t *codes = (const void *)c->field_codes.data;
  for (uint64_t row = 0, i = 0; row < c->nsamples; row++)
    for (uint64_t from = i; i < ends[row]; i++) {
      if (canonical[codes[i]] == RESERVED) return i;
      for (uint64_t j = from; j < i; j++)
        if (canonical[codes[j]] == canonical[codes[i]]) return i;
    }
  return UINT64_MAX;
}

/* A stream would refuse a sample with the fields É and é: so does its index. */
static int check_folding(core_state *st, const columns *c, PyObject *url) {
  bool ascii = true;
  for (size_t i = 0; ascii && i < c->exts.len; i++) ascii = c->exts.data[i] < 0x80;
  if (ascii) return 0;
  uint32_t *canonical = PyMem_Malloc(c->ext_ends.len / 8 * sizeof *canonical);
  if (!canonical) {
    PyErr_NoMemory();
    return -1;
  }
  int differ = fold_exts(st, c, canonical);
  uint64_t twice = differ > 0 ? find_twice(c, canonical) : UINT64_MAX;
  PyMem_Free(canonical);
  if (twice == UINT64_MAX) return differ < 0 ? -1 : 0;
  raise_shard(st, E_DUPLICATE, "two members of a sample have one field", url,
              ((const uint64_t *)(const void *)c->field_headers.data)[twice]);
  return -1;
}

PyObject *core_scan(PyObject *module, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"source", "url", NULL};
  core_state *st = PyModule_GetState(module);
  PyObject *source, *url, *result = NULL;
  header_source h = {0};
  columns c = {0};
  scan_result r;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OU", names, &source, &url)) return NULL;
  if (headers_open(&h, st, source)) return NULL;
  if (h.sequential) { /* its `more` needs the GIL, and lets it go while it waits */
    r = scan_shard(headers_bio(&h), &c);
  } else {
    Py_BEGIN_ALLOW_THREADS
    r = scan_shard(headers_bio(&h), &c);
    Py_END_ALLOW_THREADS
  }
  if (r.status) raise_scan(st, &r, url);
  else if (!check_folding(st, &c, url)) result = columns_to_dict(&c);
  if (result && put_count(result, "nbytes", headers_bio(&h)->pos)) Py_CLEAR(result);
  columns_free(&c);
  headers_close(&h);
  return result;
}

/* Every member of a tar, by columns: u64 each, but for the bytes of the names and of the types. */
typedef struct {
  bytes_vec names, name_ends, types, starts, headers, offsets, nbytes;
  uint64_t end; /* of the last member: where the end marker begins */
} member_columns;

static bool put_u64(bytes_vec *v, uint64_t value) {
  void *at = vec_grow(v, sizeof value);
  if (at) memcpy(at, &value, sizeof value);
  return at != NULL;
}

static bool add_row(member_columns *c, const tar_member *m) {
  char *name = vec_grow(&c->names, m->name_len);
  if (name && m->name_len) memcpy(name, m->name, m->name_len);
  char *type = vec_grow(&c->types, 1);
  if (type) *type = (char)m->type;
  return name && type && put_u64(&c->name_ends, c->names.len) && put_u64(&c->starts, m->start) &&
         put_u64(&c->headers, m->header) && put_u64(&c->offsets, m->offset) && put_u64(&c->nbytes, m->nbytes);
}

static scan_result all_members(bio *b, member_columns *c) {
  scan_result r = {SCAN_OK, 0, NULL, 0};
  tar_walker w = {0};
  tar_member m;
  tar_status st;
  while ((st = scan_member(b, &w, &m, &r)) == TAR_MEMBER) {
    uint64_t skipped, want = m.next - b->pos;
    int error = add_row(c, &m) ? bio_skip(b, want, &skipped) : ENOMEM;
    c->end = m.next;
    if (error) r = (scan_result){.status = SCAN_IO, .error = error};
    else if (skipped < want) r = (scan_result){.status = SCAN_TRUNCATED, .reason = "truncated in a member", .at = b->pos};
    if (r.status) return r;
  }
  if (st == TAR_END) scan_tail(b, &r);
  return r;
}

static PyObject *members_to_dict(const member_columns *c, uint64_t nbytes) {
  PyObject *d = PyDict_New();
  if (d && (put_bytes(d, "names", &c->names) || put_bytes(d, "name_ends", &c->name_ends) ||
            put_bytes(d, "types", &c->types) || put_bytes(d, "starts", &c->starts) ||
            put_bytes(d, "headers", &c->headers) || put_bytes(d, "offsets", &c->offsets) ||
            put_bytes(d, "nbytes", &c->nbytes) || put_count(d, "end", c->end) || put_count(d, "shard_nbytes", nbytes)))
    Py_CLEAR(d);
  return d;
}

static void members_free(member_columns *c) {
  bytes_vec *all[] = {&c->names, &c->name_ends, &c->types, &c->starts, &c->headers, &c->offsets, &c->nbytes};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->data);
}

PyObject *core_members(PyObject *module, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"source", "url", NULL};
  core_state *st = PyModule_GetState(module);
  PyObject *source, *url, *result = NULL;
  header_source h = {0};
  member_columns c = {0};
  scan_result r;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OU", names, &source, &url)) return NULL;
  if (headers_open(&h, st, source)) return NULL;
  if (h.sequential) { /* as in scan() */
    r = all_members(headers_bio(&h), &c);
  } else {
    Py_BEGIN_ALLOW_THREADS
    r = all_members(headers_bio(&h), &c);
    Py_END_ALLOW_THREADS
  }
  if (r.status) raise_scan(st, &r, url);
  else result = members_to_dict(&c, headers_bio(&h)->pos);
  members_free(&c);
  headers_close(&h);
  return result;
}

typedef struct {
  PyObject_HEAD
  core_state *st;
  header_source h;
  PyObject *url;
  uint64_t next;
  bool over, running;
} WalkerObject;

static PyObject *member_tuple(const tar_member *m) {
  const char type[2] = {(char)m->type, 0};
  PyObject *name = PyUnicode_DecodeUTF8(m->name, (Py_ssize_t)m->name_len, "surrogateescape");
  PyObject *link = PyUnicode_DecodeUTF8(m->link, (Py_ssize_t)m->link_len, "surrogateescape");
  if (!name || !link) {
    Py_XDECREF(name);
    Py_XDECREF(link);
    return NULL;
  }
  return Py_BuildValue("(NsNKKKK)", name, type, link, (unsigned long long)m->start, (unsigned long long)m->header,
                       (unsigned long long)m->offset, (unsigned long long)m->nbytes);
}

/* The next member. TAR_MEMBER; else the walk is over: TAR_END, or *r says why. */
static tar_status walk(WalkerObject *self, tar_member *m, scan_result *r) {
  bio *b = headers_bio(&self->h);
  tar_walker w = {0};
  uint64_t skipped, want = self->next - b->pos;
  int error = bio_skip(b, want, &skipped);
  if (error) *r = (scan_result){.status = SCAN_IO, .error = error};
  else if (skipped < want) *r = (scan_result){.status = SCAN_TRUNCATED, .reason = "truncated in a member", .at = b->pos};
  if (r->status) return TAR_ERROR;
  tar_status st = scan_member(b, &w, m, r);
  if (st == TAR_END) scan_tail(b, r);
  if (st == TAR_MEMBER) self->next = m->next;
  return st;
}

static PyObject *walker_next(PyObject *op) {
  WalkerObject *self = (WalkerObject *)op;
  scan_result r = {SCAN_OK, 0, NULL, 0};
  tar_member m;
  if (self->running) { /* in another thread, or under readinto: not the end */
    PyErr_SetString(PyExc_ValueError, "walker already executing");
    return NULL;
  }
  if (self->over) return NULL;
  self->running = true;
  tar_status st = walk(self, &m, &r);
  if (st != TAR_MEMBER) {
    self->over = true;
    if (r.status) raise_scan(self->st, &r, self->url);
    headers_close(&self->h);
  }
  self->running = false;
  return st == TAR_MEMBER ? member_tuple(&m) : NULL;
}

static PyObject *walker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"source", "url", "start", "end", NULL};
  PyObject *source, *url;
  uint64_t start = 0, end = UINT64_MAX;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OU|$O&O&", names, &source, &url, as_u64, &start, as_u64, &end))
    return NULL;
  WalkerObject *self = (WalkerObject *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->st = PyType_GetModuleState(type);
  self->url = Py_NewRef(url);
  if (headers_open(&self->h, self->st, source)) {
    Py_DECREF(self);
    return NULL;
  }
  if (!self->h.sequential) {
    self->h.b.more = window_more_unlocked;
    self->h.b.pos = self->next = start;
    if (end < self->h.b.size) self->h.b.size = end;
  } else if (start || end != UINT64_MAX) {
    PyErr_SetString(PyExc_ValueError, "only a regular file can be walked from start to end");
    Py_DECREF(self);
    return NULL;
  }
  return (PyObject *)self;
}

static int walker_traverse(PyObject *op, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(op));
  Py_VISIT(((WalkerObject *)op)->h.source.file);
  return 0;
}

static int walker_clear(PyObject *op) {
  headers_close(&((WalkerObject *)op)->h);
  Py_CLEAR(((WalkerObject *)op)->url);
  ((WalkerObject *)op)->over = true;
  return 0;
}

static void walker_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  PyObject_GC_UnTrack(op);
  walker_clear(op);
  type->tp_free(op);
  Py_DECREF(type);
}

static PyType_Slot walker_slots[] = {
    {Py_tp_doc, "Walker(source, url, *, start, end): (name, type, linkname, start, header, offset, nbytes) of each member"},
    {Py_tp_new, walker_new},
    {Py_tp_dealloc, walker_dealloc},
    {Py_tp_traverse, walker_traverse},
    {Py_tp_clear, walker_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, walker_next},
    {0, NULL}};
PyType_Spec walker_spec = {"wdstools._core.Walker", sizeof(WalkerObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           walker_slots};
