// The end of an answer: its connection, its slot, its client and its last record.

#ifndef RINGROUTER_ANSWER_END_H
#define RINGROUTER_ANSWER_END_H

#include "_answer_commit.h"

static inline bool has_ended(const Answers *self, PyObject *decoder)
{
    return is_true(decoder, &self->decoder.at.ended) && is_empty(decoder, &self->decoder.at.surplus);
}

// Whether a connection goes back to the spare ones with nothing else to be done: 1, 0, or -1 with an exception set.
static inline int may_keep(const Answers *self, PyObject *attempt)
{
    PyObject *connection = field(attempt, &self->attempt.at.connection), *host = field(attempt, &self->attempt.at.host);
    PyObject *decoder = field(attempt, &self->attempt.at._decoder);
    bool is_whole = decoder == self->tool.read_body;
    if (Py_TYPE(connection) != self->connection.known || Py_TYPE(host) != self->host.known
        || !(is_whole || (Py_TYPE(decoder) == self->decoder.known && has_ended(self, decoder))))
        return 0;
    PyObject *transport = field(connection, &self->connection.at.transport), *idle = field(host, &self->host.at.idle);
    if (!is_true(attempt, &self->attempt.at._keep_alive) || !is_false(connection, &self->connection.at._paused)
        || !is_false(connection, &self->connection.at.blocked) || !is_nothing(host, &self->host.at.queue)
        || !is_false(host, &self->host.at.drains) || !is_false(host, &self->host.at.on_trial)
        || transport == Py_None || !PyList_Check(idle))
        return 0;
    int reuses = is_whole ? 1 : truth_of(field(host, &self->host.at.facts), names.reuse_after_stream);
    int is_closed = reuses <= 0 ? reuses : truth_of(field(connection, &self->connection.at._fleet), names._closed);
    if (reuses <= 0 || is_closed != 0)
        return reuses < 0 || is_closed < 0 ? -1 : 0;
    PyObject *closing = PyObject_CallMethodObjArgs(transport, names.is_closing, NULL);
    int is_closing = closing == NULL ? -1 : PyObject_IsTrue(closing);
    Py_XDECREF(closing);
    return is_closing < 0 ? -1 : is_closing == 0;
}

// The twins are HostConnection.release() and Fleet.keep().
static inline bool keep_connection(const Answers *self, PyObject *connection, PyObject *host)
{
    const connection_slots *at = &self->connection.at;
    put_ref(connection, &at->attempt, Py_None);
    put_ref(connection, &at->take, Py_None);
    put_ref(connection, &at->used, Py_True);
    PyObject *trailing = PyObject_GetAttr(field(connection, &at->_fleet), names._trailing);
    bool is_kept = trailing != NULL && PySet_Discard(trailing, connection) >= 0;
    Py_XDECREF(trailing);
    return is_kept && put_number(connection, &at->idle_since, monotonic_ns())
        && PyList_Append(field(host, &self->host.at.idle), connection) == 0;
}

// The twins are Attempt.complete() and Loop.release_slot().
static inline bool complete(const reading *read)
{
    const Answers *self = read->self;
    int may = may_keep(self, read->attempt);
    if (may < 0)
        return false;
    if (may == 0)
        return is_done(PyObject_CallMethodObjArgs(read->attempt, names.complete, read->now, NULL));
    PyObject *connection = Py_NewRef(field(read->attempt, &self->attempt.at.connection));
    PyObject *host = Py_NewRef(field(read->attempt, &self->attempt.at.host));
    put_ref(read->attempt, &self->attempt.at.over, Py_True);
    put_ref(read->attempt, &self->attempt.at.connection, Py_None);
    bool is_well = keep_connection(self, connection, host) && add(host, &self->host.at.running, -1);
    PyObject *loop = field(read->attempt, &self->attempt.at._loop);
    int waits = is_well ? truth_of(loop, names.waiting_count) : -1;
    if (waits > 0)
        is_well = is_done(PyObject_CallMethodObjArgs(loop, names.pump, host, read->now, NULL));
    Py_DECREF(connection);
    Py_DECREF(host);
    return is_well && waits >= 0;
}

