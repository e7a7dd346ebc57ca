// What the router's native code shares: spans of bytes, tuples made in one step, objects released.

#ifndef RINGROUTER_NATIVE_H
#define RINGROUTER_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef const unsigned char *text;

typedef struct {
    text begin, end;  // begin NULL: not there, or null
} span;

static inline bool is_hex(unsigned char byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f') || (byte >= 'A' && byte <= 'F');
}

static inline int hex_value(unsigned char byte)
{
    return byte <= '9' ? byte - '0' : (byte | 0x20) - 'a' + 10;
}

// A tuple that takes over its values; NULL, with all of them released, if one is NULL. (Py_BuildValue reads a format
// first, and this stands before first tokens.)
static inline PyObject *tuple_of(PyObject *const *values, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);
    bool whole = tuple != NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        whole = whole && values[i] != NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!whole)
            Py_XDECREF(values[i]);
        else
            PyTuple_SetItem(tuple, i, values[i]);
    }
    if (!whole)
        Py_CLEAR(tuple);
    return tuple;
}

// The last step of every tp_dealloc: what the object held is released already.
static inline void free_object(void *object)
{
    PyTypeObject *type = Py_TYPE((PyObject *)object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

#endif
