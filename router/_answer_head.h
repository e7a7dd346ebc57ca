// The head of an answer, and what begins with it.

#ifndef RINGROUTER_ANSWER_HEAD_H
#define RINGROUTER_ANSWER_HEAD_H

#include "_answer_stream.h"

typedef struct {
    PyObject *head;  // owned
    Py_ssize_t length, end;  // of the body (-1: none given), and of the head
} known_head;

// Find what is known of the head at the beginning of a read: 1; 0 for one of which nothing is; -1 with an exception
// set.
static inline int find_head(const Answers *self, PyObject *data, known_head *to)
{
    PyObject *split = PyObject_CallFunctionObjArgs(self->tool.split_head, data, self->zero, self->tool.head_bytes_max,
        NULL);
    if (split == NULL)
        return -1;
    if (PyTuple_Check(split) && PyTuple_Size(split) == 3) {
        PyObject *known = PyDict_GetItemWithError(self->tool.heads, PyTuple_GetItem(split, 0));
        if (known != NULL && Py_TYPE(known) == self->head.known)
            to->head = Py_NewRef(known);
        to->length = PyLong_AsSsize_t(PyTuple_GetItem(split, 1));
        to->end = PyLong_AsSsize_t(PyTuple_GetItem(split, 2));
    }
    Py_DECREF(split);
    return PyErr_Occurred() ? -1 : to->head != NULL;
}

// Whether a request gets what it asked for: a stream of events in chunks, or an answer of a known length: 1, 0 or -1.
static inline int is_fit(const Answers *self, PyObject *head, PyObject *attempt, bool streams)
{
    if (Py_TYPE(attempt) != self->attempt.known || !is_none(attempt, &self->attempt.at._answer))
        return 0;
    PyObject *route = field(head, &self->head.at.route);
    number status;
    if (!number_of(head, &self->head.at.status, &status))
        return -1;
    if (status != STATUS_OK || !PyTuple_Check(route) || PyTuple_Size(route) != 3
        || PyTuple_GetItem(route, 1) != (streams ? Py_True : Py_False))
        return 0;
    return is_usual(self, field(attempt, &self->attempt.at.request), streams);
}

// Make the scanner of an answer, as StreamScanner.of() does. The decoder is given over to it.
static inline PyObject *scanner_of(const Answers *self, PyObject *attempt, PyObject *decoder)
{
    const scanner_slots *at = &self->scanner.at;
    PyObject *limits = PyObject_GetAttr(field(attempt, &self->attempt.at._loop), names.limits);
    PyObject *bytes_max = limits == NULL ? NULL : PyObject_GetAttr(limits, names.event_bytes);
    PyObject *events = bytes_max == NULL ? NULL : PyList_New(0);
    PyObject *scanner = events == NULL ? NULL : PyObject_CallNoArgs(self->tool.new_scanner);
    Py_XDECREF(limits);
    if (scanner == NULL || Py_TYPE(scanner) != self->scanner.known) {
        if (scanner != NULL)
            PyErr_SetString(PyExc_TypeError, "new_scanner() made something else");
        Py_XDECREF(bytes_max);
        Py_XDECREF(events);
        Py_CLEAR(scanner);
        return NULL;
    }
    put_ref(scanner, &at->_decoder, decoder);
    put_ref(scanner, &at->_raw, Py_True);
    put_ref(scanner, &at->_drop_usage, field(attempt, &self->attempt.at.drop_usage));
    put_ref(scanner, &at->_drop_progress, field(attempt, &self->attempt.at.drop_progress));
    put(scanner, &at->_event_bytes_max, bytes_max);
    put_ref(scanner, &at->aligned, Py_True);
    put(scanner, &at->events, events);
    return scanner;
}

// Note what a head says, as Attempt.first_byte() and begin() do.
static inline void note_head(const Answers *self, PyObject *attempt, PyObject *head, PyObject *now)
{
    const attempt_slots *at = &self->attempt.at;
    PyObject *request = field(attempt, &at->request), *route = field(head, &self->head.at.route);
    if (is_nothing(request, &self->request.at.hfb))
        put_ref(request, &self->request.at.hfb, now);
    put_ref(attempt, &at->last_read_ns, now);
    put_ref(attempt, &at->status, field(head, &self->head.at.status));
    put_ref(attempt, &at->_keep_alive, field(head, &self->head.at.keep_alive));
    put_ref(attempt, &at->_content_type, PyTuple_GetItem(route, 0));
    put_ref(attempt, &at->retry_after, PyTuple_GetItem(route, 2));
}

// Begin a stream. The twin is Attempt.begin().
static inline bool begin_stream(const Answers *self, PyObject *connection, PyObject *attempt, PyObject *head,
    PyObject *now)
{
    PyObject *decoder = PyObject_CallNoArgs(self->tool.new_decoder);
    PyObject *scanner = decoder == NULL ? NULL : scanner_of(self, attempt, decoder);
    PyObject *take_read = scanner == NULL ? NULL : PyObject_GetAttr(attempt, names._take_read);
    if (take_read == NULL) {
        Py_XDECREF(decoder);
        Py_XDECREF(scanner);
        return false;
    }
    note_head(self, attempt, head, now);
    put(attempt, &self->attempt.at._decoder, decoder);
    put(attempt, &self->attempt.at.scanner, scanner);
    put(connection, &self->connection.at.take, take_read);
    return true;
}

// Take what stands behind the head of a stream in its first read.
static inline bool take_rest(const Answers *self, PyObject *attempt, text begin, Py_ssize_t bytes, PyObject *now)
{
    PyObject *rest = PyBytes_FromStringAndSize((const char *)begin, bytes);
    int taken = rest == NULL ? -1 : take(self, attempt, rest, now);
    if (taken == 0)
        taken = is_done(PyObject_CallMethodObjArgs(attempt, names._scan_read, rest, now, NULL)) ? 1 : -1;
    Py_XDECREF(rest);
    return taken > 0;
}

#endif
