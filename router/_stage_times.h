// StageTimes: the value of server-timing. The twin is plain_server_timing() in router/ingress/heads.py.

#ifndef RINGROUTER_STAGE_TIMES_H
#define RINGROUTER_STAGE_TIMES_H

#include "_slots.h"

enum { STAGES = 5, STAGE_BYTES_MAX = 48 };

// Times in milliseconds with three digits behind the point; one below zero is left out.
static PyObject *shown_times(const long long stages_ns[STAGES])
{
    static const char *const names[STAGES] = {"ingress;dur=", "queue;dur=", "route;dur=", "connect;dur=", "host;dur="};
    char text_of[STAGES * STAGE_BYTES_MAX], *to = text_of;
    for (int i = 0; i < STAGES; i++) {
        long long ns = stages_ns[i];
        if (ns < 0)
            continue;
        unsigned long long us = ((unsigned long long)ns + 500) / 1000, whole = us / 1000;
        if (to != text_of)
            *to++ = ',', *to++ = ' ';
        for (const char *byte = names[i]; *byte != 0; byte++)
            *to++ = *byte;
        char digits[24], *digit = digits + sizeof digits;
        do {
            *--digit = (char)('0' + whole % 10);
            whole /= 10;
        } while (whole != 0);
        while (digit < digits + sizeof digits)
            *to++ = *digit++;
        *to++ = '.';
        *to++ = (char)('0' + us / 100 % 10);
        *to++ = (char)('0' + us / 10 % 10);
        *to++ = (char)('0' + us % 10);
    }
    return PyBytes_FromStringAndSize(text_of, to - text_of);
}

enum { RECV, DEQ, ADMITTED, ROUTED, CONN, SENT, HFB, TOK_1, TOK_N, STAMPS };

typedef struct {
    PyObject_HEAD
    PyTypeObject *known;
    slot slots[STAMPS];
} StageTimes;

static bool stamp_of(const StageTimes *self, PyObject *request, int which, long long *to)
{
    const slot *from = self->slots + which;
    bool is_known = Py_TYPE(request) == self->known;
    if (is_known && from->kind == IS_NUMBER) {
        *to = (long long)*number_at(request, from);
        return true;
    }
    PyObject *value = value_at(request, is_known, from);
    *to = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return *to != -1 || !PyErr_Occurred();
}

PyDoc_STRVAR(stage_times_of_doc, "of(request)\n--\n\nReturn the value of server-timing for a request as far as it has come.");

static PyObject *stage_times_of(StageTimes *self, PyObject *request)
{
    long long at[STAMPS];
    for (int i = 0; i < STAMPS; i++)
        if (!stamp_of(self, request, i, at + i))
            return NULL;
    long long last = at[TOK_N] != 0 ? at[TOK_N] : at[TOK_1] != 0 ? at[TOK_1] : at[HFB];
    const long long stages_ns[STAGES] = {
        at[DEQ] != 0 ? at[DEQ] - at[RECV] : -1, at[ADMITTED] != 0 ? at[ADMITTED] - at[DEQ] : -1,
        at[ROUTED] != 0 ? at[ROUTED] - at[ADMITTED] : -1, at[CONN] != 0 ? at[CONN] - at[ROUTED] : -1,
        at[HFB] != 0 ? last - (at[SENT] != 0 ? at[SENT] : at[CONN]) : -1,
    };
    return shown_times(stages_ns);
}

static PyObject *stage_times_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static const char *const slot_names[STAMPS] = {
        "recv", "deq", "admitted", "routed", "conn_ns", "sent_ns", "hfb", "tok1", "tok_n",
    };
    (void)names;
    PyObject *probe;
    if (!PyArg_ParseTuple(arguments, "O:StageTimes", &probe))
        return NULL;
    StageTimes *self = (StageTimes *)PyType_GenericNew(type, NULL, NULL);
    if (self != NULL && !find_named_slots(probe, slot_names, self->slots, STAMPS))
        Py_CLEAR(self);
    if (self != NULL)
        self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return (PyObject *)self;
}

static void stage_times_dealloc(StageTimes *self)
{
    release_slots(self->slots, STAMPS);
    Py_XDECREF((PyObject *)self->known);
    free_object(self);
}

static PyMethodDef stage_times_methods[] = {
    {"of", (PyCFunction)stage_times_of, METH_O, stage_times_of_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stage_times_slots[] = {
    {Py_tp_new, stage_times_new},
    {Py_tp_dealloc, stage_times_dealloc},
    {Py_tp_methods, stage_times_methods},
    {Py_tp_doc, "StageTimes(probe)\n--\n\nShows the times of requests; the probe is one, nobody else's."},
    {0, NULL},
};

static PyType_Spec stage_times_spec = {
    "router._steps.StageTimes", sizeof(StageTimes), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, stage_times_slots,
};

#endif
