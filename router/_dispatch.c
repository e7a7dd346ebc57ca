// A request from the ring to a warm connection of its host, in one call: published, taken off, routed, written, and only then
// booked. Each step of the interpreter that is not made here is memory that a first token need not find cold.
//
//     Dispatch.submit   twin: Loop.submit in router/loop.py with what it calls: drain, place, _go, connect, connected, _book;
//                       Fleet.take, Attempt.of, Attempt.start, outbound.build, Telemetry.show_phase, SpareTarget.start
//
// It is for a request of which nothing special is known, that the default policy routes to a host with an idle connection.
// Whether it is one is found out before anything of it is changed; any other is handed to the loop as it would get it
// without this file. What is rare within it (a body to be edited, the last row taken, too few spares) is asked of Python there.

#include "_native.h"
#include "_slots.h"

#include "../ringbuffer/_publish.h"

#include <time.h>

typedef unsigned long long number;

enum { NS_PER_S = 1000000000, BUCKET_NS = 50000000 }; // the second of hosts/spares.py

// ---------------------------------------------------------------- what it knows

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

static void leave(passage *way)
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

static bool named_number(PyObject *owner, PyObject *name, number *to)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    bool is_number = value != NULL && to_number(value, to);
    Py_XDECREF(value);
    return is_number;
}

// Whether an attribute is true: 1, 0, or -1 with an exception set.
static int named_truth(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

// Whether an attribute is this very object: 1, 0, or -1 with an exception set.
static int is_named(PyObject *owner, PyObject *name, PyObject *wanted)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    Py_XDECREF(value);
    return value == NULL ? -1 : value == wanted;
}

static bool done_with(PyObject *result)
{
    Py_XDECREF(result);
    return result != NULL;
}

// ---------------------------------------------------------------- whether it is a usual one, and where it goes

// 1: the model has the default policy, nobody waits for it; 0: not so; -1: an exception is set.
static int is_plain_model(PyObject *model)
{
    int is_plain = is_named(model, names.policy, Py_None);
    PyObject *waiting = is_plain == 1 ? PyObject_GetAttr(model, names.waiting) : NULL;
    if (waiting == NULL)
        return is_plain == 1 ? -1 : is_plain;
    int has_size = named_truth(waiting, names.size);
    Py_DECREF(waiting);
    return has_size < 0 ? -1 : !has_size;
}

// The same of what the request itself says.
static int is_plain_request(const Dispatch *self, PyObject *request)
{
    if (at(self, request, r_terms) != self->held[NO_TERMS] || at(self, request, r_attempt_count) != self->held[ZERO]
        || at(self, request, r_admitted) != self->held[ZERO] || at(self, request, r_routed1) != self->held[ZERO])
        return 0;
    int has_path = PyObject_IsTrue(at(self, request, r_path));
    int was_tried = has_path == 0 ? PyObject_IsTrue(at(self, request, r_tried)) : 0;
    return has_path < 0 || was_tried < 0 ? -1 : !has_path && !was_tried;
}

// The same of the idle connection that the host's next request gets: open, and not past its age.
static int is_ready(const Dispatch *self, const passage *way)
{
    PyObject *facts = at(self, way->host, h_facts), *age_max = PyObject_GetAttr(facts, names.idle_close_s);
    double age_max_s = age_max == NULL ? -1.0 : PyFloat_AsDouble(age_max);
    Py_XDECREF(age_max);
    number idle_since;
    if (PyErr_Occurred() || !number_in(self, way->connection, c_idle_since, &idle_since))
        return -1;
    if ((double)(long long)(way->routed_ns - idle_since) > age_max_s * NS_PER_S)
        return 0;
    PyObject *closing = PyObject_CallMethodObjArgs(way->transport, names.is_closing, NULL);
    int is_closing = closing == NULL ? -1 : PyObject_IsTrue(closing);
    Py_XDECREF(closing);
    return is_closing < 0 ? -1 : !is_closing;
}

