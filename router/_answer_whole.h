// An answer that is no stream, in one read.

#ifndef RINGROUTER_ANSWER_WHOLE_H
#define RINGROUTER_ANSWER_WHOLE_H

#include "_answer_head.h"

// The twin is ClientConnection.whole(), for a client whose connection stays open.
static inline PyObject *whole_answer(const reading *read, span body)
{
    const Answers *self = read->self;
    PyObject *host = field(read->attempt, &self->attempt.at.host);
    PyObject *id = field(read->request, &self->request.at.request_id);
    Py_ssize_t id_bytes = 0;
    const char *id_text = PyUnicode_AsUTF8AndSize(id, &id_bytes);
    PyObject *timing = id_text == NULL
        ? NULL : PyObject_CallFunctionObjArgs(self->tool.server_timing, read->request, NULL);
    PyObject *line = timing == NULL
        ? NULL : PyObject_CallFunctionObjArgs(self->tool.host_header, field(host, &self->host.at.name), NULL);
    PyObject *all = NULL;
    if (line != NULL) {
        char length[64];
        PyOS_snprintf(length, sizeof length, "\r\ncontent-length: %zd\r\n\r\n", (Py_ssize_t)(body.end - body.begin));
        const span parts[] = {
            of_text("HTTP/1.1 200 OK\r\ncontent-type: "),
            of_bytes(field(read->attempt, &self->attempt.at._content_type)),
            of_text("\r\nx-request-id: "), {(text)id_text, (text)id_text + id_bytes}, of_text("\r\n"), of_bytes(line),
            of_text("server-timing: "), of_bytes(timing), of_text(length), body,
        };
        all = joined(parts, sizeof parts / sizeof *parts);
    }
    Py_XDECREF(line);
    Py_XDECREF(timing);
    return all;
}

// Keep what a whole answer says. The twin is in Attempt._end_whole().
static inline bool note_report(const reading *read, PyObject *report)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    const slot *to[] = {&at->usage, &at->timings, &at->metrics, &at->choice_count};
    for (int i = 0; i < 4; i++)
        put_ref(read->request, to[i], PyTuple_GetItem(report, i));
    number flags;
    if (PyTuple_GetItem(report, 4) != Py_True)
        return true;
    return number_of(read->request, &at->flags, &flags)
        && put_number(read->request, &at->flags, flags | self->is.flag_calls_tools);
}

static inline bool is_ascii(PyObject *string)
{
    Py_ssize_t bytes = 0;
    const char *text_of = PyUnicode_Check(string) ? PyUnicode_AsUTF8AndSize(string, &bytes) : NULL;
    if (text_of == NULL)
        PyErr_Clear();
    for (Py_ssize_t i = 0; text_of != NULL && i < bytes; i++)
        if ((text_of[i] & 0x80) != 0)
            return false;
    return text_of != NULL;
}

// Whether a whole answer may go out: 1, 0, or -1 with an exception set.
static inline int may_pass(const reading *read, Py_ssize_t bytes)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    if (!is_false(read->request, &at->committed) || field(read->request, &at->terms) != self->tool.no_terms
        || !is_false(read->client, &self->client.at._close_after) || !is_ascii(field(read->request, &at->request_id))
        || Py_TYPE(field(read->attempt, &self->attempt.at.host)) != self->host.known)
        return 0;
    PyObject *limits = PyObject_GetAttr(field(read->attempt, &self->attempt.at._loop), names.limits);
    PyObject *bytes_max = limits == NULL ? NULL : PyObject_GetAttr(limits, names.answer_bytes);
    Py_ssize_t limit = bytes_max == NULL ? -1 : PyLong_AsSsize_t(bytes_max);
    Py_XDECREF(limits);
    Py_XDECREF(bytes_max);
    return PyErr_Occurred() ? -1 : bytes <= limit;
}

// The twins are Attempt._take_whole() and _end_whole().
static inline bool pass_whole(const reading *read, PyObject *head, span body, PyObject *report)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    number now = PyLong_AsUnsignedLongLong(read->now);
    if (now == (number)-1 && PyErr_Occurred())
        return false;
    note_head(self, read->attempt, head, read->now);
    put_ref(read->attempt, &self->attempt.at._decoder, self->tool.read_body);
    if (!note_report(read, report))
        return false;
    put_ref(read->request, &at->tok1, read->now);
    put_ref(read->request, &at->ttfc, read->now);
    put_ref(read->request, &at->ttfo, read->now);
    *number_at(read->request, &at->tok_n) = now;
    put_ref(read->request, &at->status, field(read->attempt, &self->attempt.at.status));
    PyObject *data = whole_answer(read, body);
    bool is_out = data != NULL && write_out(read, data);
    Py_XDECREF(data);
    return is_out && complete(read) && end_ok(read);
}

// Take a read that is a whole answer: 1; 0 where the twin must, and nothing has changed; -1 with an exception set.
static inline int take_whole(const Answers *self, PyObject *attempt, PyObject *head, span body, PyObject *now)
{
    reading read = {self, Py_NewRef(attempt), Py_NewRef(field(attempt, &self->attempt.at.request)), NULL, NULL,
        Py_NewRef(now)};
    read.client = Py_NewRef(field(read.request, &self->request.at.egress));
    int taken = may_pass(&read, body.end - body.begin);
    PyObject *bytes = taken <= 0 ? NULL : PyBytes_FromStringAndSize((const char *)body.begin, body.end - body.begin);
    PyObject *report = bytes == NULL ? NULL : PyObject_CallFunctionObjArgs(self->tool.report_of, bytes, NULL);
    if (taken > 0)
        taken = report == NULL ? -1 : report != Py_None;
    if (taken > 0)
        taken = pass_whole(&read, head, body, report) ? 1 : -1;
    Py_XDECREF(report);
    Py_XDECREF(bytes);
    drop(&read);
    return taken;
}

#endif
