// An answer of a host, from the read that holds its head to its end, for the usual one to a client of HTTP: what else would
// be some twenty functions of Python for its first read and as many for its last, each of them memory that a first token finds
// cold.
//
//     Answers.begin()   a host's first read: the head of a stream, or a whole answer. Twin: HostConnection._collect_head with
//                       Attempt.begin, and Attempt._end_whole
//     Answers.take()    a read of a stream that is no single token like the last. Twin: Attempt._scan_read, and all behind it
//
// Each looks before it changes anything whether all is as usual; what is not is left to the twin: false is returned. From
// where a read is scanned, which cannot be undone, the twin takes over in the middle (Attempt._take_scanned, _record, complete,
// Loop.end_ok). So nothing here may guess, and a step is either wholly done here or wholly there.
//
// A write may call back into the router: the client's socket may be full. So what may have changed is read anew behind it.

#include "_native.h"
#include "_slots.h"

#include "../ringbuffer/_publish.h"

#include <time.h>

typedef unsigned long long number;

// ---------------------------------------------------------------- what is known of the router's objects

#define FIELDS_OF_CONNECTION(X) X(_fleet) X(_head) X(_paused) X(attempt) X(blocked) X(host) X(idle_since) X(take) X(transport) X(used)
#define FIELDS_OF_ATTEMPT(X) \
    X(_content_type) X(_counting) X(_decoder) X(_early_end_ns) X(_fold) X(_held) X(_host_bits) X(_keep_alive) X(_live) X(_loop) \
    X(_answer) X(_native_publish) X(_publish) X(_relaying) X(_token_bits) X(connection) X(drop_progress) X(drop_usage) X(host) \
    X(last_read_ns) X(over) X(request) X(retry_after) X(scanner) X(status)
#define FIELDS_OF_REQUEST(X) \
    X(ask) X(attempt) X(body) X(body_bytes) X(candidates) X(check_ns) X(choice_count) X(committed) X(done_ns) X(egress) \
    X(fields) X(flags) X(fold) X(folded) X(headers) X(hfb) X(host) X(metrics) X(model) X(out1) X(outcome) X(packed_tcp) X(path) \
    X(phase) X(recv) X(request_id) X(row) X(seq) X(status) X(stream) X(terms) X(timing_asked) X(timings) X(tok1) X(ttfc) X(ttfo) X(usage)
#define COUNTS_OF_REQUEST(X) X(bytes_out) X(event_index) X(out_n) X(tok_n)
#define FIELDS_OF_CLIENT(X) \
    X(_buffer) X(_close_after) X(_descriptor) X(_flooded) X(_server) X(_stream_head) X(_transport) X(blocked) X(raw) X(request) \
    X(request_id) X(write)
#define FIELDS_OF_SCANNER(X) \
    X(_decoder) X(_drop_progress) X(_drop_usage) X(_event_bytes_max) X(_raw) X(aligned) X(choice_count) X(code) X(content_count) \
    X(error) X(events) X(finish_count) X(first_choices) X(lesson) X(metrics) X(payloads) X(sentinel) X(timings) X(usage)
#define FIELDS_OF_DECODER(X) X(_state) X(ended) X(surplus)
#define FIELDS_OF_HEAD(X) X(chunked) X(keep_alive) X(route) X(status)
#define FIELDS_OF_HOST(X) X(drains) X(facts) X(idle) X(name) X(on_trial) X(queue) X(running) X(served_count)

// What is called or compared with; told by router/ingress/answering.py.
#define TOOLS(X) \
    X(split_head) X(heads) X(head_bytes_max) X(new_decoder) X(new_scanner) X(scan) X(server_timing) X(record_events) X(relay) \
    X(tcp_info) X(no_headers) X(no_terms) X(decode_phase) X(done_phase) X(ok_outcome) X(trailer_state) X(usual_sentinel) X(usual_end) \
    X(report_of) X(host_header) X(read_body)
#define NUMBERS(X) X(early_window_ns) X(done_event) X(flag_stream) X(flag_calls_tools)

// Names of what has no slot, or is called as the twin.
#define NAMES(X) \
    X(_closed) X(_ended) X(_first_content) X(_idle) X(_record) X(_relay_natively) X(_scan_read) X(_take_read) X(_take_scanned) \
    X(_trailing) X(_unsent_now) X(answer_bytes) X(append) X(complete) X(connections) X(end_ok) X(event_bytes) X(finished) X(flush) X(forecast) \
    X(in_flight) X(is_closing) X(limits) X(pump) X(reuse_after_stream) X(waiting_count)

#define AS_SLOT(name) slot name;
#define AS_TEXT(name) #name,
#define AS_OBJECT(name) PyObject *name;
#define AS_NUMBER(name) number name;