// Find the youngest idle connection of the chosen host, as Fleet.take does; it stays where it is.
static int find_connection(const Dispatch *self, passage *way)
{
    if (Py_TYPE(way->host) != self->kinds[HOST] || !PyList_Check(at(self, way->host, h_idle)))
        return 0;
    PyObject *idle = at(self, way->host, h_idle);
    Py_ssize_t count = PyList_Size(idle);
    PyObject *youngest = count == 0 ? NULL : PyList_GetItem(idle, count - 1);
    if (youngest == NULL || Py_TYPE(youngest) != self->kinds[CONNECTION] || at(self, youngest, c_transport) == Py_None)
        return 0;
    way->connection = Py_NewRef(youngest);
    way->transport = Py_NewRef(at(self, youngest, c_transport));
    return is_ready(self, way);
}

static int find_host(const Dispatch *self, passage *way)
{
    PyObject *hosts = PyObject_GetAttr(way->model, names.hosts);
    PyObject *turn = hosts == NULL ? NULL : PyObject_GetAttr(way->model, names.turn);
    PyObject *picked = turn == NULL ? NULL : PyObject_CallFunctionObjArgs(self->held[PICK], hosts, turn, NULL);
    int found = -1;
    if (picked != NULL && PyTuple_Check(picked) && PyTuple_Size(picked) == 2) {
        way->chosen = PyLong_AsSsize_t(PyTuple_GetItem(picked, 0));
        way->candidates = Py_NewRef(PyTuple_GetItem(picked, 1));
        found = PyErr_Occurred() ? -1 : 0;
        if (way->chosen >= 0) {
            PyObject *host = PyList_GetItem(hosts, way->chosen);
            way->host = Py_XNewRef(host);
            found = host == NULL ? -1 : 1;
        }
    } else if (picked != NULL) {
        PyErr_SetString(PyExc_TypeError, "pick() returns (index, bytes)");
    }
    Py_XDECREF(hosts);
    Py_XDECREF(turn);
    Py_XDECREF(picked);
    return found;
}

// Find out whether a request is a usual one, and where it goes; nothing is changed but `way`.
static int find(const Dispatch *self, passage *way)
{
    int is_usual = is_plain_request(self, way->request);
    if (is_usual != 1)
        return is_usual;
    way->model = Py_NewRef(at(self, way->request, r_model));
    if ((is_usual = is_plain_model(way->model)) != 1 || (is_usual = find_host(self, way)) != 1)
        return is_usual;
    way->routed_ns = monotonic_ns();
    return find_connection(self, way);
}

// ---------------------------------------------------------------- what is written

static const char ID_NAME[] = "x-request-id: ", LENGTH_NAME[] = "content-length: ", HEAD_END[] = "\r\n\r\n";

enum { PARTS_MAX = 11, LENGTH_DIGITS_MAX = 24 }; // head 1, id 3, trace 1, length 3, body and usage 3

typedef struct {
    const char *begin;
    Py_ssize_t bytes;
} part;

typedef struct {
    part parts[PARTS_MAX];
    int count;
} message;

static inline void add(message *to, const char *begin, Py_ssize_t bytes)
{
    to->parts[to->count++] = (part){begin, bytes};
}

static inline void add_bytes(message *to, PyObject *bytes)
{
    add(to, PyBytes_AsString(bytes), PyBytes_Size(bytes));
}

static PyObject *joined(const message *of)
{
    Py_ssize_t bytes = 0;
    for (int i = 0; i < of->count; i++)
        bytes += of->parts[i].bytes;
    PyObject *whole = PyBytes_FromStringAndSize(NULL, bytes);
    char *to = whole == NULL ? NULL : PyBytes_AsString(whole);
    for (int i = 0; whole != NULL && i < of->count; to += of->parts[i++].bytes)
        memcpy(to, of->parts[i].begin, of->parts[i].bytes);
    return whole;
}

// Whether the client and the host mean the same model by the body's name.
static int is_same_model(const Dispatch *self, const passage *way)
{
    PyObject *models = at(self, way->host, h_models), *fields = at(self, way->request, r_fields);
    PyObject *name = PyObject_GetAttr(way->model, names.name), *asked = name == NULL ? NULL : PyObject_GetAttr(fields, names.model);
    PyObject *own = asked == NULL || !PyDict_Check(models) ? NULL : PyDict_GetItemWithError(models, name);
    int is_same = own == NULL ? (PyErr_Occurred() ? -1 : 0) : PyObject_RichCompareBool(own, asked, Py_EQ);
    Py_XDECREF(name);
    Py_XDECREF(asked);
    return is_same;
}

