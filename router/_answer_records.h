// A read of an answer in hand: whose it is, what the client gets of it, and its records.

#ifndef RINGROUTER_ANSWER_RECORDS_H
#define RINGROUTER_ANSWER_RECORDS_H

#include "_answer_fields.h"

// What the steps of a read need; held, since a step may let go of all else that holds it.
typedef struct {
    const Answers *self;
    PyObject *attempt, *request, *client, *scanner, *now;
} reading;

static inline void drop(reading *read)
{
    Py_XDECREF(read->attempt);
    Py_XDECREF(read->request);
    Py_XDECREF(read->client);
    Py_XDECREF(read->scanner);
    Py_XDECREF(read->now);
}

// Whether a request is one of a client of HTTP of which nothing special is known, for a stream or not: 1, 0, or -1 with
// an exception set.
static inline int is_usual(const Answers *self, PyObject *request, bool streams)
{
    const request_slots *at = &self->request.at;
    if (Py_TYPE(request) != self->request.known || !is_nothing(request, &at->path)
        || field(request, &at->stream) != (streams ? Py_True : Py_False) || !is_false(request, &at->fold)
        || !is_none(request, &at->ask))
        return 0;
    PyObject *client = field(request, &at->egress);
    if (Py_TYPE(client) != self->client.known || !is_true(client, &self->client.at.raw))
        return 0;
    PyObject *forecast = PyObject_GetAttr(field(request, &at->model), names.forecast);
    Py_XDECREF(forecast);
    return forecast == NULL ? -1 : forecast == Py_None;
}

// Whether a scanner takes whole chunks and owes nothing.
static inline bool is_even(const Answers *self, PyObject *scanner)
{
    const scanner_slots *at = &self->scanner.at;
    return Py_TYPE(scanner) == self->scanner.known && is_true(scanner, &at->aligned) && is_none(scanner, &at->lesson)
        && is_none(scanner, &at->payloads) && is_none(scanner, &at->sentinel) && is_none(scanner, &at->error)
        && Py_TYPE(field(scanner, &at->_decoder)) == self->decoder.known;
}

// Whether native code takes a read of this attempt: 1, 0, or -1 with an exception set.
static inline int may_take(const Answers *self, PyObject *attempt)
{
    const attempt_slots *at = &self->attempt.at;
    if (Py_TYPE(attempt) != self->attempt.known || !is_none(attempt, &at->_counting) || !is_none(attempt, &at->_fold)
        || Py_TYPE(field(attempt, &at->connection)) != self->connection.known
        || !is_even(self, field(attempt, &at->scanner)))
        return 0;
    return is_usual(self, field(attempt, &at->request), true);
}

// Write to the client.
static inline bool write_out(const reading *read, PyObject *data)
{
    const Answers *self = read->self;
    *number_at(read->request, &self->request.at.bytes_out) += (number)PyBytes_Size(data);
    PyObject *write = Py_NewRef(field(read->client, &self->client.at.write));
    bool is_written = is_done(PyObject_CallFunctionObjArgs(write, data, NULL));
    Py_DECREF(write);
    return is_written;
}

// The twin is Request.let_go().
static inline bool let_go(const Answers *self, PyObject *request)
{
    const request_slots *at = &self->request.at;
    if (!is_nothing(request, &at->body)) {
        Py_ssize_t size = PyObject_Size(field(request, &at->body));
        if (size < 0 || (is_nothing(request, &at->body_bytes) && !put_number(request, &at->body_bytes, (number)size)))
            return false;
        put_ref(request, &at->body, self->empty);
    }
    put_ref(request, &at->fields, Py_None);
    put_ref(request, &at->headers, self->tool.no_headers);
    return true;
}

// The twin is Attempt._first_content().
static inline bool note_first(const reading *read)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    if (!is_true(read->attempt, &self->attempt.at._live) || !is_nothing(read->request, &at->candidates))
        return is_done(PyObject_CallMethodObjArgs(read->attempt, names._first_content, read->now, NULL));
    number now = PyLong_AsUnsignedLongLong(read->now);
    if ((now == (number)-1 && PyErr_Occurred())
        || !put_number(read->attempt, &self->attempt.at._early_end_ns, now + self->is.early_window_ns))
        return false;
    put_ref(read->request, &at->tok1, read->now);
    put_ref(read->request, &at->phase, self->tool.decode_phase);
    put_ref(read->request, &at->check_ns, self->zero);
    return let_go(self, read->request);
}

static inline PyObject *visible_end(const reading *read)
{
    number recv;
    return number_of(read->request, &read->self->request.at.recv, &recv)
        ? PyLong_FromUnsignedLongLong(recv + read->self->is.early_window_ns) : NULL;
}

// Publish the events of a read that the client's socket has taken; what came of them, -1 with an exception set.
static inline long publish_events(const reading *read, PyObject *taken)
{
    const Answers *self = read->self;
    const attempt_slots *at = &self->attempt.at;
    PyObject *events = Py_NewRef(field(read->scanner, &self->scanner.at.events)), *visible = visible_end(read);
    PyObject *came = visible == NULL ? NULL : PyObject_CallFunctionObjArgs(
        self->tool.record_events, read->request, events, field(read->attempt, &at->_publish),
        field(read->attempt, &at->_native_publish), field(read->request, &self->request.at.seq),
        field(read->attempt, &at->_host_bits), read->now, self->zero, taken,
        field(read->attempt, &at->_early_end_ns), visible, NULL);
    long what = came == NULL ? -1 : PyLong_AsLong(came);
    Py_DECREF(events);
    Py_XDECREF(visible);
    Py_XDECREF(came);
    return what;
}

// The twin is Attempt._record().
static inline bool record(const reading *read)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    PyObject *taken = PyLong_FromUnsignedLongLong(monotonic_ns());
    if (taken == NULL)
        return false;
    if (!is_false(read->client, &self->client.at.blocked) || !is_none(read->scanner, &self->scanner.at.lesson)) {
        bool is_recorded = is_done(PyObject_CallMethodObjArgs(read->attempt, names._record, read->now, taken, NULL));
        Py_DECREF(taken);
        return is_recorded;
    }
    long came = publish_events(read, taken);
    bool is_well = came >= 0;
    if (came > 0) {
        is_well = !is_nothing(read->request, &at->tok1) || note_first(read);
        if ((came & ANSWER_CAME) && is_nothing(read->request, &at->ttfo))
            put_ref(read->request, &at->ttfo, read->now);
        if (is_nothing(read->request, &at->out1))
            put_ref(read->request, &at->out1, taken);
    }
    Py_DECREF(taken);
    number code, host_bits;
    return is_well && number_of(read->scanner, &self->scanner.at.code, &code)
        && number_of(read->attempt, &self->attempt.at._host_bits, &host_bits)
        && put_number(read->attempt, &self->attempt.at._token_bits, code | host_bits);
}

#endif