typedef struct { FIELDS_OF_CONNECTION(AS_SLOT) } connection_slots;
typedef struct { FIELDS_OF_ATTEMPT(AS_SLOT) } attempt_slots;
typedef struct { FIELDS_OF_REQUEST(AS_SLOT) COUNTS_OF_REQUEST(AS_SLOT) } request_slots;
typedef struct { FIELDS_OF_CLIENT(AS_SLOT) } client_slots;
typedef struct { FIELDS_OF_SCANNER(AS_SLOT) } scanner_slots;
typedef struct { FIELDS_OF_DECODER(AS_SLOT) } decoder_slots;
typedef struct { FIELDS_OF_HEAD(AS_SLOT) } head_slots;
typedef struct { FIELDS_OF_HOST(AS_SLOT) } host_slots;

// A class, and where its fields lie.
#define SHAPE(kind)           \
    struct {                  \
        PyTypeObject *known;  \
        kind##_slots at;      \
    } kind;

typedef struct {
    PyObject_HEAD
    bool is_ready;
    SHAPE(connection)
    SHAPE(attempt)
    SHAPE(request)
    SHAPE(client)
    SHAPE(scanner)
    SHAPE(decoder)
    SHAPE(head)
    SHAPE(host)
    struct {
        TOOLS(AS_OBJECT)
    } tool;
    struct {
        NUMBERS(AS_NUMBER)
    } is;
    PyObject *zero, *empty, *empty_text;
} Answers;

static struct {
    NAMES(AS_OBJECT)
} names;

enum { OBJECT_FIELDS_OF_REQUEST = sizeof((const char *[]){FIELDS_OF_REQUEST(AS_TEXT)}) / sizeof(char *) };
enum { STATUS_OK = 200, ENDED_MAX = 16, ANSWER_CAME = 2 }; // _ENDED_MAX of loop.py, ANSWER_CAME of token_state.py

// ---------------------------------------------------------------- fields

// A field, borrowed; None where it was deleted, which nobody does.
static inline PyObject *field(PyObject *owner, const slot *at)
{
    PyObject *value = object_at(owner, at);
    return value != NULL ? value : Py_None;
}

// Store a value and take it over.
static inline void put(PyObject *owner, const slot *at, PyObject *value)
{
    PyObject **place = (PyObject **)((char *)owner + at->offset), *before = *place;
    *place = value;
    Py_XDECREF(before);
}

static inline void put_ref(PyObject *owner, const slot *at, PyObject *value)
{
    put(owner, at, Py_NewRef(value));
}

static inline bool put_number(PyObject *owner, const slot *at, number value)
{
    PyObject *object = PyLong_FromUnsignedLongLong(value);
    if (object != NULL)
        put(owner, at, object);
    return object != NULL;
}

static inline bool is_true(PyObject *owner, const slot *at)
{
    return field(owner, at) == Py_True;
}

static inline bool is_false(PyObject *owner, const slot *at)
{
    return field(owner, at) == Py_False;
}

static inline bool is_none(PyObject *owner, const slot *at)
{
    return field(owner, at) == Py_None;
}

// Whether a number is 0, or something with a length is empty; false for what has no truth.
static inline bool is_nothing(PyObject *owner, const slot *at)
{
    int truth = PyObject_IsTrue(field(owner, at));
    if (truth < 0)
        PyErr_Clear();
    return truth == 0;
}

static inline bool is_empty(PyObject *owner, const slot *at)
{
    PyObject *value = field(owner, at);
    return PyBytes_Check(value) && PyBytes_Size(value) == 0;
}

// A whole number; false with an exception set where it is none, or below zero.
static inline bool number_of(PyObject *owner, const slot *at, number *to)
{
    PyObject *value = field(owner, at);
    int overflow = 0;
    long long found = PyLong_Check(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : -1;
    *to = found >= 0 && overflow == 0 ? (number)found : PyLong_AsUnsignedLongLong(value);
    return *to != (number)-1 || !PyErr_Occurred();
}

static bool add(PyObject *owner, const slot *at, long long more)
{
    long long value = PyLong_AsLongLong(field(owner, at));
    PyObject *sum = value == -1 && PyErr_Occurred() ? NULL : PyLong_FromLongLong(value + more);
    if (sum != NULL)
        put(owner, at, sum);
    return sum != NULL;
}

static inline bool is_done(PyObject *result)
{
    Py_XDECREF(result);
    return result != NULL;
}

static inline number monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (number)now.tv_sec * 1000000000 + (number)now.tv_nsec;
}

