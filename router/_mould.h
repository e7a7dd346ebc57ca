// Mould: objects that begin alike. What mould() in router/mould.py returns where there is no native code is the class's own
// way: that is the twin.

#ifndef RINGROUTER_MOULD_H
#define RINGROUTER_MOULD_H

#include "_slots.h"

typedef struct {
    PyObject_HEAD
    PyObject *pattern;  // what all are copies of
    Py_ssize_t count;
    slot *slots;
} Mould;

// Shared by all copies, a value must never change.
static bool may_be_shared(PyObject *value)
{
    return !(PyList_Check(value) || PyDict_Check(value) || PySet_Check(value) || PyByteArray_Check(value));
}

static bool take_slot(Mould *self, PyObject *name)
{
    slot *to = self->slots + self->count;
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "names of slots are strings");
        return false;
    }
    to->name = Py_NewRef(name);
    self->count++;
    if (!find_slot(self->pattern, to))
        return false;
    PyObject *value = to->kind == IS_OBJECT ? object_at(self->pattern, to) : NULL;
    if (value == NULL || !may_be_shared(value)) {
        PyErr_Format(PyExc_ValueError, "%U is no slot, or has a value that may change", name);
        return false;
    }
    return true;
}

static PyObject *mould_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    (void)names;
    PyObject *pattern, *given;
    if (!PyArg_ParseTuple(arguments, "OO:Mould", &pattern, &given))
        return NULL;
    PyObject *slots = PySequence_Tuple(given);
    Mould *self = slots == NULL ? NULL : (Mould *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL) {
        Py_XDECREF(slots);
        return NULL;
    }
    self->pattern = Py_NewRef(pattern);
    self->slots = PyMem_Calloc(PyTuple_Size(slots) + 1, sizeof(slot));
    bool taken = self->slots != NULL;
    if (!taken)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; taken && i < PyTuple_Size(slots); i++)
        taken = take_slot(self, PyTuple_GetItem(slots, i));
    Py_DECREF(slots);
    if (!taken)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void mould_dealloc(Mould *self)
{
    release_slots(self->slots, self->count);
    PyMem_Free(self->slots);
    Py_XDECREF(self->pattern);
    free_object(self);
}

PyDoc_STRVAR(mould_make_doc, "make()\n--\n\nReturn a new object whose slots are those of the pattern; numbers of C in it are 0.");

static PyObject *mould_make(Mould *self, PyObject *unused)
{
    (void)unused;
    PyTypeObject *type = Py_TYPE(self->pattern);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *made = allocate(type, 0);
    for (Py_ssize_t i = 0; made != NULL && i < self->count; i++) {
        Py_ssize_t offset = self->slots[i].offset;
        *(PyObject **)((char *)made + offset) = Py_NewRef(*(PyObject **)((char *)self->pattern + offset));
    }
    return made;
}

static PyMethodDef mould_methods[] = {
    {"make", (PyCFunction)mould_make, METH_NOARGS, mould_make_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mould_slots[] = {
    {Py_tp_new, mould_new},
    {Py_tp_dealloc, mould_dealloc},
    {Py_tp_methods, mould_methods},
    {Py_tp_doc, "Mould(pattern, slots)\n--\n\nMakes copies of an object, of which nothing but slots is copied."},
    {0, NULL},
};

static PyType_Spec mould_spec = {"router._steps.Mould", sizeof(Mould), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, mould_slots};

#endif
