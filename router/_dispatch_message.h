// A request as its host gets it. The twin is build() in router/outbound.py.

#ifndef RINGROUTER_DISPATCH_MESSAGE_H
#define RINGROUTER_DISPATCH_MESSAGE_H

#include "_dispatch_fields.h"

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

static inline PyObject *joined(const message *of)
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
static inline int is_same_model(const Dispatch *self, const passage *way)
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
static inline int is_plain_body(const Dispatch *self, const passage *way, bool *asks_usage)
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
static inline int add_lines(const Dispatch *self, const passage *way, message *to)
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
static inline bool note_usage(const Dispatch *self, const passage *way)
{
    number flags;
    if (!number_in(self, way->request, r_flags, &flags))
        return false;
    put(self, way->attempt, a_drop_usage, Py_True);
    return put_new(self, way->request, r_flags, PyLong_FromUnsignedLongLong(flags | self->usage_added));
}

// The request as the host gets it; NULL without an exception where Python is to build it.
static inline PyObject *build(const Dispatch *self, const passage *way)
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

#endif
