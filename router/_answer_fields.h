// What the native way of an answer knows of the router's objects: where their fields lie, what is called.

#ifndef RINGROUTER_ANSWER_FIELDS_H
#define RINGROUTER_ANSWER_FIELDS_H

#include "_native.h"
#include "_slots.h"

#include "../ringbuffer/_publish.h"

#include <time.h>

typedef unsigned long long number;

#define FIELDS_OF_CONNECTION(X) \
    X(_fleet) X(_head) X(_paused) X(attempt) X(blocked) X(host) X(idle_since) X(take) X(transport) X(used)
#define FIELDS_OF_ATTEMPT(X) \
    X(_content_type) X(_counting) X(_decoder) X(_early_end_ns) X(_fold) X(_held) X(_host_bits) X(_keep_alive) \
    X(_live) X(_loop) X(_answer) X(_native_publish) X(_publish) X(_relaying) X(_token_bits) X(connection) \
    X(drop_progress) X(drop_usage) X(host) X(last_read_ns) X(over) X(request) X(retry_after) X(scanner) X(status)
#define FIELDS_OF_REQUEST(X) \
    X(ask) X(attempt) X(body) X(body_bytes) X(candidates) X(check_ns) X(choice_count) X(committed) X(done_ns) \
    X(egress) X(fields) X(flags) X(fold) X(folded) X(headers) X(hfb) X(host) X(metrics) X(model) X(out1) X(outcome) \
    X(packed_tcp) X(path) X(phase) X(recv) X(request_id) X(row) X(seq) X(status) X(stream) X(terms) X(timing_asked) \
    X(timings) X(tok1) X(ttfc) X(ttfo) X(usage)
#define COUNTS_OF_REQUEST(X) X(bytes_out) X(event_index) X(out_n) X(tok_n)
#define FIELDS_OF_CLIENT(X) \
    X(_buffer) X(_close_after) X(_descriptor) X(_flooded) X(_server) X(_stream_head) X(_transport) X(blocked) X(raw) \
    X(request) X(request_id) X(write)
#define FIELDS_OF_SCANNER(X) \
    X(_decoder) X(_drop_progress) X(_drop_usage) X(_event_bytes_max) X(_raw) X(aligned) X(choice_count) X(code) \
    X(content_count) X(error) X(events) X(finish_count) X(first_choices) X(lesson) X(metrics) X(payloads) \
    X(sentinel) X(timings) X(usage)
#define FIELDS_OF_DECODER(X) X(_state) X(ended) X(surplus)
#define FIELDS_OF_HEAD(X) X(chunked) X(keep_alive) X(route) X(status)
#define FIELDS_OF_HOST(X) X(drains) X(facts) X(idle) X(name) X(on_trial) X(queue) X(running) X(served_count)

// What is called or compared with; told by router/ingress/answering.py.
#define TOOLS(X) \
    X(split_head) X(heads) X(head_bytes_max) X(new_decoder) X(new_scanner) X(scan) X(server_timing) X(record_events) \
    X(relay) X(tcp_info) X(no_headers) X(no_terms) X(decode_phase) X(done_phase) X(ok_outcome) X(trailer_state) \
    X(usual_sentinel) X(usual_end) X(report_of) X(host_header) X(read_body)
#define NUMBERS(X) X(early_window_ns) X(done_event) X(flag_stream) X(flag_calls_tools)

// Names of what has no slot, or is called as the twin.
#define NAMES(X) \
    X(_closed) X(_ended) X(_first_content) X(_idle) X(_record) X(_relay_natively) X(_scan_read) X(_take_read) \
    X(_take_scanned) X(_trailing) X(_unsent_now) X(answer_bytes) X(append) X(complete) X(connections) X(end_ok) \
    X(event_bytes) X(finished) X(flush) X(forecast) X(in_flight) X(is_closing) X(limits) X(pump) \
    X(reuse_after_stream) X(waiting_count)

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

static inline bool add(PyObject *owner, const slot *at, long long more)
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
static inline int truth_of(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

#endif