// Whether a body can go out as it came but for a request for usage: 1, 0 (it is to be edited), -1; sets `asks_usage`.
static int is_plain_body(const Dispatch *self, const passage *way, bool *asks_usage)
{
    PyObject *request = way->request, *facts = at(self, way->host, h_facts), *fields = at(self, request, r_fields);
    *asks_usage = false;
    bool is_whole = at(self, request, r_stream) == Py_False;
    if (at(self, request, r_fold) != Py_False || !(is_whole || at(self, request, r_stream) == Py_True))
        return 0;
    int is_plain = is_same_model(self, way);
    if (is_plain != 1 || is_whole)
        return is_plain;
    int has_progress = named_truth(facts, names.progress);
    if (has_progress != 0)
        return has_progress < 0 ? -1 : 0;
    if ((is_plain = is_named(fields, names.stream, Py_True)) != 1
        || (is_plain = is_named(fields, names.stream_options, self->held[UNSET])) != 1)
        return is_plain;
    int wants_usage = named_truth(facts, names.include_usage);
    *asks_usage = wants_usage == 1;
    return wants_usage < 0 ? -1 : 1;
}

// The lines that not every host gets; 0 where Python is to write them.
static int add_lines(const Dispatch *self, const passage *way, message *to)
{
    PyObject *facts = at(self, way->host, h_facts), *traces = at(self, way->request, r_trace_headers);
    int wants_id = named_truth(facts, names.request_id_header), wants_traces = wants_id < 0 ? -1 : named_truth(facts, names.trace_headers);
    if (wants_traces < 0)
        return -1;
    if (wants_id) {
        Py_ssize_t bytes;
        const char *id = PyUnicode_AsUTF8AndSize(at(self, way->request, r_request_id), &bytes);
        if (id == NULL || bytes != PyUnicode_GetLength(at(self, way->request, r_request_id))) { // not all of it is ASCII
            PyErr_Clear();
            return 0;
        }
        add(to, ID_NAME, sizeof ID_NAME - 1);
        add(to, id, bytes);
        add(to, HEAD_END, 2);
    }
    if (!wants_traces)
        return 1;
    if (at(self, way->host, h_tracer) != Py_None || !PyBytes_Check(traces))
        return 0;
    add_bytes(to, traces);
    return 1;
}

// Note that usage is asked for on the router's own account, and taken out of the answer.
static bool note_usage(const Dispatch *self, const passage *way)
{
    number flags;
    if (!number_in(self, way->request, r_flags, &flags))
        return false;
    put(self, way->attempt, a_drop_usage, Py_True);
    return put_new(self, way->request, r_flags, PyLong_FromUnsignedLongLong(flags | self->usage_added));
}

// The request as the host gets it; NULL without an exception where Python is to build it.
static PyObject *build(const Dispatch *self, const passage *way)
{
    PyObject *heads = at(self, way->host, h_heads), *body = at(self, way->request, r_body);
    PyObject *head = PyDict_Check(heads) ? PyDict_GetItemWithError(heads, at(self, way->request, r_target)) : NULL;
    if (head == NULL || !PyBytes_Check(head) || !PyBytes_Check(body))
        return NULL;
    message whole = {.count = 0};
    bool asks_usage;
    add_bytes(&whole, head);
    if (is_plain_body(self, way, &asks_usage) != 1 || add_lines(self, way, &whole) != 1)
        return NULL;
    Py_ssize_t bytes = PyBytes_Size(body), usage_bytes = asks_usage ? PyBytes_Size(self->usage_field) : 0;
    const char *begin = PyBytes_AsString(body), *brace = asks_usage ? memchr(begin, '{', bytes) : NULL;
    Py_ssize_t before = brace == NULL ? 0 : brace + 1 - begin; // of the body, what stands before the field for usage
    if (asks_usage && brace == NULL)
        return NULL;
    char digits[LENGTH_DIGITS_MAX], *first = digits + sizeof digits;
    Py_ssize_t left = bytes + usage_bytes; // written by hand: a format takes ten times as long
    do
        *--first = (char)('0' + left % 10);
    while ((left /= 10) != 0);
    add(&whole, LENGTH_NAME, sizeof LENGTH_NAME - 1);
    add(&whole, first, digits + sizeof digits - first);
    add(&whole, HEAD_END, sizeof HEAD_END - 1);
    if (asks_usage) {
        add(&whole, begin, before);
        add_bytes(&whole, self->usage_field);
    }
    add(&whole, begin + before, bytes - before);
    PyObject *data = joined(&whole);
    if (data != NULL && asks_usage && !note_usage(self, way))
        Py_CLEAR(data);
    return data;
}

