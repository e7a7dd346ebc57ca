// What a dispatch knows of a loop and of the objects on its way, and how it reads and sets them.

#ifndef RINGROUTER_DISPATCH_FIELDS_H
#define RINGROUTER_DISPATCH_FIELDS_H

#include "_native.h"
#include "_slots.h"

#include "../ringbuffer/_publish.h"

#include <time.h>

typedef unsigned long long number;

enum { NS_PER_S = 1000000000, BUCKET_NS = 50000000 }; // the second of hosts/spares.py

// Objects that there are one of for each loop, by their place in `held`.
enum {
    LOOP, PLACE, PLAIN, IN_FLIGHT, PUBLISHED, TELEMETRY, FREE_ROWS, TRY_PUBLISH, POLL, RELEASE, WRITE_ROW, PACK_ROW, PICK,
    NEW_ATTEMPT, NO_TERMS, CONNECTING, PREFILL, DONE, UNSET, ZERO, ONE, BATCH_MAX, HELD
};

enum { REQUEST, ATTEMPT, HOST, CONNECTION, SPARES, KINDS };

// Every slot that is reached by its place, with the class it is of.
#define ALL_SLOTS(SLOT) \
    SLOT(REQUEST, r_egress, "egress") SLOT(REQUEST, r_request_id, "request_id") SLOT(REQUEST, r_body, "body") \
    SLOT(REQUEST, r_fields, "fields") SLOT(REQUEST, r_model, "model") SLOT(REQUEST, r_recv, "recv") \
    SLOT(REQUEST, r_body_ns, "body_ns") SLOT(REQUEST, r_identity, "identity") SLOT(REQUEST, r_identities, "identities") \
    SLOT(REQUEST, r_trace_headers, "trace_headers") SLOT(REQUEST, r_path, "path") SLOT(REQUEST, r_target, "target") \
    SLOT(REQUEST, r_stream, "stream") SLOT(REQUEST, r_fold, "fold") SLOT(REQUEST, r_seq, "seq") SLOT(REQUEST, r_row, "row") \
    SLOT(REQUEST, r_phase, "phase") SLOT(REQUEST, r_shown_phase, "shown_phase") SLOT(REQUEST, r_attempt, "attempt") \
    SLOT(REQUEST, r_attempt_count, "attempt_count") SLOT(REQUEST, r_tried, "tried") SLOT(REQUEST, r_terms, "terms") \
    SLOT(REQUEST, r_host, "host") SLOT(REQUEST, r_check_ns, "check_ns") SLOT(REQUEST, r_pub, "pub") \
    SLOT(REQUEST, r_deq, "deq") SLOT(REQUEST, r_admitted, "admitted") SLOT(REQUEST, r_routed1, "routed1") \
    SLOT(REQUEST, r_routed, "routed") SLOT(REQUEST, r_conn_ns, "conn_ns") SLOT(REQUEST, r_sent_ns, "sent_ns") \
    SLOT(REQUEST, r_flags, "flags") SLOT(REQUEST, r_packed_candidates, "packed_candidates") \
    SLOT(ATTEMPT, a_loop, "_loop") SLOT(ATTEMPT, a_publish, "_publish") SLOT(ATTEMPT, a_native_publish, "_native_publish") \
    SLOT(ATTEMPT, a_host_bits, "_host_bits") SLOT(ATTEMPT, a_request, "request") SLOT(ATTEMPT, a_host, "host") \
    SLOT(ATTEMPT, a_connection, "connection") SLOT(ATTEMPT, a_on_kept_connection, "on_kept_connection") \
    SLOT(ATTEMPT, a_last_read_ns, "last_read_ns") SLOT(ATTEMPT, a_drop_usage, "drop_usage") \
    SLOT(HOST, h_host_id, "host_id") SLOT(HOST, h_running, "running") SLOT(HOST, h_idle, "idle") SLOT(HOST, h_facts, "facts") \
    SLOT(HOST, h_heads, "heads") SLOT(HOST, h_models, "models") SLOT(HOST, h_tracer, "tracer") SLOT(HOST, h_spares, "spares") \
    SLOT(CONNECTION, c_attempt, "attempt") SLOT(CONNECTION, c_transport, "transport") SLOT(CONNECTION, c_used, "used") \
    SLOT(CONNECTION, c_idle_since, "idle_since") SLOT(CONNECTION, c_blocked, "blocked") \
    SLOT(SPARES, s_bucket, "_bucket") SLOT(SPARES, s_count, "_count") SLOT(SPARES, s_peaks, "_peaks") \
    SLOT(SPARES, s_largest, "largest")