// Whether an attribute is true; -1 with an exception set.
static int truth_of(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

// ---------------------------------------------------------------- a read in hand

// What the steps of a read need; held, since a step may let go of all else that holds it.
typedef struct {
    const Answers *self;
    PyObject *attempt, *request, *client, *scanner, *now;
} reading;

static void drop(reading *read)
{
    Py_XDECREF(read->attempt);
    Py_XDECREF(read->request);
    Py_XDECREF(read->client);
    Py_XDECREF(read->scanner);
    Py_XDECREF(read->now);
}

// Whether a request is one of a client of HTTP of which nothing special is known, for a stream or not: 1, 0, or -1 with an
// exception set.
static int is_usual(const Answers *self, PyObject *request, bool streams)
{
    const request_slots *at = &self->request.at;
    if (Py_TYPE(request) != self->request.known || !is_nothing(request, &at->path)
        || field(request, &at->stream) != (streams ? Py_True : Py_False) || !is_false(request, &at->fold) || !is_none(request, &at->ask))
        return 0;
    PyObject *client = field(request, &at->egress);
    if (Py_TYPE(client) != self->client.known || !is_true(client, &self->client.at.raw))
        return 0;
    PyObject *forecast = PyObject_GetAttr(field(request, &at->model), names.forecast);
    Py_XDECREF(forecast);
    return forecast == NULL ? -1 : forecast == Py_None;
}

// Whether a scanner takes whole chunks and owes nothing.
static bool is_even(const Answers *self, PyObject *scanner)
{
    const scanner_slots *at = &self->scanner.at;
    return Py_TYPE(scanner) == self->scanner.known && is_true(scanner, &at->aligned) && is_none(scanner, &at->lesson)
        && is_none(scanner, &at->payloads) && is_none(scanner, &at->sentinel) && is_none(scanner, &at->error)
        && Py_TYPE(field(scanner, &at->_decoder)) == self->decoder.known;
}

// Whether native code takes a read of this attempt: 1, 0, or -1 with an exception set.
static int may_take(const Answers *self, PyObject *attempt)
{
    const attempt_slots *at = &self->attempt.at;
    if (Py_TYPE(attempt) != self->attempt.known || !is_none(attempt, &at->_counting) || !is_none(attempt, &at->_fold)
        || Py_TYPE(field(attempt, &at->connection)) != self->connection.known || !is_even(self, field(attempt, &at->scanner)))
        return 0;
    return is_usual(self, field(attempt, &at->request), true);
}

// Write to the client.
static bool write_out(const reading *read, PyObject *data)
{
    const Answers *self = read->self;
    *number_at(read->request, &self->request.at.bytes_out) += (number)PyBytes_Size(data);
    PyObject *write = Py_NewRef(field(read->client, &self->client.at.write));
    bool is_written = is_done(PyObject_CallFunctionObjArgs(write, data, NULL));
    Py_DECREF(write);
    return is_written;
}

// ---------------------------------------------------------------- the records of a read

// The twin is Request.let_go().
static bool let_go(const Answers *self, PyObject *request)
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
static bool note_first(const reading *read)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    if (!is_true(read->attempt, &self->attempt.at._live) || !is_nothing(read->request, &at->candidates))
        return is_done(PyObject_CallMethodObjArgs(read->attempt, names._first_content, read->now, NULL));
    number now = PyLong_AsUnsignedLongLong(read->now);
    if ((now == (number)-1 && PyErr_Occurred()) || !put_number(read->attempt, &self->attempt.at._early_end_ns, now + self->is.early_window_ns))
        return false;
    put_ref(read->request, &at->tok1, read->now);
    put_ref(read->request, &at->phase, self->tool.decode_phase);
    put_ref(read->request, &at->check_ns, self->zero);
    return let_go(self, read->request);
}

static PyObject *visible_end(const reading *read)
{
    number recv;
    return number_of(read->request, &read->self->request.at.recv, &recv) ? PyLong_FromUnsignedLongLong(recv + read->self->is.early_window_ns) : NULL;
}

// Publish the events of a read that the client's socket has taken; what came of them, -1 with an exception set.
static long publish_events(const reading *read, PyObject *taken)
{
    const Answers *self = read->self;
    const attempt_slots *at = &self->attempt.at;
    PyObject *events = Py_NewRef(field(read->scanner, &self->scanner.at.events)), *visible = visible_end(read);
    PyObject *came = visible == NULL ? NULL : PyObject_CallFunctionObjArgs(
        self->tool.record_events, read->request, events, field(read->attempt, &at->_publish), field(read->attempt, &at->_native_publish),
        field(read->request, &self->request.at.seq), field(read->attempt, &at->_host_bits), read->now, self->zero, taken,
        field(read->attempt, &at->_early_end_ns), visible, NULL);
    long what = came == NULL ? -1 : PyLong_AsLong(came);
    Py_DECREF(events);
    Py_XDECREF(visible);
    Py_XDECREF(came);
    return what;
}

// The twin is Attempt._record().
static bool record(const reading *read)
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

// ---------------------------------------------------------------- the first bytes for the client

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

