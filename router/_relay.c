// One more token of a stream, from the host's read to its record, in one call: nothing else happens per token, and what does
// not happen in the interpreter need not be found in memory by a token that finds the caches cold.
//
//     TokenState   what changes with each token of a request; the base of router.request.Request, whose other fields are
//                  Python's. Twin: PlainTokenState in router/token_state.py
//     relay()      takes a stream's reads once its answer is being relayed. Twin: Attempt._take_stream in router/attempt.py
//     record_events()  publishes the events of any other read. Twin: plain_record_events() in router/token_state.py
//
// A read that is not one more token like the last goes to the attempt, as it would without this file.

#include "_native.h"
#include "_token.h"

#include "../ringbuffer/_publish.h"

#include <structmember.h>
#include <time.h>

typedef unsigned long long number;

// As PyLong_AsUnsignedLongLong(), which takes four times as long: nearly all numbers here are below 2**63.
static inline number as_number(PyObject *object)
{
    if (PyLong_Check(object)) {
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
        if (value >= 0 && overflow == 0)
            return (number)value;
    }
    return PyLong_AsUnsignedLongLong(object);
}

// ---------------------------------------------------------------- what changes with each token

typedef struct {
    PyObject_HEAD
    number event_index, content_count, bytes_out, tok_n, out_n, stall_max_ns, early_tokens, visible_tokens, blocked_ns;
} TokenState;

#define FIELD(name) {#name, T_ULONGLONG, offsetof(TokenState, name), 0, NULL}

static PyMemberDef state_members[] = {
    FIELD(event_index), FIELD(content_count), FIELD(bytes_out), FIELD(tok_n), FIELD(out_n), FIELD(stall_max_ns),
    FIELD(early_tokens), FIELD(visible_tokens), FIELD(blocked_ns), {NULL, 0, 0, 0, NULL},
};

static PyType_Slot state_slots[] = {
    {Py_tp_members, state_members},
    {Py_tp_doc, "What changes with each token of a request; all zero at first."},
    {0, NULL},
};

static PyType_Spec state_spec = {
    "router._relay.TokenState", sizeof(TokenState), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, state_slots,
};

// ---------------------------------------------------------------- reads

// Everything of an attempt that a token needs. The template (prefix, suffix, third word of the record) is the scanner's and
// is looked up anew behind every read that was not one more token.
typedef struct {
    PyObject_HEAD
    TokenState *state;
    PyObject *scanner, *write, *publish, *native, *take_read, *unsent, *zero;
    const publish_t *to;           // in `native`; NULL: records are published by `publish`
    PyObject *prefix, *suffix;
    number seq, host_bits, word3;             // word3 0: no template
    number early_end_ns, visible_end_ns;
    bool was_hit;   // since the last read that went to the attempt
    bool is_stale;  // that read may have changed the template
} Relay;

typedef struct {
    PyTypeObject *state, *relay;
} types;

static struct {
    PyObject *prefix, *suffix, *code, *aligned, *misses;
} names;

static inline number monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (number)now.tv_sec * 1000000000 + (number)now.tv_nsec;
}

static void keep(PyObject **where, PyObject *value)
{
    PyObject *before = *where;
    *where = Py_NewRef(value);
    Py_XDECREF(before);
}

// Take the scanner's template; false with an exception set where it has none of the expected kind.
static bool arm(Relay *self)
{
    self->is_stale = false;
    self->word3 = 0;
    PyObject *aligned = PyObject_GetAttr(self->scanner, names.aligned);
    if (aligned == NULL)
        return false;
    bool is_aligned = aligned == Py_True;
    Py_DECREF(aligned);
    if (!is_aligned)
        return true;
    PyObject *prefix = PyObject_GetAttr(self->scanner, names.prefix), *suffix = PyObject_GetAttr(self->scanner, names.suffix);
    PyObject *code = PyObject_GetAttr(self->scanner, names.code);
    bool found = prefix != NULL && suffix != NULL && code != NULL;
    if (found && !(PyBytes_Check(prefix) && PyBytes_Check(suffix))) {
        PyErr_SetString(PyExc_TypeError, "a scanner's prefix and suffix are bytes");
        found = false;
    }
    if (found) {
        keep(&self->prefix, prefix);
        keep(&self->suffix, suffix);
        if (PyBytes_Size(prefix) > 0)
            self->word3 = as_number(code) | self->host_bits;
    }
    Py_XDECREF(prefix);
    Py_XDECREF(suffix);
    Py_XDECREF(code);
    return found && !PyErr_Occurred();
}

