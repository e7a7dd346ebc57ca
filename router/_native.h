// What the router's native code shares: spans of bytes, and tuples made in one step.

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

#endif
