/* What all classes for Python have in common: one struct, its allocation, and how their types are written down. */
#ifndef RINGBUFFER_CORE_H
#define RINGBUFFER_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "_publish.h"
#include "_ring.h"

/* One struct serves every class: a view of a buffer, and the geometry of its slots. */
typedef struct {
    PyObject_HEAD
    Py_buffer view;
    word_t *words;
    uint64_t word_count;
    ring_t ring;
    publish_t native;
} Core;

/* ------------------------------------------------------------------ life */

static void core_dealloc(Core *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->view.obj != NULL) {
        PyBuffer_Release(&self->view);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static Core *core_alloc(PyTypeObject *type, PyObject *buffer, int writable) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Core *self = (Core *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(buffer, &self->view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    if ((uintptr_t)self->view.buf % sizeof(word_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "the buffer is not aligned to 8 bytes");
        Py_DECREF(self);
        return NULL;
    }
    self->words = self->view.buf;
    self->word_count = (uint64_t)self->view.len / sizeof(word_t);
    return self;
}

static int in_buffer(const Core *self, uint64_t first, uint64_t count, uint64_t size) {
    if (first <= self->word_count && (size == 0 || count <= (self->word_count - first) / size)) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "%llu items of %llu words at word %llu do not fit into a buffer of %llu words",
                 (unsigned long long)count, (unsigned long long)size, (unsigned long long)first,
                 (unsigned long long)self->word_count);
    return 0;
}

/* (buffer, slots, slot_count, slot_words) */
static Core *rows_alloc(PyTypeObject *type, PyObject *args, int writable) {
    PyObject *buffer;
    unsigned long long slots, slot_count, slot_words;
    if (!PyArg_ParseTuple(args, "OKKK", &buffer, &slots, &slot_count, &slot_words)) {
        return NULL;
    }
    Core *self = core_alloc(type, buffer, writable);
    if (self == NULL) {
        return NULL;
    }
    if (slot_words < 2 || slot_count == 0) {
        PyErr_SetString(PyExc_ValueError, "a segment has at least one slot of at least 16 bytes");
        Py_DECREF(self);
        return NULL;
    }
    if (!in_buffer(self, slots, slot_count, slot_words)) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.slots = self->words + slots;
    self->ring.slot_count = slot_count;
    self->ring.slot_words = slot_words;
    return self;
}

/* (buffer, slots, slot_count, slot_words, published) in front of what the class adds; slot_count a power of two */
static Core *ring_alloc(PyTypeObject *type, PyObject *args, int writable) {
    if (PyTuple_Size(args) < 5) {
        PyErr_SetString(PyExc_TypeError, "expected buffer, slots, slot_count, slot_words, published, …");
        return NULL;
    }
    PyObject *geometry = PyTuple_GetSlice(args, 0, 4);
    if (geometry == NULL) {
        return NULL;
    }
    Core *self = rows_alloc(type, geometry, writable);
    Py_DECREF(geometry);
    if (self == NULL) {
        return NULL;
    }
    unsigned long long published = PyLong_AsUnsignedLongLong(PyTuple_GetItem(args, 4));
    if (PyErr_Occurred() || !in_buffer(self, published, 1, 1)) {
        Py_DECREF(self);
        return NULL;
    }
    if ((self->ring.slot_count & (self->ring.slot_count - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "slot_count of a ring is not a power of two");
        Py_DECREF(self);
        return NULL;
    }
    self->ring.published = self->words + published;
    return self;
}

/* ----------------------------------------------------------------- types */

#define FAST(name, function, doc) {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, doc}
#define ONE(name, function, doc) {name, (PyCFunction)(void (*)(void))(function), METH_O, doc}
#define NONE(name, function, doc) {name, (PyCFunction)(void (*)(void))(function), METH_NOARGS, doc}
#define END {NULL, NULL, 0, NULL}

static PyMemberDef writer_members[] = {
    {"next", T_ULONGLONG, offsetof(Core, ring.next), READONLY, "next sequence"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef reader_members[] = {
    {"position", T_ULONGLONG, offsetof(Core, ring.position), READONLY, "next sequence to read"},
    {"lost", T_ULONGLONG, offsetof(Core, ring.lost), READONLY, "records overwritten before they were read"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef no_members[] = {{NULL, 0, 0, 0, NULL}};

#define TYPE(spec, type_name, constructor, type_methods, type_members)                                                 \
    static PyType_Slot spec##_slots[] = {{Py_tp_new, constructor},                                                     \
                                         {Py_tp_dealloc, core_dealloc},                                                \
                                         {Py_tp_methods, type_methods},                                                \
                                         {Py_tp_members, type_members},                                                \
                                         {0, NULL}};                                                                   \
    static PyType_Spec spec = {"ringbuffer._words." type_name, sizeof(Core), 0, Py_TPFLAGS_DEFAULT, spec##_slots}

#endif
