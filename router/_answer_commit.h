// The first bytes of a stream for its client, and who relays the further ones.

#ifndef RINGROUTER_ANSWER_COMMIT_H
#define RINGROUTER_ANSWER_COMMIT_H

#include "_answer_records.h"

static inline span of_text(const char *of)
{
    return (span){(text)of, (text)of + strlen(of)};
}

// All of an object of bytes; not there where it is another.
static inline span of_bytes(PyObject *object)
{
    if (!PyBytes_Check(object))
        return (span){NULL, NULL};
    text begin = (text)PyBytes_AsString(object);
    return (span){begin, begin + PyBytes_Size(object)};
}

static inline PyObject *joined(const span *parts, int count)
{
    Py_ssize_t bytes = 0;
    for (int i = 0; i < count; i++) {
        if (parts[i].begin == NULL) {
            PyErr_SetString(PyExc_TypeError, "an answer is made of bytes");
            return NULL;
        }
        bytes += parts[i].end - parts[i].begin;
    }
    PyObject *all = PyBytes_FromStringAndSize(NULL, bytes);
    char *to = all == NULL ? NULL : PyBytes_AsString(all);
    for (int i = 0; to != NULL && i < count; i++) {
        memcpy(to, parts[i].begin, parts[i].end - parts[i].begin);
        to += parts[i].end - parts[i].begin;
    }
    return all;
}

// The twin is ClientConnection.begin_stream().
static inline PyObject *stream_begin(const reading *read, PyObject *held)
{
    const Answers *self = read->self;
    PyObject *timing = PyObject_CallFunctionObjArgs(self->tool.server_timing, read->request, NULL);
    if (timing == NULL)
        return NULL;
    const span parts[] = {
        of_bytes(field(read->client, &self->client.at._stream_head)), of_text("content-type: "),
        of_bytes(field(read->attempt, &self->attempt.at._content_type)), of_text("\r\nserver-timing: "),
            of_bytes(timing),
        of_text("\r\n\r\n"), of_bytes(held),
    };
    PyObject *all = joined(parts, sizeof parts / sizeof *parts);
    Py_DECREF(timing);
    return all;
}

// Have further reads relayed by native code. The twin is Attempt._relay_natively().
static inline bool relay_further(const reading *read)
{
    const Answers *self = read->self;
    const attempt_slots *at = &self->attempt.at;
    PyObject *connection = field(read->attempt, &at->connection);
    if (Py_TYPE(connection) != self->connection.known)
        return is_done(PyObject_CallMethodObjArgs(read->attempt, names._relay_natively, NULL));
    PyObject *take_read = PyObject_GetAttr(read->attempt, names._take_read);
    PyObject *unsent = take_read == NULL ? NULL : PyObject_GetAttr(read->attempt, names._unsent_now);
    PyObject *visible = unsent == NULL ? NULL : visible_end(read);
    PyObject *take = visible == NULL ? NULL : PyObject_CallFunctionObjArgs(
        self->tool.relay, read->request, read->scanner, field(read->client, &self->client.at.write),
            field(read->attempt, &at->_publish),
        field(read->attempt, &at->_native_publish), take_read, unsent, field(read->request, &self->request.at.seq),
        field(read->attempt, &at->_host_bits), field(read->attempt, &at->_early_end_ns), visible, NULL);
    if (take != NULL)
        put(connection, &self->connection.at.take, take);
    Py_XDECREF(take_read);
    Py_XDECREF(unsent);
    Py_XDECREF(visible);
    return take != NULL;
}

// Whether the answer's head can go out with what the scanner has found.
static inline bool may_commit(const reading *read)
{
    const Answers *self = read->self;
    PyObject *head = field(read->client, &self->client.at._stream_head);
    return !is_nothing(read->scanner, &self->scanner.at.content_count)
        && is_false(read->request, &self->request.at.committed)
        && PyBytes_Check(head) && PyBytes_Size(head) > 0
        && PyBytes_Check(field(read->attempt, &self->attempt.at._held));
}

// The twins are Attempt._take_early() and Attempt._commit().
static inline bool commit(const reading *read, PyObject *out)
{
    const Answers *self = read->self;
    const attempt_slots *at = &self->attempt.at;
    PyObject *held = Py_NewRef(field(read->attempt, &at->_held));
    PyBytes_Concat(&held, out);
    PyObject *data = held == NULL ? NULL : stream_begin(read, held);
    Py_XDECREF(held);
    PyObject *status = data == NULL ? NULL : PyLong_FromLong(STATUS_OK);
    if (status == NULL) {
        Py_XDECREF(data);
        return false;
    }
    put_ref(read->attempt, &at->_held, self->empty);
    put_ref(read->attempt, &at->_live, Py_True);
    put_ref(read->attempt, &at->_relaying, Py_True);
    put(read->request, &self->request.at.status, status);
    put_ref(read->client, &self->client.at._stream_head, self->empty);
    bool is_out = write_out(read, data);
    Py_DECREF(data);
    if (!is_out)
        return false;
    put_ref(read->request, &self->request.at.committed, Py_True);
    return record(read) && relay_further(read);
}

#endif
