/* py_scan.c: Walker, the members of a tar one by one; scan, a whole shard as the columns of its index. */
#include "module.h"
#include "scan.h"

#include <sys/stat.h>

/* A bio for reading headers: a window where the file can be read anywhere, else the blocks of a py_source. */
typedef struct {
  bio b;
  py_source source;
  file_window window;
  bool sequential, opened;
} header_source;

static int window_more_unlocked(bio *b) {
  int error;
  Py_BEGIN_ALLOW_THREADS
  error = bio_window_more(b);
  Py_END_ALLOW_THREADS
  return error;
}

static int headers_open(header_source *h, core_state *st, PyObject *source) {
  struct stat about;
  int fd = PyLong_Check(source) ? (int)PyLong_AsLong(source) : -1;
  if (fd == -1 && PyErr_Occurred()) return -1;
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

static bio *headers_bio(header_source *h) { return h->sequential ? &h->source.b : &h->b; }

static void headers_close(header_source *h) {
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
            put_bytes(d, "ext_ends", &c->ext_ends) || put_count(d, "nmembers", c->nmembers)))
    Py_CLEAR(d);
  return d;
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
  else result = columns_to_dict(&c);
  if (result && put_count(result, "nbytes", headers_bio(&h)->pos)) Py_CLEAR(result);
  columns_free(&c);
  headers_close(&h);
  return result;
}

typedef struct {
  PyObject_HEAD
  core_state *st;
  header_source h;
  PyObject *url;
  uint64_t next;
  bool over;
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

static PyObject *walker_next(PyObject *op) {
  WalkerObject *self = (WalkerObject *)op;
  scan_result r = {SCAN_OK, 0, NULL, 0};
  tar_walker w = {0};
  tar_member m;
  if (self->over) return NULL;
  bio *b = headers_bio(&self->h);
  self->over = true; /* until this step is done: an error ends the walk */
  uint64_t skipped, want = self->next - b->pos;
  int error = bio_skip(b, want, &skipped);
  if (error) r = (scan_result){.status = SCAN_IO, .error = error};
  else if (skipped < want) r = (scan_result){.status = SCAN_TRUNCATED, .reason = "truncated in a member", .at = b->pos};
  if (!r.status) {
    tar_status st = scan_member(b, &w, &m, &r);
    if (st == TAR_END) scan_tail(b, &r);
    if (!r.status && st == TAR_MEMBER) {
      self->next = m.next;
      self->over = false;
      return member_tuple(&m);
    }
  }
  if (r.status) raise_scan(self->st, &r, self->url);
  headers_close(&self->h);
  return NULL;
}

static PyObject *walker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"source", "url", NULL};
  PyObject *source, *url;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OU", names, &source, &url)) return NULL;
  WalkerObject *self = (WalkerObject *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->st = PyType_GetModuleState(type);
  self->url = Py_NewRef(url);
  if (headers_open(&self->h, self->st, source)) {
    Py_DECREF(self);
    return NULL;
  }
  if (!self->h.sequential) self->h.b.more = window_more_unlocked;
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
    {Py_tp_doc, "Walker(source, url): (name, type, linkname, start, header, offset, nbytes) of each member"},
    {Py_tp_new, walker_new},
    {Py_tp_dealloc, walker_dealloc},
    {Py_tp_traverse, walker_traverse},
    {Py_tp_clear, walker_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, walker_next},
    {0, NULL}};
PyType_Spec walker_spec = {"wdstools._core.Walker", sizeof(WalkerObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           walker_slots};