static PyObject *joined(const span *parts, int count)
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
static PyObject *stream_begin(const reading *read, PyObject *held)
{
    const Answers *self = read->self;
    PyObject *timing = PyObject_CallFunctionObjArgs(self->tool.server_timing, read->request, NULL);
    if (timing == NULL)
        return NULL;
    const span parts[] = {
        of_bytes(field(read->client, &self->client.at._stream_head)), of_text("content-type: "),
        of_bytes(field(read->attempt, &self->attempt.at._content_type)), of_text("\r\nserver-timing: "), of_bytes(timing),
        of_text("\r\n\r\n"), of_bytes(held),
    };
    PyObject *all = joined(parts, sizeof parts / sizeof *parts);
    Py_DECREF(timing);
    return all;
}

// Have further reads relayed by native code. The twin is Attempt._relay_natively().
static bool relay_further(const reading *read)
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
        self->tool.relay, read->request, read->scanner, field(read->client, &self->client.at.write), field(read->attempt, &at->_publish),
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
static bool may_commit(const reading *read)
{
    const Answers *self = read->self;
    PyObject *head = field(read->client, &self->client.at._stream_head);
    return !is_nothing(read->scanner, &self->scanner.at.content_count) && is_false(read->request, &self->request.at.committed)
        && PyBytes_Check(head) && PyBytes_Size(head) > 0 && PyBytes_Check(field(read->attempt, &self->attempt.at._held));
}

// The twins are Attempt._take_early() and Attempt._commit().
static bool commit(const reading *read, PyObject *out)
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

// ---------------------------------------------------------------- the end

static bool has_ended(const Answers *self, PyObject *decoder)
{
    return is_true(decoder, &self->decoder.at.ended) && is_empty(decoder, &self->decoder.at.surplus);
}

// Whether a connection goes back to the spare ones with nothing else to be done: 1, 0, or -1 with an exception set.
static int may_keep(const Answers *self, PyObject *attempt)
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
        || !is_false(host, &self->host.at.drains) || !is_false(host, &self->host.at.on_trial) || transport == Py_None || !PyList_Check(idle))
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
static bool keep_connection(const Answers *self, PyObject *connection, PyObject *host)
{
    const connection_slots *at = &self->connection.at;
    put_ref(connection, &at->attempt, Py_None);
    put_ref(connection, &at->take, Py_None);
    put_ref(connection, &at->used, Py_True);
    PyObject *trailing = PyObject_GetAttr(field(connection, &at->_fleet), names._trailing);
    bool is_kept = trailing != NULL && PySet_Discard(trailing, connection) >= 0;
    Py_XDECREF(trailing);
    return is_kept && put_number(connection, &at->idle_since, monotonic_ns()) && PyList_Append(field(host, &self->host.at.idle), connection) == 0;
}

// The twins are Attempt.complete() and Loop.release_slot().
static bool complete(const reading *read)
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
static PyObject *tcp_of(const reading *read)
{
    const Answers *self = read->self;
    PyObject *transport = field(read->client, &self->client.at._transport);
    PyObject *closing = transport == Py_None ? Py_NewRef(Py_True) : PyObject_CallMethodObjArgs(transport, names.is_closing, NULL);
    int is_closing = closing == NULL ? -1 : PyObject_IsTrue(closing);
    Py_XDECREF(closing);
    if (is_closing < 0)
        return NULL;
    if (is_closing)
        return Py_NewRef(self->empty);
    return PyObject_CallFunctionObjArgs(self->tool.tcp_info, field(read->client, &self->client.at._descriptor), NULL);
}

// The twins are ClientConnection.finished() and HttpServer.answered().
static bool free_client(const reading *read)
{
    const Answers *self = read->self;
    const client_slots *at = &self->client.at;
    if (!is_false(read->client, &at->_close_after) || !is_empty(read->client, &at->_buffer) || !is_false(read->client, &at->_flooded))
        return is_done(PyObject_CallMethodObjArgs(read->client, names.finished, NULL));
    put_ref(read->client, &at->request, Py_None);
    put_ref(read->client, &at->_stream_head, self->empty);
    put_ref(read->client, &at->request_id, self->empty_text);
    PyObject *server = field(read->client, &at->_server), *connections = PyObject_GetAttr(server, names.connections);
    int is_one = connections == NULL ? -1 : PySet_Contains(connections, read->client);
    Py_XDECREF(connections);
    if (is_one <= 0)
        return is_one == 0;
    PyObject *idle = PyObject_GetAttr(server, names._idle), *now = idle == NULL ? NULL : PyLong_FromUnsignedLongLong(monotonic_ns());
    bool is_noted = now != NULL && PyDict_SetItem(idle, read->client, now) == 0;
    Py_XDECREF(idle);
    Py_XDECREF(now);
    return is_noted;
}