// ---------------------------------------------------------------- what is booked

// Publish a record of this request's life: by native code where there is some, or by Python.
static bool publish(const Dispatch *self, const passage *way, PyObject *at_ns, number kind)
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
static PyObject *known_identity(const Dispatch *self, const passage *way)
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

static bool identify(const Dispatch *self, const passage *way)
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
static bool show(const Dispatch *self, const passage *way)
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
static bool book(const Dispatch *self, const passage *way)
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
static bool count_start(const Dispatch *self, PyObject *spares, number now, number running)
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

static bool tend_spares(const Dispatch *self, const passage *way, number running)
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

// ---------------------------------------------------------------- to the host

// Write the request on its connection, as Attempt.start().
static bool start(const Dispatch *self, const passage *way, PyObject *now, PyObject *data)
{
    PyObject *request = way->request, *attempt = way->attempt, *connection = way->connection;
    number idle_since;
    if (!number_in(self, connection, c_idle_since, &idle_since))
        return false;
    put(self, attempt, a_connection, connection);
    PyObject *used = at(self, connection, c_used);
    put(self, attempt, a_on_kept_connection, used == Py_True ? used : idle_since > 0 ? Py_True : Py_False);
    put(self, attempt, a_last_read_ns, now);
    put(self, request, r_conn_ns, now);
    put(self, request, r_check_ns, self->held[ZERO]);
    put(self, request, r_phase, self->held[PREFILL]);
    put(self, connection, c_attempt, attempt);
    if (!done_with(PyObject_CallMethodObjArgs(way->transport, names.write, data, NULL)))
        return false;
    int is_blocked = PyObject_IsTrue(at(self, connection, c_blocked));
    if (is_blocked != 0)
        return is_blocked == 1;
    if (!put_new(self, request, r_sent_ns, PyLong_FromUnsignedLongLong(monotonic_ns())))
        return false;
    put(self, attempt, a_last_read_ns, at(self, request, r_sent_ns));
    return true;
}

// Send the request, then write down that it was, as Loop.connected().
static bool connected(const Dispatch *self, const passage *way)
{
    PyObject *request = way->request, *now = PyLong_FromUnsignedLongLong(monotonic_ns());
    PyObject *data = now == NULL ? NULL : build(self, way);
    bool is_done = false;
    if (data == NULL) {
        if (!PyErr_Occurred())
            is_done = done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names.connected, way->attempt, way->connection, now, NULL));
    } else {
        is_done = start(self, way, now, data) && book(self, way) && publish(self, way, now, self->kind_dispatched)
            && done_with(PyObject_CallMethodObjArgs(at(self, request, r_egress), names.prepare, request, NULL));
    }
    Py_XDECREF(now);
    Py_XDECREF(data);
    return is_done;
}

// As Attempt.of().
static bool new_attempt(const Dispatch *self, passage *way)
{
    PyObject *attempt = way->attempt = PyObject_CallNoArgs(self->held[NEW_ATTEMPT]);
    if (attempt != NULL && Py_TYPE(attempt) != self->kinds[ATTEMPT])
        PyErr_SetString(PyExc_TypeError, "what makes attempts has made something else");
    if (PyErr_Occurred())
        return false;
    put(self, attempt, a_loop, self->held[LOOP]);
    put(self, attempt, a_request, way->request);
    put(self, attempt, a_host, way->host);
    return put_new(self, attempt, a_publish, PyObject_GetAttr(self->held[TELEMETRY], names.publish_token))
        && put_new(self, attempt, a_native_publish, PyObject_GetAttr(self->held[TELEMETRY], names.native_publish))
        && put_new(self, attempt, a_host_bits, PyLong_FromUnsignedLongLong(way->host_id << 16));
}

