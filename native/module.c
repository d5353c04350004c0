/* module.c: wdstools._core. Its types, its errors, and the small functions. What a user sees is in Python. */
#include "module.h"

core_state *core_of(PyObject *self) { return PyType_GetModuleState(Py_TYPE(self)); }

int as_u64(PyObject *number, void *to_uint64) {
  unsigned long long value = PyLong_AsUnsignedLongLong(number);
  if (value == UINT64_MAX && PyErr_Occurred()) return 0;
  *(uint64_t *)to_uint64 = value;
  return 1;
}

void *raise_shard(core_state *st, error_kind kind, const char *reason, PyObject *url, uint64_t offset) {
  PyObject *error = PyObject_CallFunction(st->errors[kind], "sOK", reason, url ? url : Py_None, (unsigned long long)offset);
  if (error) PyErr_SetObject(st->errors[kind], error);
  Py_XDECREF(error);
  return NULL;
}

void *raise_errno(int error, PyObject *url) {
  errno = error;
  return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, url);
}

static PyObject *core_split(PyObject *Py_UNUSED(module), PyObject *name) {
  sample_name n;
  PyObject *raw = PyUnicode_AsEncodedString(name, "utf-8", "surrogateescape"), *result = NULL, *ext = NULL;
  if (!raw) return NULL;
  if (!sample_split(PyBytes_AS_STRING(raw), (size_t)PyBytes_GET_SIZE(raw), &n)) {
    Py_DECREF(raw);
    Py_RETURN_NONE;
  }
  PyObject *key = PyUnicode_DecodeUTF8(n.key, (Py_ssize_t)n.key_len, "surrogateescape");
  PyObject *text = PyUnicode_DecodeUTF8(n.ext, (Py_ssize_t)n.ext_len, "surrogateescape");
  if (text) ext = PyObject_CallMethod(text, "lower", NULL);
  if (key && ext) result = PyTuple_Pack(2, key, ext);
  Py_XDECREF(key);
  Py_XDECREF(text);
  Py_XDECREF(ext);
  Py_DECREF(raw);
  return result;
}

static PyObject *core_hash(PyObject *Py_UNUSED(module), PyObject *args) {
  Py_buffer view;
  uint64_t seed = 0;
  if (!PyArg_ParseTuple(args, "y*|O&", &view, as_u64, &seed)) return NULL;
  uint64_t hash = sample_hash(view.buf, (size_t)view.len, seed);
  PyBuffer_Release(&view);
  return PyLong_FromUnsignedLongLong(hash);
}

static PyObject *core_format(PyObject *Py_UNUSED(module), PyObject *args) {
  const char *name;
  Py_ssize_t len;
  uint64_t nbytes, mtime;
  if (!PyArg_ParseTuple(args, "y#O&O&", &name, &len, as_u64, &nbytes, as_u64, &mtime)) return NULL;
  size_t cap = tar_group_cap((size_t)len);
  unsigned char *out = PyMem_RawMalloc(cap);
  if (!out) return PyErr_NoMemory();
  size_t n = tar_format(out, cap, name, (size_t)len, nbytes, mtime);
  PyObject *result = n ? PyBytes_FromStringAndSize((char *)out, (Py_ssize_t)n) : NULL;
  if (!n) PyErr_SetString(PyExc_ValueError, "a member name must have a byte and no NUL");
  PyMem_RawFree(out);
  return result;
}

static PyMethodDef core_methods[] = {
    {"scan", (PyCFunction)(void (*)(void))core_scan, METH_VARARGS | METH_KEYWORDS,
     "scan(source, url): walk a whole tar; a dict of the columns of its index, as bytes of native u64 (codes: u32)"},
    {"members", (PyCFunction)(void (*)(void))core_members, METH_VARARGS | METH_KEYWORDS,
     "members(source, url): walk a whole tar; a dict of the columns of its members, as bytes of native u64"},
    {"survey", core_survey, METH_VARARGS,
     "survey(source): every member of a tar that may be damaged, and what lies between them; a dict of columns"},
    {"survey_sums", core_survey_sums, METH_VARARGS,
     "survey_sums(fd, starts, ends): survey() of a regular file, with \"sums\", what checksums() returns, in one pass"},
    {"split_name", core_split, METH_O, "split_name(name): (key, field) of a member name, or None"},
    {"hash_key", core_hash, METH_VARARGS, "hash_key(bytes, seed=0): XXH64"},
    {"checksums", core_checksums, METH_VARARGS,
     "checksums(source, url, starts, ends): (bytes read, XXH3 of them, XXH3 of every [start, end) as native u64), all in "
     "one pass; fewer of the last where the source ends before"},
    {"crc32c", core_crc32c, METH_O, "crc32c(bytes): CRC-32C (Castagnoli)"},
    {"bring_in", core_bring_in, METH_VARARGS,
     "bring_in(fd, start, end): read bytes [start, end) of a file into the page cache, in turn on a disk that seeks"},
    {"format_header", core_format, METH_VARARGS, "format_header(name, nbytes, mtime): the header group of a regular file"},
    {NULL, NULL, 0, NULL}};

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **slot) {
  *slot = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
  return *slot ? PyModule_AddType(module, *slot) : -1;
}