static PyObject *other_read(Relay *self, PyObject *data, PyObject *now)
{
    if (self->was_hit && PyObject_SetAttr(self->scanner, names.misses, self->zero) != 0)
        return NULL;
    self->was_hit = false;
    self->is_stale = true; // asked for when a further read comes: mostly this was the last
    return PyObject_CallFunctionObjArgs(self->take_read, data, now, NULL);
}

// Publish one record: by `to`, or where that is NULL by a function of Python.
static bool publish(const publish_t *to, PyObject *by_python, const number words[7])
{
    if (to != NULL) {
        to->publish(to->ring, (const uint64_t *)words);
        return true;
    }
    PyObject *numbers = PyTuple_New(7);
    for (int i = 0; numbers != NULL && i < 7; i++) {
        PyObject *one = PyLong_FromUnsignedLongLong(words[i]);
        if (one == NULL)
            Py_CLEAR(numbers);
        else
            PyTuple_SetItem(numbers, i, one);
    }
    PyObject *result = numbers == NULL ? NULL : PyObject_CallObject(by_python, numbers);
    Py_XDECREF(numbers);
    Py_XDECREF(result);
    return result != NULL;
}

// What the client's socket has not taken; the attempt pauses its host when that is too much.
static bool ask_unsent(const Relay *self, number *unsent)
{
    PyObject *answer = PyObject_CallNoArgs(self->unsent);
    if (answer == NULL)
        return false;
    *unsent = as_number(answer);
    Py_DECREF(answer);
    return !PyErr_Occurred();
}

static PyObject *relay_take(PyObject *given, PyObject *const *arguments, Py_ssize_t count)
{
    Relay *self = (Relay *)given;
    if (count != 2 || !PyBytes_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "take(data: bytes, now: int)");
        return NULL;
    }
    PyObject *data = arguments[0];
    if (self->is_stale && !arm(self))
        return NULL;
    Py_ssize_t bytes = PyBytes_Size(data);
    Py_ssize_t size = self->word3 == 0 ? 0 : token_size((text)PyBytes_AsString(data), bytes, self->prefix, self->suffix);
    if (size == 0)
        return other_read(self, data, arguments[1]);
    number now = as_number(arguments[1]);
    if (now == (number)-1 && PyErr_Occurred())
        return NULL;
    TokenState *state = self->state;
    state->bytes_out += (number)bytes;
    PyObject *written = PyObject_CallFunctionObjArgs(self->write, data, NULL);
    if (written == NULL)
        return NULL;
    Py_DECREF(written);
    number written_ns = monotonic_ns(), gap = now - state->tok_n, unsent = 0;
    if (state->blocked_ns != 0 && !ask_unsent(self, &unsent))
        return NULL;
    const number words[7] = {now, self->seq, self->word3, state->event_index | (number)size << 32, gap, unsent, 0};
    if (!publish(self->to, self->publish, words))
        return NULL;
    self->was_hit = true;
    state->event_index++;
    state->content_count++;
    state->tok_n = now;
    if (unsent == 0)
        state->out_n = written_ns;
    if (gap > state->stall_max_ns)
        state->stall_max_ns = gap;
    if (now <= self->early_end_ns) {
        state->early_tokens++;
        if (unsent == 0 && written_ns <= self->visible_end_ns)
            state->visible_tokens++;
    }
    Py_RETURN_NONE;
}

static PyMethodDef take_method = {
    "take", (PyCFunction)(void (*)(void))relay_take, METH_FASTCALL, "take(data, now)\n--\n\nRelay one read that came at the time now, in ns.",
};

PyDoc_STRVAR(relay_doc,
    "relay(state, scanner, write, publish, native_publish, take_read, unsent, seq, host_bits, early_end_ns, visible_end_ns)\n--\n\n"
    "Return the function that takes (data, now) of each further read of a stream that is being relayed.");

