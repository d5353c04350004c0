/* py_sample.c: members -> sample dicts, by webdataset's rules, and its silent losses as errors. */
#include "module.h"

int builder_init(builder *m, core_state *st, PyObject *fields, bool views) {
  *m = (builder){.st = st, .views = views};
  if (fields && fields != Py_None) {
    m->fields = PyFrozenSet_New(fields);
    if (!m->fields) return -1;
  }
  return 0;
}

static void forget_exts(builder *m) {
  for (size_t i = 0; i < m->nexts; i++) Py_CLEAR(m->exts[i].name);
  m->nexts = m->next_ext = 0;
}

void builder_clear(builder *m) {
  forget_exts(m);
  Py_CLEAR(m->url);
  Py_CLEAR(m->local_path);
  Py_CLEAR(m->fields);
  Py_CLEAR(m->select);
  Py_CLEAR(m->rename);
  Py_CLEAR(m->sample);
  free(m->key.data);
  m->key = (bytes_vec){0};
}

int builder_visit(builder *m, visitproc visit, void *arg) {
  for (size_t i = 0; i < m->nexts; i++) Py_VISIT(m->exts[i].name);
  Py_VISIT(m->url);
  Py_VISIT(m->local_path);
  Py_VISIT(m->fields);
  Py_VISIT(m->select);
  Py_VISIT(m->rename);
  Py_VISIT(m->sample);
  return 0;
}

static PyObject *decode_name(const char *p, size_t n) { return PyUnicode_DecodeUTF8(p, (Py_ssize_t)n, "surrogateescape"); }

/* The field name for an ext as it stands in a member name: str.lower() of it, interned. A new reference. */
static PyObject *ext_name(const char *raw, size_t len) {
  PyObject *text = decode_name(raw, len);
  PyObject *name = text ? PyObject_CallMethod(text, "lower", NULL) : NULL;
  Py_XDECREF(text);
  if (name) PyUnicode_InternInPlace(&name);
  return name;
}

/* Look an ext up. The fields of a sample mostly come in the order of the last one, so its successor is tried first. */
static int find_ext(builder *m, const char *raw, size_t len, PyObject **name) {
  for (size_t i = 0, at = m->next_ext; i < m->nexts; i++, at++) {
    if (at >= m->nexts) at = 0;
    ext_entry *e = &m->exts[at];
    if (e->len == len && memcmp(e->raw, raw, len) == 0) {
      m->next_ext = at + 1;
      *name = e->name;
      return e->wanted;
    }
  }
  PyObject *fresh = ext_name(raw, len);
  if (!fresh) return -1;
  int wanted = m->fields ? PySet_Contains(m->fields, fresh) : 1;
  /* A borrowed reference is what the caller gets: it must live in the table (names too long for it: in slot 0). */
  if (m->nexts == EXT_CACHE || len > sizeof m->exts[0].raw) forget_exts(m);
  ext_entry *e = &m->exts[m->nexts++];
  e->name = fresh;
  e->wanted = wanted > 0;
  e->len = len > sizeof e->raw ? SIZE_MAX : len;
  memcpy(e->raw, raw, len > sizeof e->raw ? 0 : len);
  m->next_ext = m->nexts;
  *name = fresh;
  return wanted;
}

static PyObject *new_sample(builder *m, const char *key, size_t len) {
  core_state *st = m->st;
  PyObject *sample = PyDict_New(), *text = decode_name(key, len);
  if (!sample || !text || PyDict_SetItem(sample, st->s_key, text) || PyDict_SetItem(sample, st->s_url, m->url) ||
      (m->local_path && PyDict_SetItem(sample, st->s_local_path, m->local_path)))
    Py_CLEAR(sample);
  Py_XDECREF(text);
  return sample;
}

static int begin_sample(builder *m, const sample_name *n, PyObject **done) {
  PyObject *sample = new_sample(m, n->key, n->key_len);
  m->key.len = 0;
  void *at = sample ? vec_grow(&m->key, n->key_len) : NULL;
  if (!at) {
    if (sample) PyErr_NoMemory();
    Py_XDECREF(sample);
    return -1;
  }
  memcpy(at, n->key, n->key_len);
  *done = m->sample;
  m->sample = sample;
  return 0;
}

/* webdataset's rename_files and select_files, in its order. *name is replaced by what *keep owns. */
static int run_hooks(builder *m, const char **name, size_t *len, PyObject **keep) {
  PyObject *text = decode_name(*name, *len);
  if (text && m->rename) Py_SETREF(text, PyObject_CallOneArg(m->rename, text));
  int go = text ? 1 : -1;
  if (text && m->select) {
    PyObject *answer = PyObject_CallOneArg(m->select, text);
    go = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
  }
  if (go > 0) {
    *keep = PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape");
    if (!*keep) go = -1;
    else *name = PyBytes_AS_STRING(*keep), *len = (size_t)PyBytes_GET_SIZE(*keep);
  }
  Py_XDECREF(text);
  return go;
}

int builder_member(builder *m, const tar_member *member, PyObject **ext, bool *fresh, PyObject **done) {
  const char *name = member->name;
  size_t len = member->name_len;
  PyObject *keep = NULL;
  sample_name n;
  int result = 0;
  *done = NULL;
  *fresh = false;
  if (member->type != TAR_FILE && member->type != TAR_SPARSE) return 0;
  if (m->select || m->rename) {
    sample_name as_is;
    if (!sample_split(name, len, &as_is) && !m->rename) return 0;
    if ((result = run_hooks(m, &name, &len, &keep)) <= 0) goto out;
  }
  result = 0;
  if (!sample_split(name, len, &n)) goto out;
  result = -1;
  if (member->type == TAR_SPARSE) {
    raise_shard(m->st, E_UNSUPPORTED, "sparse member, which cannot be a field", m->url, member->header);
    goto out;
  }
  if (!m->sample || m->key.len != n.key_len || memcmp(m->key.data, n.key, n.key_len) != 0) {
    if (begin_sample(m, &n, done)) goto out;
    *fresh = true;
  }
  result = find_ext(m, n.ext, n.ext_len, ext);
  if (result > 0 && *ext == m->st->s_local_path && !m->local_path) { /* both are interned; else builder_put sees it */
    raise_shard(m->st, E_DUPLICATE, "a field has the reserved name __local_path__", m->url, member->header);
    result = -1;
  }
out:
  Py_XDECREF(keep);
  if (result < 0) Py_CLEAR(*done);
  return result;
}

int builder_put(builder *m, PyObject *ext, PyObject *value, uint64_t header) {
  if (!value) return -1;
  Py_ssize_t before = PyDict_GET_SIZE(m->sample);
  int failed = PyDict_SetItem(m->sample, ext, value);
  Py_DECREF(value);
  if (failed) return -1;
  if (PyDict_GET_SIZE(m->sample) > before) return 0;
  PyObject *reason = PyUnicode_FromFormat("two members of sample %R have the field %R",
                                          PyDict_GetItem(m->sample, m->st->s_key), ext);
  const char *text = reason ? PyUnicode_AsUTF8(reason) : NULL;
  if (!text) {
    PyErr_Clear();
    text = "two members of a sample have one field";
  }
  raise_shard(m->st, E_DUPLICATE, text, m->url, header);
  Py_XDECREF(reason);
  return -1;
}