// TCP_INFO of the client, as ClientConnection.tcp_info() does.
static inline PyObject *tcp_of(const reading *read)
{
    const Answers *self = read->self;
    PyObject *transport = field(read->client, &self->client.at._transport);
    PyObject *closing = transport == Py_None
        ? Py_NewRef(Py_True) : PyObject_CallMethodObjArgs(transport, names.is_closing, NULL);
    int is_closing = closing == NULL ? -1 : PyObject_IsTrue(closing);
    Py_XDECREF(closing);
    if (is_closing < 0)
        return NULL;
    if (is_closing)
        return Py_NewRef(self->empty);
    return PyObject_CallFunctionObjArgs(self->tool.tcp_info, field(read->client, &self->client.at._descriptor), NULL);
}

// The twins are ClientConnection.finished() and HttpServer.answered().
static inline bool free_client(const reading *read)
{
    const Answers *self = read->self;
    const client_slots *at = &self->client.at;
    if (!is_false(read->client, &at->_close_after) || !is_empty(read->client, &at->_buffer)
        || !is_false(read->client, &at->_flooded))
        return is_done(PyObject_CallMethodObjArgs(read->client, names.finished, NULL));
    put_ref(read->client, &at->request, Py_None);
    put_ref(read->client, &at->_stream_head, self->empty);
    put_ref(read->client, &at->request_id, self->empty_text);
    PyObject *server = field(read->client, &at->_server), *connections = PyObject_GetAttr(server, names.connections);
    int is_one = connections == NULL ? -1 : PySet_Contains(connections, read->client);
    Py_XDECREF(connections);
    if (is_one <= 0)
        return is_one == 0;
    PyObject *idle = PyObject_GetAttr(server, names._idle);
    PyObject *now = idle == NULL ? NULL : PyLong_FromUnsignedLongLong(monotonic_ns());
    bool is_noted = now != NULL && PyDict_SetItem(idle, read->client, now) == 0;
    Py_XDECREF(idle);
    Py_XDECREF(now);
    return is_noted;
}

static inline bool take_out_of_flight(const reading *read, PyObject *loop)
{
    PyObject *in_flight = PyObject_GetAttr(loop, names.in_flight);
    PyObject *seq = field(read->request, &read->self->request.at.seq);
    if (in_flight == NULL)
        return false;
    bool is_in = PyDict_GetItemWithError(in_flight, seq) != NULL;
    bool is_out = is_in ? PyDict_DelItem(in_flight, seq) == 0 : !PyErr_Occurred();
    Py_DECREF(in_flight);
    return is_out;
}

static inline bool publish_done(const reading *read, const publish_t *to, number done_ns)
{
    const Answers *self = read->self;
    number seq, host;
    if (!number_of(read->request, &self->request.at.seq, &seq)
        || !number_of(read->request, &self->request.at.host, &host))
        return false;
    const number words[7] = {
        done_ns, seq, self->is.done_event | host << 16,
        *number_at(read->request, &self->request.at.event_index), 0, 0, 0,
    };
    to->publish(to->ring, (const uint64_t *)words);
    return true;
}

// Keep a request until its done record is written.
static inline bool keep_ended(const reading *read, PyObject *loop)
{
    PyObject *ended = PyObject_GetAttr(loop, names._ended);
    bool is_kept = ended != NULL && is_done(PyObject_CallMethodObjArgs(ended, names.append, read->request, NULL))
        && free_client(read);
    Py_ssize_t count = is_kept ? PyObject_Size(ended) : -1;
    Py_XDECREF(ended);
    return count >= 0 && (count < ENDED_MAX || is_done(PyObject_CallMethodObjArgs(loop, names.flush, NULL)));
}

// The twin is Loop.finish(), of a request that has its row and is not over.
static inline bool finish(const reading *read, PyObject *loop, const publish_t *to)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    number now = PyLong_AsUnsignedLongLong(read->now), out_n = *number_at(read->request, &at->out_n), flags;
    if ((now == (number)-1 && PyErr_Occurred()) || !number_of(read->request, &at->flags, &flags))
        return false;
    number done_ns = out_n > now ? out_n : now;
    if (is_true(read->request, &at->stream))
        flags |= self->is.flag_stream;
    put_ref(read->request, &at->phase, self->tool.done_phase);
    put_ref(read->request, &at->attempt, Py_None);
    put_ref(read->request, &at->outcome, self->tool.ok_outcome);
    if (!put_number(read->request, &at->done_ns, done_ns) || !put_number(read->request, &at->flags, flags)
        || !take_out_of_flight(read, loop) || !publish_done(read, to, done_ns))
        return false;
    if ((!is_nothing(read->request, &at->body) || !is_none(read->request, &at->fields)) && !let_go(self, read->request))
        return false;
    PyObject *tcp = tcp_of(read);
    if (tcp == NULL)
        return false;
    put(read->request, &at->packed_tcp, tcp);
    return keep_ended(read, loop);
}