static bool take_out_of_flight(const reading *read, PyObject *loop)
{
    PyObject *in_flight = PyObject_GetAttr(loop, names.in_flight), *seq = field(read->request, &read->self->request.at.seq);
    if (in_flight == NULL)
        return false;
    bool is_in = PyDict_GetItemWithError(in_flight, seq) != NULL;
    bool is_out = is_in ? PyDict_DelItem(in_flight, seq) == 0 : !PyErr_Occurred();
    Py_DECREF(in_flight);
    return is_out;
}

static bool publish_done(const reading *read, const publish_t *to, number done_ns)
{
    const Answers *self = read->self;
    number seq, host;
    if (!number_of(read->request, &self->request.at.seq, &seq) || !number_of(read->request, &self->request.at.host, &host))
        return false;
    const number words[7] = {done_ns, seq, self->is.done_event | host << 16, *number_at(read->request, &self->request.at.event_index), 0, 0, 0};
    to->publish(to->ring, (const uint64_t *)words);
    return true;
}

// Keep a request until its done record is written.
static bool keep_ended(const reading *read, PyObject *loop)
{
    PyObject *ended = PyObject_GetAttr(loop, names._ended);
    bool is_kept = ended != NULL && is_done(PyObject_CallMethodObjArgs(ended, names.append, read->request, NULL)) && free_client(read);
    Py_ssize_t count = is_kept ? PyObject_Size(ended) : -1;
    Py_XDECREF(ended);
    return count >= 0 && (count < ENDED_MAX || is_done(PyObject_CallMethodObjArgs(loop, names.flush, NULL)));
}

// The twin is Loop.finish(), of a request that has its row and is not over.
static bool finish(const reading *read, PyObject *loop, const publish_t *to)
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
static bool note_out(const reading *read)
{
    const request_slots *at = &read->self->request.at;
    if (is_true(read->request, &at->stream) || is_nothing(read->request, &at->tok1))
        return true;
    number out_ns = monotonic_ns();
    *number_at(read->request, &at->out_n) = out_ns;
    return put_number(read->request, &at->out1, out_ns);
}

// The twins are Loop.end_ok() and end().
static bool end_ok(const reading *read)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    PyObject *loop = Py_NewRef(field(read->attempt, &self->attempt.at._loop)), *host = field(read->attempt, &self->attempt.at.host);
    PyObject *capsule = field(read->attempt, &self->attempt.at._native_publish);
    const publish_t *to = capsule == Py_None ? NULL : PyCapsule_GetPointer(capsule, RINGBUFFER_PUBLISH);
    long row = PyLong_AsLong(field(read->request, &at->row));
    bool is_well = !PyErr_Occurred();
    bool is_plain = to != NULL && row >= 0 && field(read->request, &at->attempt) == read->attempt && Py_TYPE(host) == self->host.known
        && is_false(host, &self->host.at.on_trial) && is_false(read->request, &at->folded) && is_false(read->client, &self->client.at.blocked)
        && field(read->request, &at->phase) != self->tool.done_phase && field(read->request, &at->terms) == self->tool.no_terms;
    if (is_well && is_plain)
        is_well = add(host, &self->host.at.served_count, 1) && note_out(read) && finish(read, loop, to);
    else if (is_well)
        is_well = is_done(PyObject_CallMethodObjArgs(loop, names.end_ok, read->request, read->now, NULL));
    Py_DECREF(loop);
    return is_well;
}

static bool is_usual_sentinel(const Answers *self, PyObject *sentinel)
{
    PyObject *usual = self->tool.usual_sentinel;
    Py_ssize_t bytes = PyBytes_Size(usual);
    return PyBytes_Check(sentinel) && PyBytes_Size(sentinel) == bytes && memcmp(PyBytes_AsString(sentinel), PyBytes_AsString(usual), bytes) == 0;
}

// Whether a read ends a stream that the client has the beginning of, and well.
static bool may_end(const reading *read)
{
    const Answers *self = read->self;
    number finished = 0, choices = 0;
    bool is_plain = is_true(read->attempt, &self->attempt.at._live) && is_false(read->request, &self->request.at.timing_asked)
        && is_usual_sentinel(self, field(read->scanner, &self->scanner.at.sentinel))
        && number_of(read->scanner, &self->scanner.at.finish_count, &finished)
        && number_of(read->scanner, &self->scanner.at.choice_count, &choices);
    return is_plain && finished > 0 && finished >= choices;
}

// The twins are Attempt._take_last() and ClientConnection.end_stream().
static bool end_stream(const reading *read, PyObject *out)
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

// ---------------------------------------------------------------- a read of a stream