#define AS_INDEX(kind, index, name) index,
enum { ALL_SLOTS(AS_INDEX) SLOTS };
#define AS_PLACE(kind, index, name) {kind, name},
static const struct {
    int kind;
    const char *name;
} slot_of[SLOTS] = {ALL_SLOTS(AS_PLACE)};

// What is asked for by its name: of objects that have no slots, or are not always of one class.
#define ALL_NAMES(NAME) \
    NAME(stopping) NAME(limits) NAME(in_flight) NAME(take) NAME(drain) NAME(policy) NAME(waiting) NAME(size) NAME(hosts) NAME(turn) \
    NAME(is_closing) NAME(idle_close_s) NAME(name) NAME(model) NAME(stream) NAME(stream_options) NAME(progress) \
    NAME(include_usage) NAME(request_id_header) NAME(trace_headers) NAME(publish_token) NAME(native_publish) NAME(write) \
    NAME(user) NAME(metadata) NAME(identify) NAME(event_index) NAME(prepare) NAME(connected) NAME(_book) NAME(_give_up) \
    NAME(refuse_ring_full) NAME(show_phase) NAME(fleet) NAME(top_up) NAME(append) NAME(pop)

#define AS_FIELD(name) PyObject *name;
static struct {
    ALL_NAMES(AS_FIELD)
} names;

typedef struct {
    PyObject_HEAD
    PyObject *held[HELD];
    PyTypeObject *kinds[KINDS];
    slot slots[SLOTS];
    number kind_open, kind_dispatched, usage_added;
    Py_ssize_t id_bytes; // of a request's id in its identity
    PyObject *usage_field;
} Dispatch;

// One request on its way through; all but `request` are references of its own.
typedef struct {
    PyObject *request, *now, *model, *host, *connection, *transport, *candidates, *attempt;
    Py_ssize_t chosen;
    number routed_ns, host_id;
} passage;

static inline void leave(passage *way)
{
    PyObject *owned[] = {
        way->now, way->model, way->host, way->connection, way->transport, way->candidates, way->attempt,
    };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        Py_XDECREF(owned[i]);
}

// ---------------------------------------------------------------- slots and numbers

// What is in a slot, borrowed; None where it was deleted.
static inline PyObject *at(const Dispatch *self, PyObject *owner, int which)
{
    PyObject *value = object_at(owner, self->slots + which);
    return value != NULL ? value : Py_None;
}

// Put a value into a slot, which takes it over; false where there is none.
static inline bool put_new(const Dispatch *self, PyObject *owner, int which, PyObject *value)
{
    if (value == NULL)
        return false;
    PyObject **where = (PyObject **)((char *)owner + self->slots[which].offset), *before = *where;
    *where = value;
    Py_XDECREF(before);
    return true;
}

static inline void put(const Dispatch *self, PyObject *owner, int which, PyObject *value)
{
    put_new(self, owner, which, Py_NewRef(value));
}

static inline number monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (number)now.tv_sec * NS_PER_S + (number)now.tv_nsec;
}

static inline bool to_number(PyObject *object, number *to)
{
    int overflow = 0;
    long long value = PyLong_Check(object) ? PyLong_AsLongLongAndOverflow(object, &overflow) : -1;
    *to = value >= 0 && overflow == 0 ? (number)value : PyLong_AsUnsignedLongLong(object);
    return *to != (number)-1 || !PyErr_Occurred();
}

static inline bool number_in(const Dispatch *self, PyObject *owner, int which, number *to)
{
    return to_number(at(self, owner, which), to);
}

static inline bool named_number(PyObject *owner, PyObject *name, number *to)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    bool is_number = value != NULL && to_number(value, to);
    Py_XDECREF(value);
    return is_number;
}

// Whether an attribute is true: 1, 0, or -1 with an exception set.
static inline int named_truth(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

// Whether an attribute is this very object: 1, 0, or -1 with an exception set.
static inline int is_named(PyObject *owner, PyObject *name, PyObject *wanted)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    Py_XDECREF(value);
    return value == NULL ? -1 : value == wanted;
}

static inline bool done_with(PyObject *result)
{
    Py_XDECREF(result);
    return result != NULL;
}

#endif