// Start the attempt at the host and the connection that were found.
static bool go(const Dispatch *self, passage *way)
{
    PyObject *request = way->request, *turn = PyLong_FromSsize_t(way->chosen + 1), *idle = at(self, way->host, h_idle);
    bool is_set = turn != NULL && PyObject_SetAttr(way->model, names.turn, turn) == 0;
    number running;
    Py_XDECREF(turn);
    if (!is_set || !number_in(self, way->host, h_host_id, &way->host_id) || !number_in(self, way->host, h_running, &running)
        || !put_new(self, request, r_routed, PyLong_FromUnsignedLongLong(way->routed_ns)))
        return false;
    put(self, request, r_packed_candidates, way->candidates);
    put(self, request, r_admitted, way->now);
    put(self, request, r_host, at(self, way->host, h_host_id));
    put(self, request, r_routed1, at(self, request, r_routed));
    put(self, request, r_attempt_count, self->held[ONE]);
    if (!put_new(self, way->host, h_running, PyLong_FromUnsignedLongLong(running + 1)) || !new_attempt(self, way))
        return false;
    put(self, request, r_attempt, way->attempt);
    put(self, request, r_phase, self->held[CONNECTING]);
    put(self, request, r_check_ns, self->held[ZERO]);
    Py_ssize_t last = PyList_Size(idle) - 1;
    if (PyList_SetSlice(idle, last, last + 1, NULL) != 0 || !connected(self, way) || !tend_spares(self, way, running + 1))
        return false;
    long row = PyLong_AsLong(at(self, request, r_row));
    if (row >= 0)
        return true;
    return !PyErr_Occurred() && done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names._book, request, NULL));
}

// ---------------------------------------------------------------- off the ring

// What the loop does with each request off the ring: here if it is a usual one and nobody has put himself in front.
static bool take(const Dispatch *self, PyObject *request, PyObject *now)
{
    PyObject *taker = PyObject_GetAttr(self->held[LOOP], names.take);
    if (taker == NULL)
        return false;
    passage way = {.request = request, .now = Py_NewRef(now)};
    int is_usual = taker == self->held[PLACE] ? find(self, &way) : 0;
    bool is_taken = is_usual == 1 ? go(self, &way)
        : is_usual == 0           ? done_with(PyObject_CallFunctionObjArgs(taker, request, now, NULL))
                                  : false;
    Py_DECREF(taker);
    leave(&way);
    return is_taken;
}

// An exception of the router's own while a request was placed: the loop logs it and ends the request, if it is nowhere.
static bool give_up(const Dispatch *self, PyObject *request)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return false;
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    PyErr_NormalizeException(&kind, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    bool is_done = done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names._give_up, request, error, NULL));
    Py_XDECREF(kind);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return is_done;
}

// Let the ring have the request's slot, whatever has happened to the request; an exception that is set stays so.
static bool release(const Dispatch *self, PyObject *end, bool is_well)
{
    PyObject *kind = NULL, *error = NULL, *traceback = NULL;
    if (!is_well)
        PyErr_Fetch(&kind, &error, &traceback);
    bool is_released = done_with(PyObject_CallFunctionObjArgs(self->held[RELEASE], end, NULL));
    if (is_released && !is_well) {
        PyErr_Restore(kind, error, traceback);
    } else {
        Py_XDECREF(kind);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
    }
    return is_released && is_well;
}

// Take a request that was published alone off the ring.
static bool drain_one(const Dispatch *self, PyObject *request, PyObject *end)
{
    PyObject *now = PyLong_FromUnsignedLongLong(monotonic_ns());
    bool is_well = now != NULL;
    if (is_well) {
        put(self, request, r_deq, now);
        is_well = PyDict_SetItem(self->held[IN_FLIGHT], at(self, request, r_seq), request) == 0
            && (take(self, request, now) || give_up(self, request));
    }
    Py_XDECREF(now);
    return release(self, end, is_well);
}

