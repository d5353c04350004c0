/* py_survey.c: survey, what is left of a shard as columns, a member a row. */
#include "module.h"
#include "survey.h"

#include <errno.h>

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