enum { OBJECTS = 7, NUMBERS = 4 };

// All by position and none by a format: this stands behind every first token.
static PyObject *relay(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    const types *found = PyModule_GetState(module);
    if (count != OBJECTS + NUMBERS || !PyObject_TypeCheck(arguments[0], found->state)) {
        PyErr_SetString(PyExc_TypeError, "relay() takes a TokenState and ten further arguments");
        return NULL;
    }
    number given[NUMBERS];
    for (int i = 0; i < NUMBERS; i++)
        if ((given[i] = as_number(arguments[OBJECTS + i])) == (number)-1 && PyErr_Occurred())
            return NULL;
    const publish_t *to = NULL;
    if (arguments[4] != Py_None && (to = PyCapsule_GetPointer(arguments[4], RINGBUFFER_PUBLISH)) == NULL)
        return NULL;
    Relay *self = PyObject_GC_New(Relay, found->relay);
    if (self == NULL)
        return NULL;
    memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
    self->state = (TokenState *)Py_NewRef(arguments[0]);
    PyObject **held[OBJECTS - 1] = {&self->scanner, &self->write, &self->publish, &self->native, &self->take_read, &self->unsent};
    for (int i = 1; i < OBJECTS; i++)
        *held[i - 1] = Py_NewRef(arguments[i]);
    self->to = to;
    self->seq = given[0];
    self->host_bits = given[1];
    self->early_end_ns = given[2];
    self->visible_end_ns = given[3];
    self->zero = PyLong_FromLong(0);
    PyObject_GC_Track(self);
    PyObject *take = self->zero != NULL && arm(self) ? PyCFunction_New(&take_method, (PyObject *)self) : NULL;
    Py_DECREF(self);
    return take;
}

static int relay_traverse(Relay *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT((PyObject *)self->state);
    Py_VISIT(self->scanner);
    Py_VISIT(self->write);
    Py_VISIT(self->publish);
    Py_VISIT(self->take_read);
    Py_VISIT(self->unsent);
    return 0;
}

static int relay_clear(Relay *self)
{
    PyObject **held[] = {
        (PyObject **)&self->state, &self->scanner, &self->write, &self->publish, &self->native, &self->take_read, &self->unsent,
        &self->zero, &self->prefix, &self->suffix,
    };
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        Py_CLEAR(*held[i]);
    return 0;
}

static void relay_dealloc(Relay *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    relay_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot relay_slots[] = {
    {Py_tp_dealloc, relay_dealloc},
    {Py_tp_traverse, relay_traverse},
    {Py_tp_clear, relay_clear},
    {0, NULL},
};

static PyType_Spec relay_spec = {
    "router._relay.Relay", sizeof(Relay), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    relay_slots,
};

// ---------------------------------------------------------------- the events of a read that is not one more token

enum { KIND_TEXT = 4, KIND_REASONING = 5, KIND_TOOL_CALL = 6 };  // of records.py
enum { CONTENT_CAME = 1, ANSWER_CAME = 2 };

PyDoc_STRVAR(record_events_doc,
    "record_events(state, events, publish, native_publish, seq, host_bits, now, unsent, taken_ns, early_end_ns, visible_end_ns)\n--\n\n"
    "Publish one record for each (code, bytes) of a list, count their tokens, and empty it. Returns 0 where none has content,\n"
    "else 1, and 3 where some of it is more than reasoning.");

// What is alike for all events of a read.
typedef struct {
    const publish_t *to;
    PyObject *by_python;
    number seq, host_bits, now, unsent, taken_ns, early_end_ns, visible_end_ns;
} read_record;

// Publish one event; `content` counts those that have some.
static bool record_event(PyObject *pair, const read_record *read, TokenState *state, number *content, long *came)
{
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "an event is (code, bytes)");
        return false;
    }
    number code = as_number(PyTuple_GetItem(pair, 0));
    number size = code == (number)-1 && PyErr_Occurred() ? (number)-1 : as_number(PyTuple_GetItem(pair, 1));
    if (size == (number)-1 && PyErr_Occurred())
        return false;
    number kind = code & 0xFF, gap = 0;
    if (kind >= KIND_TEXT && kind <= KIND_TOOL_CALL) {
        if (*content == 0 && state->tok_n != 0)
            gap = read->now - state->tok_n;
        if (gap > state->stall_max_ns)
            state->stall_max_ns = gap;
        ++*content;
        *came |= kind == KIND_REASONING ? CONTENT_CAME : CONTENT_CAME | ANSWER_CAME;
    }
    const number words[7] = {
        read->now, read->seq, read->host_bits | code, state->event_index | size << 32, gap, read->unsent, 0,
    };
    state->event_index++;
    return publish(read->to, read->by_python, words);
}