// Do what follows from a read that was scanned; `out` is what the client gets of it.
static bool take_scanned(const reading *read, PyObject *out)
{
    const Answers *self = read->self;
    bool is_aligned = is_true(read->scanner, &self->scanner.at.aligned), is_last = !is_none(read->scanner, &self->scanner.at.sentinel);
    bool is_live = is_true(read->attempt, &self->attempt.at._live);
    if (is_last ? may_end(read) : is_aligned && (is_live || may_commit(read))) {
        const request_slots *at = &self->request.at;
        if ((is_last || !is_live) && is_true(read->scanner, &self->scanner.at.first_choices) && is_nothing(read->request, &at->ttfc))
            put_ref(read->request, &at->ttfc, read->now);
        if (is_last)
            return end_stream(read, out);
        if (!is_live)
            return commit(read, out);
        return (PyBytes_Size(out) == 0 || write_out(read, out)) && record(read);
    }
    return !PyErr_Occurred() && is_done(PyObject_CallMethodObjArgs(read->attempt, names._take_scanned, out, read->now, NULL));
}

// Take a read: 1; 0 where the twin must, and nothing has changed; -1 with an exception set.
static int take(const Answers *self, PyObject *attempt, PyObject *data, PyObject *now)
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

PyDoc_STRVAR(take_doc,
    "take(attempt, data, now)\n--\n\n"
    "Take a read of a stream and return true; or change nothing and return false, where anything is not as usual.");

static PyObject *answers_take(Answers *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_Check(arguments[1]) || !PyLong_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "take(attempt, data: bytes, now: int)");
        return NULL;
    }
    int taken = self->is_ready ? take(self, arguments[0], arguments[1], arguments[2]) : 0;
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

// ---------------------------------------------------------------- the head

typedef struct {
    PyObject *head;  // owned
    Py_ssize_t length, end;  // of the body (-1: none given), and of the head
} known_head;

