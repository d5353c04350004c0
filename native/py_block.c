/* py_block.c: recycled memory. Fresh pages cost more than parsing: a block goes back to the pool with its last view. */
#include "module.h"

BlockObject *block_new(core_state *st, size_t cap) {
  BlockObject *self = PyObject_New(BlockObject, st->block_type);
  if (!self) return NULL;
  bool pooled = cap == BLOCK_BYTES && st->pooled;
  self->b = (block){pooled ? st->pool[--st->pooled] : PyMem_RawMalloc(cap), 0, cap};
  if (self->b.data) return self;
  Py_DECREF(self);
  return (BlockObject *)PyErr_NoMemory();
}

static void block_dealloc(PyObject *op) {
  BlockObject *self = (BlockObject *)op;
  PyTypeObject *type = Py_TYPE(op);
  core_state *st = PyType_GetModuleState(type);
  if (!st) PyErr_Clear(); /* the interpreter ends, and has taken the module from its types */
  if (st && self->b.data && self->b.cap == BLOCK_BYTES && st->pooled < POOL_BLOCKS) st->pool[st->pooled++] = self->b.data;
  else PyMem_RawFree(self->b.data);
  PyObject_Free(op);
  Py_DECREF(type);
}

/* Writable, for readinto: whoever keeps a view of it keeps the block out of the pool. */
static int block_getbuffer(PyObject *op, Py_buffer *view, int flags) {
  BlockObject *self = (BlockObject *)op;
  return PyBuffer_FillInfo(view, op, self->b.data, (Py_ssize_t)self->b.cap, 0, flags);
}

static PyType_Slot block_slots[] = {{Py_tp_dealloc, block_dealloc}, {Py_bf_getbuffer, block_getbuffer}, {0, NULL}};
PyType_Spec block_spec = {"wdstools._core.Block", sizeof(BlockObject), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, block_slots};

typedef struct {
  PyObject_HEAD
  BlockObject *owner;
  const unsigned char *p;
  size_t n;
} SpanObject;

static int span_getbuffer(PyObject *op, Py_buffer *view, int flags) {
  SpanObject *self = (SpanObject *)op;
  return PyBuffer_FillInfo(view, op, (void *)(uintptr_t)self->p, (Py_ssize_t)self->n, 1, flags);
}

static void span_dealloc(PyObject *op) {
  PyTypeObject *type = Py_TYPE(op);
  Py_DECREF(((SpanObject *)op)->owner);
  PyObject_Free(op);
  Py_DECREF(type);
}

static PyType_Slot span_slots[] = {{Py_tp_dealloc, span_dealloc}, {Py_bf_getbuffer, span_getbuffer}, {0, NULL}};
PyType_Spec span_spec = {"wdstools._core.Span", sizeof(SpanObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, span_slots};

PyObject *block_view(core_state *st, BlockObject *owner, const unsigned char *p, size_t n) {
  SpanObject *span = PyObject_New(SpanObject, st->span_type);
  if (!span) return NULL;
  Py_INCREF(owner);
  span->owner = owner, span->p = p, span->n = n;
  PyObject *view = PyMemoryView_FromObject((PyObject *)span);
  Py_DECREF(span);
  return view;
}
