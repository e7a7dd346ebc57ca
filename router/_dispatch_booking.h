// What is written down of a request once it is with its host: identity, row and records; and what its host keeps in reserve.

#ifndef RINGROUTER_DISPATCH_BOOKING_H
#define RINGROUTER_DISPATCH_BOOKING_H

#include "_dispatch_fields.h"

// Publish a record of this request's life: by native code where there is some, or by Python.
static inline bool publish(const Dispatch *self, const passage *way, PyObject *at_ns, number kind)
{
    PyObject *native = at(self, way->attempt, a_native_publish), *by_python = at(self, way->attempt, a_publish);
    PyObject *request = way->request, *zero = self->held[ZERO];
    number now, seq, host_id, event_index;
    if (!to_number(at_ns, &now) || !number_in(self, request, r_seq, &seq) || !number_in(self, request, r_host, &host_id)
        || !named_number(request, names.event_index, &event_index))
        return false;
    const uint64_t words[7] = {now, seq, kind | host_id << 16, event_index, 0, 0, 0};
    if (native != Py_None) {
        const publish_t *to = PyCapsule_GetPointer(native, RINGBUFFER_PUBLISH);
        if (to != NULL)
            to->publish(to->ring, words);
        return to != NULL;
    }
    PyObject *word3 = PyLong_FromUnsignedLongLong(words[2]), *word4 = PyLong_FromUnsignedLongLong(event_index);
    bool is_done = word3 != NULL && word4 != NULL
        && done_with(PyObject_CallFunctionObjArgs(by_python, at_ns, at(self, request, r_seq), word3, word4, zero, zero, zero, NULL));
    Py_XDECREF(word3);
    Py_XDECREF(word4);
    return is_done;
}

// The identity of a request whose head was seen before, as Telemetry.identify; NULL without an exception: ask that.
static inline PyObject *known_identity(const Dispatch *self, const passage *way)
{
    PyObject *known = at(self, way->request, r_identities), *fields = at(self, way->request, r_fields);
    PyObject *request_id = at(self, way->request, r_request_id);
    if (!PyDict_Check(known))
        return NULL;
    int is_tagged = named_truth(fields, names.user);
    is_tagged = is_tagged == 0 ? named_truth(fields, names.metadata) : is_tagged;
    PyObject *name = is_tagged == 0 ? PyObject_GetAttr(way->model, names.name) : NULL;
    PyObject *around = name == NULL ? NULL : PyDict_GetItemWithError(known, name);
    Py_XDECREF(name);
    if (around == NULL || !PyTuple_Check(around) || PyTuple_Size(around) != 2)
        return NULL;
    PyObject *before = PyTuple_GetItem(around, 0), *behind = PyTuple_GetItem(around, 1);
    Py_ssize_t bytes = 0;
    const char *id = PyUnicode_AsUTF8AndSize(request_id, &bytes);
    if (id == NULL || bytes > self->id_bytes || !PyBytes_Check(before) || !PyBytes_Check(behind)) {
        PyErr_Clear(); // half a character, which has no UTF-8
        return NULL;
    }
    Py_ssize_t first = PyBytes_Size(before), last = PyBytes_Size(behind);
    PyObject *identity = PyBytes_FromStringAndSize(NULL, first + self->id_bytes + last);
    if (identity == NULL)
        return NULL;
    char *to = PyBytes_AsString(identity);
    memcpy(to, PyBytes_AsString(before), first);
    memcpy(to + first, id, bytes);
    memset(to + first + bytes, 0, self->id_bytes - bytes);
    memcpy(to + first + self->id_bytes, PyBytes_AsString(behind), last);
    return identity;
}

static inline bool identify(const Dispatch *self, const passage *way)
{
    int has_identity = PyObject_IsTrue(at(self, way->request, r_identity));
    if (has_identity != 0)
        return has_identity == 1;
    PyObject *identity = known_identity(self, way);
    if (identity != NULL)
        return put_new(self, way->request, r_identity, identity);
    return !PyErr_Occurred()
        && done_with(PyObject_CallMethodObjArgs(self->held[TELEMETRY], names.identify, way->request, NULL));
}