// Find what is known of the head at the beginning of a read: 1; 0 for one of which nothing is; -1 with an exception set.
static int find_head(const Answers *self, PyObject *data, known_head *to)
{
    PyObject *split = PyObject_CallFunctionObjArgs(self->tool.split_head, data, self->zero, self->tool.head_bytes_max, NULL);
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
static int is_fit(const Answers *self, PyObject *head, PyObject *attempt, bool streams)
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
static PyObject *scanner_of(const Answers *self, PyObject *attempt, PyObject *decoder)
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
static void note_head(const Answers *self, PyObject *attempt, PyObject *head, PyObject *now)
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
static bool begin_stream(const Answers *self, PyObject *connection, PyObject *attempt, PyObject *head, PyObject *now)
{
    PyObject *decoder = PyObject_CallNoArgs(self->tool.new_decoder), *scanner = decoder == NULL ? NULL : scanner_of(self, attempt, decoder);
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
static bool take_rest(const Answers *self, PyObject *attempt, text begin, Py_ssize_t bytes, PyObject *now)
{
    PyObject *rest = PyBytes_FromStringAndSize((const char *)begin, bytes);
    int taken = rest == NULL ? -1 : take(self, attempt, rest, now);
    if (taken == 0)
        taken = is_done(PyObject_CallMethodObjArgs(attempt, names._scan_read, rest, now, NULL)) ? 1 : -1;
    Py_XDECREF(rest);
    return taken > 0;
}

// ---------------------------------------------------------------- whole answers

// The twin is ClientConnection.whole(), for a client whose connection stays open.
static PyObject *whole_answer(const reading *read, span body)
{
    const Answers *self = read->self;
    PyObject *host = field(read->attempt, &self->attempt.at.host), *id = field(read->request, &self->request.at.request_id);
    Py_ssize_t id_bytes = 0;
    const char *id_text = PyUnicode_AsUTF8AndSize(id, &id_bytes);
    PyObject *timing = id_text == NULL ? NULL : PyObject_CallFunctionObjArgs(self->tool.server_timing, read->request, NULL);
    PyObject *line = timing == NULL ? NULL : PyObject_CallFunctionObjArgs(self->tool.host_header, field(host, &self->host.at.name), NULL);
    PyObject *all = NULL;
    if (line != NULL) {
        char length[64];
        PyOS_snprintf(length, sizeof length, "\r\ncontent-length: %zd\r\n\r\n", (Py_ssize_t)(body.end - body.begin));
        const span parts[] = {
            of_text("HTTP/1.1 200 OK\r\ncontent-type: "), of_bytes(field(read->attempt, &self->attempt.at._content_type)),
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
static bool note_report(const reading *read, PyObject *report)
{
    const Answers *self = read->self;
    const request_slots *at = &self->request.at;
    const slot *to[] = {&at->usage, &at->timings, &at->metrics, &at->choice_count};
    for (int i = 0; i < 4; i++)
        put_ref(read->request, to[i], PyTuple_GetItem(report, i));
    number flags;
    if (PyTuple_GetItem(report, 4) != Py_True)
        return true;
    return number_of(read->request, &at->flags, &flags) && put_number(read->request, &at->flags, flags | self->is.flag_calls_tools);
}

static bool is_ascii(PyObject *string)
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
static int may_pass(const reading *read, Py_ssize_t bytes)
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
static bool pass_whole(const reading *read, PyObject *head, span body, PyObject *report)
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
static int take_whole(const Answers *self, PyObject *attempt, PyObject *head, span body, PyObject *now)
{
    reading read = {self, Py_NewRef(attempt), Py_NewRef(field(attempt, &self->attempt.at.request)), NULL, NULL, Py_NewRef(now)};
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

// ---------------------------------------------------------------- a first read

// Take what begins with a head that is known.
static int begin_known(const Answers *self, PyObject *connection, PyObject *attempt, PyObject *data, const known_head *found, PyObject *now)
{
    PyObject *head = found->head;
    bool streams = is_true(head, &self->head.at.chunked);
    int may = is_fit(self, head, attempt, streams);
    if (may <= 0)
        return may;
    text rest = (text)PyBytes_AsString(data) + found->end;
    Py_ssize_t bytes = PyBytes_Size(data) - found->end;
    if (!streams)
        return bytes == found->length && bytes > 0 ? take_whole(self, attempt, head, (span){rest, rest + bytes}, now) : 0;
    if (!begin_stream(self, connection, attempt, head, now))
        return -1;
    return bytes == 0 || take_rest(self, attempt, rest, bytes, now) ? 1 : -1;
}

// Take the first read of an answer: 1; 0 where the twin must, and nothing has changed; -1 with an exception set.
static int begin(const Answers *self, PyObject *connection, PyObject *data, PyObject *now)
{
    if (Py_TYPE(connection) != self->connection.known || !is_empty(connection, &self->connection.at._head))
        return 0;
    PyObject *attempt = Py_NewRef(field(connection, &self->connection.at.attempt));
    known_head found = {NULL, -1, 0};
    int may = find_head(self, data, &found);
    if (may > 0)
        may = begin_known(self, connection, attempt, data, &found, now);
    Py_DECREF(attempt);
    Py_XDECREF(found.head);
    return may;
}

PyDoc_STRVAR(begin_doc,
    "begin(connection, data, now)\n--\n\n"
    "Take the first read of an answer and return true; or change nothing and return false, where anything is not as usual.");

static PyObject *answers_begin(Answers *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_Check(arguments[1]) || !PyLong_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "begin(connection, data: bytes, now: int)");
        return NULL;
    }
    int taken = self->is_ready ? begin(self, arguments[0], arguments[1], arguments[2]) : 0;
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

// ---------------------------------------------------------------- what it is told

static const char *const connection_names[] = {FIELDS_OF_CONNECTION(AS_TEXT)};
static const char *const attempt_names[] = {FIELDS_OF_ATTEMPT(AS_TEXT)};
static const char *const request_names[] = {FIELDS_OF_REQUEST(AS_TEXT) COUNTS_OF_REQUEST(AS_TEXT)};
static const char *const client_names[] = {FIELDS_OF_CLIENT(AS_TEXT)};
static const char *const scanner_names[] = {FIELDS_OF_SCANNER(AS_TEXT)};
static const char *const decoder_names[] = {FIELDS_OF_DECODER(AS_TEXT)};
static const char *const head_names[] = {FIELDS_OF_HEAD(AS_TEXT)};
static const char *const host_names[] = {FIELDS_OF_HOST(AS_TEXT)};
static const char *const tool_names[] = {TOOLS(AS_TEXT)};
static const char *const number_names[] = {NUMBERS(AS_TEXT)};

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof *(array)))
#define SHAPE_OF(kind, objects) {#kind, kind##_names, COUNT_OF(kind##_names), objects, offsetof(Answers, kind.known), offsetof(Answers, kind.at)}

static const struct {
    const char *kind;
    const char *const *names;
    int count, object_count;  // behind the objects stand unsigned numbers of C
    size_t known, slots;
} shapes[] = {
    SHAPE_OF(connection, COUNT_OF(connection_names)), SHAPE_OF(attempt, COUNT_OF(attempt_names)),
    SHAPE_OF(request, OBJECT_FIELDS_OF_REQUEST),      SHAPE_OF(client, COUNT_OF(client_names)),
    SHAPE_OF(scanner, COUNT_OF(scanner_names)),       SHAPE_OF(decoder, COUNT_OF(decoder_names)),
    SHAPE_OF(head, COUNT_OF(head_names)),             SHAPE_OF(host, COUNT_OF(host_names)),
};

static PyObject *given(PyObject *all, const char *name)
{
    PyObject *found = PyDict_GetItemString(all, name);
    if (found == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "%s is not given", name);
    return found;
}

static bool know_shape(Answers *self, PyObject *probes, int which)
{
    PyObject *probe = given(probes, shapes[which].kind);
    if (probe == NULL)
        return false;
    slot *slots = (slot *)((char *)self + shapes[which].slots);
    for (int i = 0; i < shapes[which].count; i++) {
        if (slots[i].name == NULL && (slots[i].name = PyUnicode_InternFromString(shapes[which].names[i])) == NULL)
            return false;
        if (!find_slot(probe, slots + i))
            return false;
        if (slots[i].kind != (i < shapes[which].object_count ? IS_OBJECT : IS_NUMBER)) {
            PyErr_Format(PyExc_ValueError, "%s.%U is not where it should be", shapes[which].kind, slots[i].name);
            return false;
        }
    }
    PyTypeObject **known = (PyTypeObject **)((char *)self + shapes[which].known), *before = *known;
    *known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    Py_XDECREF((PyObject *)before);
    return true;
}

static bool know_tools(Answers *self, PyObject *tools)
{
    PyObject **to = (PyObject **)&self->tool;
    for (int i = 0; i < COUNT_OF(tool_names); i++) {
        PyObject *tool = given(tools, tool_names[i]), *before = to[i];
        if (tool == NULL)
            return false;
        to[i] = Py_NewRef(tool);
        Py_XDECREF(before);
    }
    number *numbers = (number *)&self->is;
    for (int i = 0; i < COUNT_OF(number_names); i++) {
        PyObject *one = given(tools, number_names[i]);
        numbers[i] = one == NULL ? (number)-1 : PyLong_AsUnsignedLongLong(one);
        if (numbers[i] == (number)-1 && PyErr_Occurred())
            return false;
    }
    if (!PyDict_Check(self->tool.heads) || !PyBytes_Check(self->tool.usual_sentinel) || !PyBytes_Check(self->tool.usual_end)) {
        PyErr_SetString(PyExc_TypeError, "heads are a dict, usual_sentinel and usual_end bytes");
        return false;
    }
    return true;
}

PyDoc_STRVAR(know_doc,
    "know(probes, tools)\n--\n\n"
    "Be told one object of each kind, nobody else's, and what is called and compared with. Until then nothing is taken.");

static PyObject *answers_know(Answers *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyDict_Check(arguments[0]) || !PyDict_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "know(probes: dict, tools: dict)");
        return NULL;
    }
    self->is_ready = false;
    for (int i = 0; i < COUNT_OF(shapes); i++)
        if (!know_shape(self, arguments[0], i))
            return NULL;
    if (!know_tools(self, arguments[1]))
        return NULL;
    self->is_ready = true;
    Py_RETURN_NONE;
}

static PyObject *answers_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)arguments, (void)keywords;
    Answers *self = (Answers *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL)
        return NULL;
    self->zero = PyLong_FromLong(0);
    self->empty = PyBytes_FromStringAndSize(NULL, 0);
    self->empty_text = PyUnicode_FromString("");
    if (self->zero == NULL || self->empty == NULL || self->empty_text == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void answers_dealloc(Answers *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int which = 0; which < COUNT_OF(shapes); which++) {
        slot *slots = (slot *)((char *)self + shapes[which].slots);
        for (int i = 0; i < shapes[which].count; i++)
            Py_XDECREF(slots[i].name);
        Py_XDECREF(*(PyObject **)((char *)self + shapes[which].known));
    }
    for (int i = 0; i < COUNT_OF(tool_names); i++)
        Py_XDECREF(((PyObject **)&self->tool)[i]);
    Py_XDECREF(self->zero);
    Py_XDECREF(self->empty);
    Py_XDECREF(self->empty_text);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef answers_methods[] = {
    {"begin", (PyCFunction)(void (*)(void))answers_begin, METH_FASTCALL, begin_doc},
    {"know", (PyCFunction)(void (*)(void))answers_know, METH_FASTCALL, know_doc},
    {"take", (PyCFunction)(void (*)(void))answers_take, METH_FASTCALL, take_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot answers_slots[] = {
    {Py_tp_new, answers_new},
    {Py_tp_dealloc, answers_dealloc},
    {Py_tp_methods, answers_methods},
    {Py_tp_doc, "Answers()\n--\n\nTakes the reads of the usual stream that are more than one more token."},
    {0, NULL},
};

static PyType_Spec answers_spec = {"router._answer.Answers", sizeof(Answers), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, answers_slots};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._answer", .m_doc = "Answers of hosts, each read in one call.", .m_size = 0,
};

static bool intern_names(void)
{
    static const char *const texts[] = {NAMES(AS_TEXT)};
    PyObject **to = (PyObject **)&names;
    for (int i = 0; i < COUNT_OF(texts); i++)
        if ((to[i] = PyUnicode_InternFromString(texts[i])) == NULL)
            return false;
    return true;
}

PyMODINIT_FUNC PyInit__answer(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&answers_spec);
    if (module == NULL || type == NULL || !intern_names() || PyModule_AddObjectRef(module, "Answers", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
