// A read of a stream, from the scan to all that follows from it.

#ifndef RINGROUTER_ANSWER_STREAM_H
#define RINGROUTER_ANSWER_STREAM_H

#include "_answer_end.h"

// Do what follows from a read that was scanned; `out` is what the client gets of it.
static inline bool take_scanned(const reading *read, PyObject *out)
{
    const Answers *self = read->self;
    bool is_aligned = is_true(read->scanner, &self->scanner.at.aligned);
    bool is_last = !is_none(read->scanner, &self->scanner.at.sentinel);
    bool is_live = is_true(read->attempt, &self->attempt.at._live);
    if (is_last ? may_end(read) : is_aligned && (is_live || may_commit(read))) {
        const request_slots *at = &self->request.at;
        if ((is_last || !is_live) && is_true(read->scanner, &self->scanner.at.first_choices)
            && is_nothing(read->request, &at->ttfc))
            put_ref(read->request, &at->ttfc, read->now);
        if (is_last)
            return end_stream(read, out);
        if (!is_live)
            return commit(read, out);
        return (PyBytes_Size(out) == 0 || write_out(read, out)) && record(read);
    }
    return !PyErr_Occurred()
        && is_done(PyObject_CallMethodObjArgs(read->attempt, names._take_scanned, out, read->now, NULL));
}

// Take a read: 1; 0 where the twin must, and nothing has changed; -1 with an exception set.
static inline int take(const Answers *self, PyObject *attempt, PyObject *data, PyObject *now)
{
    int may = may_take(self, attempt);
    if (may <= 0)
        return may;
    reading read = {
        self, Py_NewRef(attempt), Py_NewRef(field(attempt, &self->attempt.at.request)), NULL,
        Py_NewRef(field(attempt, &self->attempt.at.scanner)), Py_NewRef(now),
    };
    read.client = Py_NewRef(field(read.request, &self->request.at.egress));
    PyObject *out = PyObject_CallFunctionObjArgs(self->tool.scan, read.scanner, data, NULL);
    int taken = out == NULL ? -1 : out != Py_None;
    if (taken == 1) {
        put_ref(attempt, &self->attempt.at.last_read_ns, now);
        if (!is_true(read.scanner, &self->scanner.at.aligned)) { // as ChunkedDecoder.end()
            PyObject *decoder = field(read.scanner, &self->scanner.at._decoder);
            put_ref(decoder, &self->decoder.at._state, self->tool.trailer_state);
            put_ref(decoder, &self->decoder.at.ended, Py_True);
        }
        taken = take_scanned(&read, out) ? 1 : -1;
    }
    Py_XDECREF(out);
    drop(&read);
    return taken;
}

#endif