// 1: there is room for one more request; 0: Python is to say why not; -1: an exception.
static int has_room(const Dispatch *self)
{
    PyObject *loop = self->held[LOOP];
    int is_stopping = named_truth(loop, names.stopping);
    PyObject *limits = is_stopping == 0 ? PyObject_GetAttr(loop, names.limits) : NULL;
    number in_flight_max;
    if (limits == NULL)
        return is_stopping == 1 ? 0 : -1;
    bool is_read = named_number(limits, names.in_flight, &in_flight_max);
    Py_DECREF(limits);
    return !is_read ? -1 : (number)PyDict_Size(self->held[IN_FLIGHT]) < in_flight_max;
}

// Drain what was published: the usual way if the ring holds nothing else, as in a turn within a turn.
static bool drain(const Dispatch *self, PyObject *request, PyObject *sequence)
{
    PyObject *ready = PyObject_CallFunctionObjArgs(self->held[POLL], self->held[BATCH_MAX], NULL);
    if (ready == NULL)
        return false;
    number first, end, own;
    bool is_range = PyTuple_Check(ready) && PyTuple_Size(ready) == 2 && to_number(PyTuple_GetItem(ready, 0), &first)
        && to_number(PyTuple_GetItem(ready, 1), &end) && to_number(sequence, &own);
    bool is_well = false;
    if (is_range && first == own && end == own + 1)
        is_well = drain_one(self, request, PyTuple_GetItem(ready, 1));
    else if (is_range)
        is_well = PyDict_SetItem(self->held[PUBLISHED], sequence, request) == 0
            && done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names.drain, NULL));
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "poll() returns (first, end)");
    Py_DECREF(ready);
    return is_well;
}

PyDoc_STRVAR(submit_doc,
    "submit(request, w4, w5, w6)\n--\n\n"
    "Publish a request into the ring and drain it in this turn, as Loop.submit() does.");

static PyObject *dispatch_submit(Dispatch *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4 || Py_TYPE(arguments[0]) != self->kinds[REQUEST]) {
        PyErr_SetString(PyExc_TypeError, "submit(request: Request, w4: int, w5: int, w6: int)");
        return NULL;
    }
    PyObject *request = arguments[0], *zero = self->held[ZERO];
    int room = has_room(self);
    if (room < 0)
        return NULL;
    if (room == 0)
        return PyObject_CallFunctionObjArgs(self->held[PLAIN], request, arguments[1], arguments[2], arguments[3], NULL);
    if (!put_new(self, request, r_pub, PyLong_FromUnsignedLongLong(monotonic_ns())))
        return NULL;
    PyObject *sequence = PyObject_CallFunctionObjArgs(
        self->held[TRY_PUBLISH], at(self, request, r_recv), at(self, request, r_body_ns), at(self, request, r_pub), arguments[1],
        arguments[2], arguments[3], zero, NULL);
    int is_full = sequence == NULL ? -1 : PyObject_RichCompareBool(sequence, zero, Py_LT);
    PyObject *result = NULL;
    if (is_full == 1) {
        result = PyObject_CallMethodObjArgs(self->held[LOOP], names.refuse_ring_full, request, NULL);
    } else if (is_full == 0) {
        put(self, request, r_seq, sequence);
        result = drain(self, request, sequence) ? Py_NewRef(Py_None) : NULL;
    }
    Py_XDECREF(sequence);
    return result;
}

// ---------------------------------------------------------------- made and let go

static bool find_slots(Dispatch *self, PyObject *const *probes)
{
    for (int i = 0; i < KINDS; i++)
        self->kinds[i] = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probes[i]));
    for (int i = 0; i < SLOTS; i++) {
        slot *to = self->slots + i;
        if ((to->name = PyUnicode_InternFromString(slot_of[i].name)) == NULL || !find_slot(probes[slot_of[i].kind], to))
            return false;
        if (to->kind != IS_OBJECT) {
            PyErr_Format(PyExc_NotImplementedError, "%U is no slot whose place can be told", to->name);
            return false;
        }
    }
    return true;
}