static int load_errors(core_state *st) {
  static const char *const names[E_COUNT] = {"TruncatedError",      "HeaderError",      "TrailingError",
                                             "DuplicateFieldError", "InterleavedError", "UnsupportedError"};
  PyObject *errors = PyImport_ImportModule("wdstools.errors");
  if (!errors) return -1;
  int failed = 0;
  for (int i = 0; i < E_COUNT && !failed; i++) failed = !(st->errors[i] = PyObject_GetAttrString(errors, names[i]));
  if (!failed) failed = !(st->source_error = PyObject_GetAttrString(errors, "SourceError"));
  Py_DECREF(errors);
  return failed ? -1 : 0;
}

static int core_exec(PyObject *module) {
  core_state *st = PyModule_GetState(module);
  if (!(st->s_key = PyUnicode_InternFromString("__key__")) || !(st->s_url = PyUnicode_InternFromString("__url__")) ||
      !(st->s_local_path = PyUnicode_InternFromString("__local_path__")) ||
      !(st->s_readinto = PyUnicode_InternFromString("readinto")))
    return -1;
  if (load_errors(st) || add_type(module, &block_spec, &st->block_type) || add_type(module, &span_spec, &st->span_type) ||
      add_type(module, &stream_spec, &st->stream_type) || add_type(module, &reader_spec, &st->reader_type) ||
      add_type(module, &walker_spec, &st->walker_type) || add_type(module, &writer_spec, &st->writer_type) ||
      add_type(module, &rows_spec, &st->rows_type))
    return -1;
  return PyModule_AddIntConstant(module, "BLOCK_BYTES", (long)BLOCK_BYTES);
}

static int core_traverse(PyObject *module, visitproc visit, void *arg) {
  core_state *st = PyModule_GetState(module);
  for (int i = 0; i < E_COUNT; i++) Py_VISIT(st->errors[i]);
  Py_VISIT(st->source_error);
  Py_VISIT(st->block_type); Py_VISIT(st->span_type); Py_VISIT(st->stream_type);
  Py_VISIT(st->reader_type); Py_VISIT(st->walker_type); Py_VISIT(st->writer_type); Py_VISIT(st->rows_type);
  return 0;
}

static int core_clear(PyObject *module) {
  core_state *st = PyModule_GetState(module);
  for (int i = 0; i < E_COUNT; i++) Py_CLEAR(st->errors[i]);
  Py_CLEAR(st->source_error);
  Py_CLEAR(st->block_type); Py_CLEAR(st->span_type); Py_CLEAR(st->stream_type);
  Py_CLEAR(st->reader_type); Py_CLEAR(st->walker_type); Py_CLEAR(st->writer_type); Py_CLEAR(st->rows_type);
  Py_CLEAR(st->s_key); Py_CLEAR(st->s_url); Py_CLEAR(st->s_local_path); Py_CLEAR(st->s_readinto);
  return 0;
}

static void core_free(void *module) {
  core_state *st = PyModule_GetState(module);
  if (!st) return;
  core_clear(module);
  while (st->pooled) PyMem_RawFree(st->pool[--st->pooled]);
}

static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};
static PyModuleDef core_module = {PyModuleDef_HEAD_INIT,
                                  .m_name = "wdstools._core",
                                  .m_doc = "The C core of wdstools: tar, samples, blocks.",
                                  .m_size = sizeof(core_state),
                                  .m_methods = core_methods,
                                  .m_slots = core_slots,
                                  .m_traverse = core_traverse,
                                  .m_clear = core_clear,
                                  .m_free = core_free};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&core_module); }