// Show the request in the in-flight table.
static inline bool show(const Dispatch *self, const passage *way)
{
    PyObject *request = way->request;
    put(self, request, r_shown_phase, at(self, request, r_phase));
    if (!identify(self, way))
        return false;
    PyObject *record = PyObject_CallFunctionObjArgs(self->held[PACK_ROW], request, NULL);
    bool is_shown = record != NULL
        && done_with(PyObject_CallFunctionObjArgs(self->held[WRITE_ROW], at(self, request, r_row), record, NULL));
    Py_XDECREF(record);
    return is_shown;
}

// Give the request its row and its first record. (It has them, or is over, only if its write has ended it.)
static inline bool book(const Dispatch *self, const passage *way)
{
    PyObject *rows = self->held[FREE_ROWS], *request = way->request;
    long row = PyLong_AsLong(at(self, request, r_row));
    if (row == -1 && PyErr_Occurred())
        return false;
    if (row >= 0)
        return done_with(PyObject_CallMethodObjArgs(self->held[TELEMETRY], names.show_phase, request, NULL));
    if (at(self, request, r_phase) == self->held[DONE])
        return true;
    Py_ssize_t count = PyList_Size(rows);
    if (count == 0)
        return done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names._book, request, NULL));
    put(self, request, r_row, PyList_GetItem(rows, count - 1));
    return PyList_SetSlice(rows, count - 1, count, NULL) == 0 && publish(self, way, at(self, request, r_deq), self->kind_open)
        && show(self, way);
}

// ---------------------------------------------------------------- spares

// As SpareTarget.start(): count one request that takes a connection.
static inline bool count_start(const Dispatch *self, PyObject *spares, number now, number running)
{
    number last_bucket, count, largest, bucket = now / BUCKET_NS;
    if (!number_in(self, spares, s_bucket, &last_bucket) || !number_in(self, spares, s_count, &count)
        || !number_in(self, spares, s_largest, &largest))
        return false;
    count = last_bucket == bucket ? count + 1 : 1;
    number wanted = count < running ? count : running;
    if (last_bucket != bucket && !put_new(self, spares, s_bucket, PyLong_FromUnsignedLongLong(bucket)))
        return false;
    if (!put_new(self, spares, s_count, PyLong_FromUnsignedLongLong(count)))
        return false;
    PyObject *peaks = at(self, spares, s_peaks);
    for (Py_ssize_t left = PyObject_Size(peaks); left != 0; left--) {
        PyObject *last = left < 0 ? NULL : PySequence_GetItem(peaks, left - 1);
        number of_bucket = 0, peak = 0;
        bool is_read = last != NULL && PyTuple_Check(last) && PyTuple_Size(last) == 2
            && to_number(PyTuple_GetItem(last, 0), &of_bucket) && to_number(PyTuple_GetItem(last, 1), &peak);
        Py_XDECREF(last);
        if (!is_read)
            return false;
        if (peak == wanted && of_bucket == bucket)
            return true;
        if (peak > wanted)
            break;
        if (!done_with(PyObject_CallMethodObjArgs(peaks, names.pop, NULL)))
            return false;
    }
    PyObject *pair = tuple_of((PyObject *[]){PyLong_FromUnsignedLongLong(bucket), PyLong_FromUnsignedLongLong(wanted)}, 2);
    bool is_added = pair != NULL && done_with(PyObject_CallMethodObjArgs(peaks, names.append, pair, NULL));
    Py_XDECREF(pair);
    return is_added && (wanted <= largest || put_new(self, spares, s_largest, PyLong_FromUnsignedLongLong(wanted)));
}

static inline bool tend_spares(const Dispatch *self, const passage *way, number running)
{
    PyObject *spares = at(self, way->host, h_spares), *routed = at(self, way->request, r_routed);
    number largest;
    if (Py_TYPE(spares) != self->kinds[SPARES]) {
        PyErr_SetString(PyExc_TypeError, "a host's spares are a SpareTarget");
        return false;
    }
    if (!count_start(self, spares, way->routed_ns, running) || !number_in(self, spares, s_largest, &largest))
        return false;
    if ((number)PyList_Size(at(self, way->host, h_idle)) >= largest)
        return true;
    PyObject *fleet = PyObject_GetAttr(self->held[LOOP], names.fleet);
    bool is_done = fleet != NULL && done_with(PyObject_CallMethodObjArgs(fleet, names.top_up, way->host, routed, NULL));
    Py_XDECREF(fleet);
    return is_done;
}

#endif