// The parts of the loop and of its telemetry that stay the same for its whole life.
static bool hold_parts(Dispatch *self, PyObject *given)
{
    static const char *const expected = "Dispatch(): a tuple of %d parts is expected, of which some are dictionaries and one is a list";
    if (!PyTuple_Check(given) || PyTuple_Size(given) != ZERO) {
        PyErr_Format(PyExc_TypeError, expected, ZERO);
        return false;
    }
    for (int i = 0; i < ZERO; i++)
        self->held[i] = Py_NewRef(PyTuple_GetItem(given, i));
    if (!PyDict_Check(self->held[IN_FLIGHT]) || !PyDict_Check(self->held[PUBLISHED]) || !PyList_Check(self->held[FREE_ROWS])) {
        PyErr_Format(PyExc_TypeError, expected, ZERO);
        return false;
    }
    return true;
}

static PyObject *dispatch_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    PyObject *parts, *probes[KINDS], *usage_field;
    number open, dispatched, usage_added, batch_max;
    Py_ssize_t id_bytes;
    if (!PyArg_ParseTuple(arguments, "O(OOOOO)(KKKKnS):Dispatch", &parts, probes, probes + 1, probes + 2, probes + 3, probes + 4,
            &open, &dispatched, &usage_added, &batch_max, &id_bytes, &usage_field))
        return NULL;
    Dispatch *self = (Dispatch *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL)
        return NULL;
    self->kind_open = open, self->kind_dispatched = dispatched, self->usage_added = usage_added, self->id_bytes = id_bytes;
    self->usage_field = Py_NewRef(usage_field);
    self->held[ZERO] = PyLong_FromLong(0);
    self->held[ONE] = PyLong_FromLong(1);
    self->held[BATCH_MAX] = PyLong_FromUnsignedLongLong(batch_max);
    if (self->held[ZERO] == NULL || self->held[ONE] == NULL || self->held[BATCH_MAX] == NULL || !hold_parts(self, parts)
        || !find_slots(self, probes))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int dispatch_traverse(Dispatch *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    for (int i = 0; i < HELD; i++)
        Py_VISIT(self->held[i]);
    for (int i = 0; i < KINDS; i++)
        Py_VISIT((PyObject *)self->kinds[i]);
    return 0;
}

static int dispatch_clear(Dispatch *self)
{
    for (int i = 0; i < HELD; i++)
        Py_CLEAR(self->held[i]);
    for (int i = 0; i < KINDS; i++)
        Py_CLEAR(self->kinds[i]);
    Py_CLEAR(self->usage_field);
    return 0;
}

static void dispatch_dealloc(Dispatch *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    dispatch_clear(self);
    for (int i = 0; i < SLOTS; i++)
        Py_XDECREF(self->slots[i].name);
    freefunc release_memory = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release_memory(self);
    Py_DECREF(type);
}

static PyMethodDef dispatch_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))dispatch_submit, METH_FASTCALL, submit_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot dispatch_slots[] = {
    {Py_tp_new, dispatch_new},
    {Py_tp_dealloc, dispatch_dealloc},
    {Py_tp_traverse, dispatch_traverse},
    {Py_tp_clear, dispatch_clear},
    {Py_tp_methods, dispatch_methods},
    {Py_tp_doc, "Dispatch(parts, probes, constants)\n--\n\nTakes the requests of one loop to their hosts; made by router/dispatching.py."},
    {0, NULL},
};

static PyType_Spec dispatch_spec = {
    "router._dispatch.Dispatch", sizeof(Dispatch), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, dispatch_slots,
};

#define INTERN(name) && (names.name = PyUnicode_InternFromString(#name)) != NULL

static bool add_names(void)
{
    return true ALL_NAMES(INTERN);
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._dispatch", .m_doc = "A request from the ring to its host, in one call.", .m_size = 0,
};

PyMODINIT_FUNC PyInit__dispatch(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module == NULL || !add_names() ? NULL : PyType_FromSpec(&dispatch_spec);
    if (type == NULL || PyModule_AddObjectRef(module, "Dispatch", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
