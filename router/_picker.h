// Picker: which host gets a request, by the default policy. The twin is plain_pick() in router/picking.py.

#ifndef RINGROUTER_PICKER_H
#define RINGROUTER_PICKER_H

#include "_slots.h"

enum { HOST_ID, RUNNING, SLOTS, BAR, DRAINING, USABLE, HOST_SLOTS };
enum { CANDIDATES_TOLD = 4, CANDIDATE_BYTES = 8, HOSTS_ON_STACK = 64 };  // the layout is that of CANDIDATES in records.py
enum { CHOSEN = 1, BUSIER = 2, FULL = 3, UNHEALTHY = 4 };                // of routing/candidates.py

typedef struct {
    PyObject_HEAD
    PyTypeObject *known;
    slot slots[HOST_SLOTS];
} Picker;

typedef struct {
    long long id, busy, slots, bar;
    bool usable;
} candidate;

static PyObject *attribute(const Picker *self, PyObject *host, int which)
{
    return value_at(host, Py_TYPE(host) == self->known, self->slots + which);
}

static bool whole_number(const Picker *self, PyObject *host, int which, long long *to)
{
    PyObject *value = attribute(self, host, which);
    *to = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return *to != -1 || !PyErr_Occurred();
}

static bool look_at(const Picker *self, PyObject *host, candidate *to)
{
    if (!whole_number(self, host, HOST_ID, &to->id) || !whole_number(self, host, RUNNING, &to->busy)
        || !whole_number(self, host, SLOTS, &to->slots) || !whole_number(self, host, BAR, &to->bar))
        return false;
    PyObject *draining = attribute(self, host, DRAINING), *usable = draining == NULL ? NULL : attribute(self, host, USABLE);
    Py_ssize_t drained = usable == NULL ? -1 : PyObject_Size(draining);
    int is_usable = drained < 0 ? -1 : PyObject_IsTrue(usable);
    Py_XDECREF(draining);
    Py_XDECREF(usable);
    if (is_usable < 0)
        return false;
    to->busy += drained;
    to->usable = is_usable == 1;
    if (to->slots <= 0 || to->id < 0 || to->id > 0xFFFF || to->bar < 0 || to->bar > 0xFFFF) {
        PyErr_SetString(PyExc_ValueError, "a host has an id and a bar of 16 bits, and slots");
        return false;
    }
    return true;
}

// The twin of choose() in routing/least_outstanding.py, for hosts of which none has failed the request.
static Py_ssize_t least_outstanding(const candidate *all, Py_ssize_t count, Py_ssize_t turn)
{
    Py_ssize_t best = -1;
    long long best_busy = 1, best_slots = 1;
    for (Py_ssize_t offset = 0; offset < count; offset++) {
        Py_ssize_t index = (turn + offset) % count;
        const candidate *each = all + index;
        if (each->usable && each->busy * best_slots < best_busy * each->slots)
            best = index, best_busy = each->busy, best_slots = each->slots;
    }
    return best;
}

static void tell(const candidate *of, int reason, unsigned char *to)
{
    float load = (float)((double)of->busy / (double)of->slots);
    to[0] = (unsigned char)of->id, to[1] = (unsigned char)(of->id >> 8);
    to[2] = (unsigned char)reason, to[3] = (unsigned char)(reason >> 8);
    memcpy(to + 4, &load, sizeof load);
}

static PyObject *told(const candidate *all, Py_ssize_t count, Py_ssize_t chosen)
{
    unsigned char record[CANDIDATES_TOLD * CANDIDATE_BYTES] = {0}, *to = record + CANDIDATE_BYTES;
    tell(all + chosen, CHOSEN, record);
    for (Py_ssize_t i = 0; i < count && to < record + sizeof record; i++)
        if (i != chosen) {
            const candidate *each = all + i;
            int barred = each->bar != 0 ? (int)each->bar : UNHEALTHY;
            tell(each, !each->usable ? barred : each->busy >= each->slots ? FULL : BUSIER, to);
            to += CANDIDATE_BYTES;
        }
    return PyBytes_FromStringAndSize((const char *)record, sizeof record);
}

PyDoc_STRVAR(pick_doc,
    "pick(hosts, turn)\n--\n\n"
    "Return the index of the host that gets a request (-1: none can take it) and what a record tells of the hosts.");

static PyObject *picker_pick(Picker *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyList_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "pick(hosts: list, turn: int)");
        return NULL;
    }
    Py_ssize_t turn = PyLong_AsSsize_t(arguments[1]), host_count = PyList_Size(arguments[0]);
    if (turn < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a turn is not below zero");
        return NULL;
    }
    candidate on_stack[HOSTS_ON_STACK], *all = on_stack;
    if (host_count > HOSTS_ON_STACK && (all = PyMem_Malloc(host_count * sizeof *all)) == NULL)
        return PyErr_NoMemory();
    bool seen = true;
    for (Py_ssize_t i = 0; seen && i < host_count; i++) {
        PyObject *host = PyList_GetItem(arguments[0], i);  // NULL where asking a host has made the list shorter
        seen = host != NULL;
        if (seen) {
            Py_INCREF(host);
            seen = look_at(self, host, all + i);
            Py_DECREF(host);
        }
    }
    Py_ssize_t chosen = seen ? least_outstanding(all, host_count, turn) : -1;
    PyObject *record = !seen ? NULL : chosen < 0 ? PyBytes_FromStringAndSize(NULL, 0) : told(all, host_count, chosen);
    if (all != on_stack)
        PyMem_Free(all);
    return record == NULL ? NULL : tuple_of((PyObject *[]){PyLong_FromSsize_t(chosen), record}, 2);
}

static PyObject *picker_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static const char *const slot_names[HOST_SLOTS] = {"host_id", "running", "slots", "bar", "draining", "usable"};
    (void)names;
    PyObject *probe;
    if (!PyArg_ParseTuple(arguments, "O:Picker", &probe))
        return NULL;
    Picker *self = (Picker *)PyType_GenericNew(type, NULL, NULL);
    if (self != NULL && !find_named_slots(probe, slot_names, self->slots, HOST_SLOTS))
        Py_CLEAR(self);
    if (self != NULL)
        self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return (PyObject *)self;
}

static void picker_dealloc(Picker *self)
{
    release_slots(self->slots, HOST_SLOTS);
    Py_XDECREF((PyObject *)self->known);
    free_object(self);
}

static PyMethodDef picker_methods[] = {
    {"pick", (PyCFunction)(void (*)(void))picker_pick, METH_FASTCALL, pick_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot picker_slots[] = {
    {Py_tp_new, picker_new},
    {Py_tp_dealloc, picker_dealloc},
    {Py_tp_methods, picker_methods},
    {Py_tp_doc, "Picker(probe)\n--\n\nPicks among hosts; the probe is one, nobody else's."},
    {0, NULL},
};

static PyType_Spec picker_spec = {"router._steps.Picker", sizeof(Picker), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, picker_slots};

#endif