static void count_tokens(TokenState *state, const read_record *read, number content)
{
    bool is_first = state->tok_n == 0;
    state->tok_n = read->now;
    state->content_count += content;
    if (read->taken_ns != 0)
        state->out_n = read->taken_ns;
    if (!is_first && read->now > read->early_end_ns)
        return;
    state->early_tokens += is_first ? content - 1 : content; // the first is not within two seconds behind itself
    if (read->taken_ns != 0 && read->taken_ns <= read->visible_end_ns)
        state->visible_tokens += content;
}

static PyObject *record_events(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    const types *found = PyModule_GetState(module);
    if (count != 11 || !PyObject_TypeCheck(arguments[0], found->state) || !PyList_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "record_events() takes a TokenState, a list and nine further arguments");
        return NULL;
    }
    read_record read = {.to = NULL, .by_python = arguments[2]};
    if (arguments[3] != Py_None && (read.to = PyCapsule_GetPointer(arguments[3], RINGBUFFER_PUBLISH)) == NULL)
        return NULL;
    number *numbers[] = {
        &read.seq, &read.host_bits, &read.now, &read.unsent, &read.taken_ns, &read.early_end_ns, &read.visible_end_ns,
    };
    for (int i = 0; i < 7; i++)
        if ((*numbers[i] = as_number(arguments[4 + i])) == (number)-1 && PyErr_Occurred())
            return NULL;
    PyObject *events = arguments[1];
    TokenState *state = (TokenState *)arguments[0];
    number content = 0;
    long came = 0;
    for (Py_ssize_t i = 0; i < PyList_Size(events); i++)
        if (!record_event(PyList_GetItem(events, i), &read, state, &content, &came))
            return NULL;
    if (content != 0)
        count_tokens(state, &read, content);
    if (PyList_SetSlice(events, 0, PyList_Size(events), NULL) != 0)
        return NULL;
    return PyLong_FromLong(came);
}

// ---------------------------------------------------------------- the module

static PyMethodDef methods[] = {
    {"record_events", (PyCFunction)(void (*)(void))record_events, METH_FASTCALL, record_events_doc},
    {"relay", (PyCFunction)(void (*)(void))relay, METH_FASTCALL, relay_doc},
    {NULL, NULL, 0, NULL},
};

static int add_types(PyObject *module)
{
    types *made = PyModule_GetState(module);
    made->state = (PyTypeObject *)PyType_FromModuleAndSpec(module, &state_spec, NULL);
    made->relay = (PyTypeObject *)PyType_FromModuleAndSpec(module, &relay_spec, NULL);
    return made->state == NULL || made->relay == NULL || PyModule_AddObjectRef(module, "TokenState", (PyObject *)made->state) != 0;
}

static int add_names(void)
{
    names.prefix = PyUnicode_InternFromString("prefix");
    names.suffix = PyUnicode_InternFromString("suffix");
    names.code = PyUnicode_InternFromString("code");
    names.aligned = PyUnicode_InternFromString("aligned");
    names.misses = PyUnicode_InternFromString("misses");
    return names.prefix == NULL || names.suffix == NULL || names.code == NULL || names.aligned == NULL || names.misses == NULL;
}

static int module_clear(PyObject *module)
{
    types *made = PyModule_GetState(module);
    Py_CLEAR(made->state);
    Py_CLEAR(made->relay);
    return 0;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._relay", .m_doc = "One more token of a stream, in one call.", .m_size = sizeof(types),
    .m_methods = methods, .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__relay(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (add_types(module) != 0 || add_names() != 0))
        Py_CLEAR(module);
    return module;
}
