// Where the slots of a class lie in its objects, so that native code reaches them as fast as the interpreter does. The stable
// ABI does not tell. So it is found out once for each class: an attribute of a probe gets a value that is nowhere else, and
// where that then stands in the object is its place. What has no such place (a property, an entry of a dictionary) is asked
// for by its name.

#ifndef RINGROUTER_SLOTS_H
#define RINGROUTER_SLOTS_H

#include "_native.h"

typedef struct {
    PyObject *name;
    enum { BY_NAME, IS_OBJECT, IS_NUMBER } kind;  // IS_NUMBER: an unsigned 64-bit integer of C, as in TokenState
    Py_ssize_t offset;
} slot;

// Where the one word of an object is that equals `wanted`; -1 where there is none, or several.
static inline Py_ssize_t place_of(PyObject *object, Py_ssize_t size, uint64_t wanted)
{
    Py_ssize_t found = -1;
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof wanted <= size; at += sizeof wanted) {
        uint64_t word;
        memcpy(&word, (const char *)object + at, sizeof word);
        if (word != wanted)
            continue;
        if (found >= 0)
            return -1;
        found = at;
    }
    return found;
}

static inline Py_ssize_t size_of_objects(PyTypeObject *type)
{
    PyObject *size = PyObject_GetAttrString((PyObject *)type, "__basicsize__");
    Py_ssize_t bytes = size == NULL ? -1 : PyLong_AsSsize_t(size);
    Py_XDECREF(size);
    return bytes;
}

// Find one slot; `to->name` is set. False with an exception set where the probe has no such attribute.
static inline bool find_slot(PyObject *probe, slot *to)
{
    const uint64_t number = UINT64_C(0xD1B54A32D192ED03); // as good as any: no pointer, no time, no count
    Py_ssize_t size = size_of_objects(Py_TYPE(probe));
    PyObject *before = size < 0 ? NULL : PyObject_GetAttr(probe, to->name);
    PyObject *unique = before == NULL ? NULL : PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    PyObject *integer = unique == NULL ? NULL : PyLong_FromUnsignedLongLong(number);
    bool is_well = integer != NULL;
    to->kind = BY_NAME;
    if (is_well && sizeof(void *) == sizeof number) {
        bool is_set = PyObject_SetAttr(probe, to->name, unique) == 0;
        if (is_set && (to->offset = place_of(probe, size, (uint64_t)(uintptr_t)unique)) >= 0) {
            to->kind = IS_OBJECT;
        } else if (!is_set) {
            PyErr_Clear();
            is_set = PyObject_SetAttr(probe, to->name, integer) == 0;
            if (is_set && (to->offset = place_of(probe, size, number)) >= 0)
                to->kind = IS_NUMBER;
        }
        if (is_set)
            is_well = PyObject_SetAttr(probe, to->name, before) == 0;
        else
            PyErr_Clear();
    }
    Py_XDECREF(before);
    Py_XDECREF(unique);
    Py_XDECREF(integer);
    return is_well;
}

// The object in a slot of kind IS_OBJECT, borrowed; NULL where it was deleted.
static inline PyObject *object_at(PyObject *owner, const slot *from)
{
    return *(PyObject **)((char *)owner + from->offset);
}

static inline uint64_t *number_at(PyObject *owner, const slot *from)
{
    return (uint64_t *)((char *)owner + from->offset);
}

// The value of an attribute, a new reference; NULL with an exception set. `is_known`: the owner is of the probe's class.
static inline PyObject *value_at(PyObject *owner, bool is_known, const slot *from)
{
    PyObject *value = is_known && from->kind == IS_OBJECT ? object_at(owner, from) : NULL;
    return value != NULL ? Py_NewRef(value) : PyObject_GetAttr(owner, from->name);
}

// Find the slots of these names; false with an exception set. What was found is to be released either way.
static inline bool find_named_slots(PyObject *probe, const char *const *names, slot *to, int count)
{
    for (int i = 0; i < count; i++)
        if ((to[i].name = PyUnicode_InternFromString(names[i])) == NULL || !find_slot(probe, to + i))
            return false;
    return true;
}

static inline void release_slots(slot *slots, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        Py_XDECREF(slots[i].name);
}

#endif