// The client has a whole answer when it was written; when it has a stream is known by now. As Loop.end() does.
static inline bool note_out(const reading *read)
{
    const request_slots *at = &read->self->request.at;
    if (is_true(read->request, &at->stream) || is_nothing(read->request, &at->tok1))
        return true;
    number out_ns = monotonic_ns();
    *number_at(read->request, &at->out_n) = out_ns;
    return put_number(read->request, &at->out1, out_ns);
}

// The twins are Loop.end_ok() and end().
static inline bool end_ok(const reading *read)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    PyObject *loop = Py_NewRef(field(read->attempt, &self->attempt.at._loop));
    PyObject *host = field(read->attempt, &self->attempt.at.host);
    PyObject *capsule = field(read->attempt, &self->attempt.at._native_publish);
    const publish_t *to = capsule == Py_None ? NULL : PyCapsule_GetPointer(capsule, RINGBUFFER_PUBLISH);
    long row = PyLong_AsLong(field(read->request, &at->row));
    bool is_well = !PyErr_Occurred();
    bool is_plain = to != NULL && row >= 0 && field(read->request, &at->attempt) == read->attempt
        && Py_TYPE(host) == self->host.known
        && is_false(host, &self->host.at.on_trial) && is_false(read->request, &at->folded)
        && is_false(read->client, &self->client.at.blocked)
        && field(read->request, &at->phase) != self->tool.done_phase
        && field(read->request, &at->terms) == self->tool.no_terms;
    if (is_well && is_plain)
        is_well = add(host, &self->host.at.served_count, 1) && note_out(read) && finish(read, loop, to);
    else if (is_well)
        is_well = is_done(PyObject_CallMethodObjArgs(loop, names.end_ok, read->request, read->now, NULL));
    Py_DECREF(loop);
    return is_well;
}

static inline bool is_usual_sentinel(const Answers *self, PyObject *sentinel)
{
    PyObject *usual = self->tool.usual_sentinel;
    Py_ssize_t bytes = PyBytes_Size(usual);
    return PyBytes_Check(sentinel) && PyBytes_Size(sentinel) == bytes
        && memcmp(PyBytes_AsString(sentinel), PyBytes_AsString(usual), bytes) == 0;
}

// Whether a read ends a stream that the client has the beginning of, and well.
static inline bool may_end(const reading *read)
{
    const Answers *self = read->self;
    number finished = 0, choices = 0;
    bool is_plain = is_true(read->attempt, &self->attempt.at._live)
        && is_false(read->request, &self->request.at.timing_asked)
        && is_usual_sentinel(self, field(read->scanner, &self->scanner.at.sentinel))
        && number_of(read->scanner, &self->scanner.at.finish_count, &finished)
        && number_of(read->scanner, &self->scanner.at.choice_count, &choices);
    return is_plain && finished > 0 && finished >= choices;
}

// The twins are Attempt._take_last() and ClientConnection.end_stream().
static inline bool end_stream(const reading *read, PyObject *out)
{
    const Answers *self = read->self;
    const request_slots *to = &self->request.at;
    const scanner_slots *from = &self->scanner.at;
    put_ref(read->request, &to->usage, field(read->scanner, &from->usage));
    put_ref(read->request, &to->timings, field(read->scanner, &from->timings));
    put_ref(read->request, &to->metrics, field(read->scanner, &from->metrics));
    put_ref(read->request, &to->choice_count, field(read->scanner, &from->choice_count));
    PyObject *data = Py_NewRef(out);
    PyBytes_Concat(&data, self->tool.usual_end);
    bool is_out = data != NULL && write_out(read, data);
    Py_XDECREF(data);
    return is_out && record(read) && complete(read) && end_ok(read);
}

#endif
