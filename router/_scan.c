// What needs to understand JSON, each in one call. The twins are the fallback, and the judges of what is right:
//
//     Scan          router/hosts/scanner.py            one read of a host's stream → its events
//     split_body    router/messages.py                 a body of a request without its messages (decode_body() judges it)
//     pack_usage    router/telemetry/host_report.py    counts of tokens as a record has them
//     whole_report  router/hosts/whole.py              usage, timings, metrics and ends of a whole answer
//     same_token    router/hosts/native_scan.py        whether a read is one more token like the last
//
// Scan(probe).feed(scanner, data): what StreamScanner.feed() does, with what was found written into the scanner. Whatever
// is unusual makes it return None, having changed nothing, and the read is scanned by the twin. So everything there may be
// strict, and nothing may guess. Taken are reads that consist of
//
//     whole chunks            size in hexadecimal, CR LF, payload, CR LF (RFC 9112 §7.1), without extensions
//       of whole events       "data: " object LF LF, or "data: [DONE]" LF LF
//     and the last chunk      "0" CR LF CR LF, only at the end
//
// with objects of OpenAI's shape: of `choices` the fields `index`, `text`, `finish_reason` and `delta`; `usage`, `timings`,
// `metrics`, `prompt_progress`. All JSON is checked against RFC 8259, UTF-8 included. An `error`, a key that stands twice
// or has an escape in it, a value of another type than usual: None.
//
// Words of an event's code (see records.py): kind | flags << 8 | choice << 32.

#include "_events.h"
#include "_json.h"
#include "_slots.h"
#include "_token.h"
#include "_usage.h"
#include "_whole.h"

enum { EVENTS_MAX = 4096, CHUNK_DIGITS_MAX = 6 };

// What was found in one read.
typedef struct {
    PyObject *events;  // list of (code, bytes)
    int content_count;
    int choice_max;
    bool has_choices;
    finished_choices finished;
    span usage, timings, metrics, sentinel, lesson, lesson_text;
    uint64_t lesson_code;
    unsigned char *kept;  // the events that go out, joined; used when not all of the read does
    Py_ssize_t kept_bytes;
    bool removed;
    bool ended;
} read_facts;

// ---------------------------------------------------------------- events and reads

static bool append_event(read_facts *read, uint64_t code, Py_ssize_t size)
{
    PyObject *values[] = {PyLong_FromUnsignedLongLong(code), PyLong_FromSsize_t(size)}, *pair = tuple_of(values, 2);
    if (pair == NULL)
        return false;
    int failed = PyList_Append(read->events, pair);
    Py_DECREF(pair);
    return failed == 0;
}

static void keep(read_facts *read, text event, Py_ssize_t size)
{
    memcpy(read->kept + read->kept_bytes, event, size);
    read->kept_bytes += size;
}

static void keep_raw(span *kept, span found)
{
    if (found.begin != NULL)
        *kept = found;
}

static bool take_event(read_facts *read, text event, text line_end, bool drop_usage, bool drop_progress)
{
    Py_ssize_t size = line_end + 2 - event;
    text data = event + 6;
    if (line_end - data == 6 && memcmp(data, "[DONE]", 6) == 0) {
        read->sentinel = (span){event, event + size};
        read->removed = true;
        return append_event(read, KIND_SENTINEL | FLAG_HOST_EVENT << 8, size);
    }
    event_facts facts = {0};
    cursor c = {.at = data, .end = line_end};
    if (!take_object(&c, &facts, &read->finished))
        return false;
    bool stays;
    uint64_t code = classify(&facts, drop_usage, drop_progress, &stays);
    keep_raw(&read->usage, facts.usage);
    keep_raw(&read->timings, facts.timings);
    keep_raw(&read->metrics, facts.metrics);
    if (facts.choice_count > 0) {
        read->has_choices = true;
        if (facts.choice_max > read->choice_max)
            read->choice_max = facts.choice_max;
    }
    if (facts.kind != 0) {
        read->content_count++;
        if (facts.choice_count == 1 && !facts.finished && facts.usage.begin == NULL && facts.kind != KIND_TOOL_CALL) {
            read->lesson = (span){event, event + size};
            read->lesson_text = c.text_count == 1 ? c.text_value : (span){NULL, NULL};
            read->lesson_code = code;
        }
    }
    if (stays)
        keep(read, event, size);
    else
        read->removed = true;
    return append_event(read, code | (stays ? 0 : (uint64_t)FLAG_REMOVED << 8), size);
}

static bool take_events(read_facts *read, text at, text end, bool drop_usage, bool drop_progress)
{
    while (at < end) {
        if (read->sentinel.begin != NULL || end - at < 8 || memcmp(at, "data: ", 6) != 0)
            return false;
        text line_end = memchr(at, '\n', end - at);
        if (line_end == NULL || line_end + 1 >= end || line_end[1] != '\n' || PyList_Size(read->events) >= EVENTS_MAX)
            return false;
        if (!take_event(read, at, line_end, drop_usage, drop_progress))
            return false;
        at = line_end + 2;
    }
    return true;
}

// Take chunk after chunk; `chunks_end` is where those with events end.
static bool take_chunks(read_facts *read, text at, text end, bool drop_usage, bool drop_progress, text *chunks_end)
{
    while (at < end) {
        text digits = at;
        Py_ssize_t size = 0;
        while (at < end && at - digits < CHUNK_DIGITS_MAX && is_hex(*at))
            size = size * 16 + hex_value(*at++);
        if (at == digits || end - at < 4 || at[0] != '\r' || at[1] != '\n')
            return false;
        at += 2;
        if (size == 0) {
            read->ended = true;
            return end - at == 2 && at[0] == '\r' && at[1] == '\n';
        }
        if (size > end - at - 2 || at[size] != '\r' || at[size + 1] != '\n')
            return false;
        if (!take_events(read, at, at + size, drop_usage, drop_progress))
            return false;
        at += size + 2;
        *chunks_end = at;
    }
    return true;
}

// ---------------------------------------------------------------- to Python

static PyObject *bytes_or_none(span raw)
{
    if (raw.begin == NULL)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)raw.begin, raw.end - raw.begin);
}

// What the client gets: the read itself if it may stay as it is, else the events that stay, as one chunk if `raw`.
static PyObject *outgoing(PyObject *data, const read_facts *read, bool raw, Py_ssize_t chunks_bytes)
{
    if (raw && !read->removed) {
        if (!read->ended)
            return Py_NewRef(data);
        return PyBytes_FromStringAndSize(PyBytes_AsString(data), chunks_bytes);
    }
    if (!raw || read->kept_bytes == 0)
        return PyBytes_FromStringAndSize((const char *)read->kept, read->kept_bytes);
    char line[24];
    int line_bytes = PyOS_snprintf(line, sizeof line, "%zx\r\n", (size_t)read->kept_bytes);
    PyObject *out = PyBytes_FromStringAndSize(NULL, line_bytes + read->kept_bytes + 2);
    if (out == NULL)
        return NULL;
    char *to = PyBytes_AsString(out);
    memcpy(to, line, line_bytes);
    memcpy(to + line_bytes, read->kept, read->kept_bytes);
    memcpy(to + line_bytes + read->kept_bytes, "\r\n", 2);
    return out;
}

static PyObject *finished_tuple(const read_facts *read)
{
    PyObject *tuple = PyTuple_New(read->finished.count);
    for (int i = 0; tuple != NULL && i < read->finished.count; i++) {
        PyObject *index = PyLong_FromLong(read->finished.all[i]);
        if (index == NULL || PyTuple_SetItem(tuple, i, index) != 0) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}

// The attributes of a scanner that are read or written here, by their names in router/hosts/scanner.py.
enum {
    EVENTS, CONTENT_COUNT, CHOICE_COUNT, FIRST_CHOICES, FINISHED, FINISH_COUNT, USAGE, TIMINGS, METRICS, SENTINEL, ALIGNED,
    PREFIX, SUFFIX, CODE, MISSES, RAW, DROP_USAGE, DROP_PROGRESS, SCANNER_SLOTS
};
enum { MISSES_MAX = 16 };  // _MISSES_MAX there

typedef struct {
    PyObject_HEAD
    PyTypeObject *known;
    PyObject *union_name;
    slot slots[SCANNER_SLOTS];
} Scan;

static PyObject *get(const Scan *self, PyObject *scanner, int which)
{
    return value_at(scanner, true, self->slots + which);
}

// Store a value and take it over; false where it is NULL, with an exception set.
static bool put(const Scan *self, PyObject *scanner, int which, PyObject *value)
{
    const slot *to = self->slots + which;
    if (value == NULL)
        return false;
    if (to->kind == IS_OBJECT) {
        PyObject **place = (PyObject **)((char *)scanner + to->offset), *before = *place;
        *place = value;
        Py_XDECREF(before);
        return true;
    }
    bool is_stored = PyObject_SetAttr(scanner, to->name, value) == 0;
    Py_DECREF(value);
    return is_stored;
}

static int is_set(const Scan *self, PyObject *scanner, int which)
{
    PyObject *value = get(self, scanner, which);
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

static long number_of(const Scan *self, PyObject *scanner, int which)
{
    PyObject *value = get(self, scanner, which);
    long number = value == NULL ? -1 : PyLong_AsLong(value);
    Py_XDECREF(value);
    return number;
}

static bool add(const Scan *self, PyObject *scanner, int which, long more)
{
    long before = number_of(self, scanner, which);
    return !PyErr_Occurred() && put(self, scanner, which, PyLong_FromLong(before + more));
}

// Add the events of this read to those that nobody has recorded yet: mostly there are none.
static bool put_events(const Scan *self, PyObject *scanner, PyObject *found)
{
    PyObject *events = get(self, scanner, EVENTS);
    if (events == NULL || !PyList_Check(events)) {
        if (events != NULL)
            PyErr_SetString(PyExc_TypeError, "a scanner's events are a list");
        Py_XDECREF(events);
        return false;
    }
    Py_ssize_t count = PyList_Size(events);
    bool is_put = count == 0 ? put(self, scanner, EVENTS, Py_NewRef(found)) : PyList_SetSlice(events, count, count, found) == 0;
    Py_DECREF(events);
    return is_put;
}

static bool put_finished(const Scan *self, PyObject *scanner, const read_facts *read)
{
    if (read->finished.count == 0)
        return true;
    PyObject *before = get(self, scanner, FINISHED), *now = before == NULL ? NULL : finished_tuple(read);
    PyObject *all = now == NULL ? NULL : PyObject_CallMethodObjArgs(before, self->union_name, now, NULL);
    Py_XDECREF(before);
    Py_XDECREF(now);
    Py_ssize_t count = all == NULL ? -1 : PyObject_Size(all);
    return put(self, scanner, FINISHED, all) && put(self, scanner, FINISH_COUNT, PyLong_FromSsize_t(count));
}

static bool put_raw(const Scan *self, PyObject *scanner, int which, span raw)
{
    return raw.begin == NULL || put(self, scanner, which, bytes_or_none(raw));
}

// Make the template of the next token, as learn() of the twin does.
static bool put_lesson(const Scan *self, PyObject *scanner, const read_facts *read)
{
    if (read->lesson.begin == NULL)
        return true;
    long misses = number_of(self, scanner, MISSES) + 1;
    if (PyErr_Occurred() || !put(self, scanner, MISSES, PyLong_FromLong(misses)))
        return false;
    if (misses > MISSES_MAX || read->lesson_text.begin == NULL)
        return true;
    Py_ssize_t after = read->lesson.end - read->lesson_text.end;
    PyObject *suffix = PyBytes_FromStringAndSize(NULL, after + 2); // with the end of the chunk
    if (suffix == NULL)
        return false;
    memcpy(PyBytes_AsString(suffix), read->lesson_text.end, after);
    memcpy(PyBytes_AsString(suffix) + after, "\r\n", 2);
    return put(self, scanner, SUFFIX, suffix)
        && put(self, scanner, PREFIX, bytes_or_none((span){read->lesson.begin, read->lesson_text.begin}))
        && put(self, scanner, CODE, PyLong_FromUnsignedLongLong(read->lesson_code));
}

static bool put_all(const Scan *self, PyObject *scanner, const read_facts *read)
{
    if (!put_events(self, scanner, read->events))
        return false;
    if (read->content_count != 0 && !add(self, scanner, CONTENT_COUNT, read->content_count))
        return false;
    if (read->has_choices) {
        if (!put(self, scanner, FIRST_CHOICES, Py_NewRef(Py_True)))
            return false;
        if (read->choice_max > number_of(self, scanner, CHOICE_COUNT)
            && (PyErr_Occurred() || !put(self, scanner, CHOICE_COUNT, PyLong_FromLong(read->choice_max))))
            return false;
    }
    if (read->ended && !put(self, scanner, ALIGNED, Py_NewRef(Py_False)))
        return false;
    return put_finished(self, scanner, read) && put_raw(self, scanner, USAGE, read->usage)
        && put_raw(self, scanner, TIMINGS, read->timings) && put_raw(self, scanner, METRICS, read->metrics)
        && put_raw(self, scanner, SENTINEL, read->sentinel) && put_lesson(self, scanner, read) && !PyErr_Occurred();
}

static PyObject *feed(const Scan *self, PyObject *scanner, PyObject *data, read_facts *read)
{
    int raw = is_set(self, scanner, RAW), drop_usage = is_set(self, scanner, DROP_USAGE);
    int drop_progress = is_set(self, scanner, DROP_PROGRESS);
    if (raw < 0 || drop_usage < 0 || drop_progress < 0)
        return NULL;
    text begin = (text)PyBytes_AsString(data), chunks_end = begin;
    if (!take_chunks(read, begin, begin + PyBytes_Size(data), drop_usage, drop_progress, &chunks_end))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    PyObject *out = outgoing(data, read, raw, chunks_end - begin);
    if (out != NULL && !put_all(self, scanner, read))
        Py_CLEAR(out);
    return out;
}

PyDoc_STRVAR(scan_feed_doc,
    "feed(scanner, data)\n--\n\n"
    "Take one read that begins at a chunk's beginning and return what the client gets of it. Returns None, having changed\n"
    "nothing, where anything of it is unusual.");

static PyObject *scan_feed(Scan *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || Py_TYPE(arguments[0]) != self->known || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "feed(scanner, data: bytes), the scanner of the probe's class");
        return NULL;
    }
    read_facts read = {0};
    read.kept = PyMem_Malloc(PyBytes_Size(arguments[1]) + 1);
    read.events = PyList_New(0);
    PyObject *out = NULL;
    if (read.kept == NULL)
        PyErr_NoMemory();
    else if (read.events != NULL)
        out = feed(self, arguments[0], arguments[1], &read);
    Py_XDECREF(read.events);
    PyMem_Free(read.kept);
    return out;
}

static PyObject *scan_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static const char *const slot_names[SCANNER_SLOTS] = {
        "events", "content_count", "choice_count", "first_choices", "_finished", "finish_count", "usage", "timings", "metrics",
        "sentinel", "aligned", "prefix", "suffix", "code", "misses", "_raw", "_drop_usage", "_drop_progress",
    };
    (void)names;
    PyObject *probe;
    if (!PyArg_ParseTuple(arguments, "O:Scan", &probe))
        return NULL;
    Scan *self = (Scan *)PyType_GenericNew(type, NULL, NULL);
    if (self != NULL && (self->union_name = PyUnicode_InternFromString("union")) == NULL)
        Py_CLEAR(self);
    if (self != NULL && !find_named_slots(probe, slot_names, self->slots, SCANNER_SLOTS))
        Py_CLEAR(self);
    if (self != NULL)
        self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return (PyObject *)self;
}

static void scan_dealloc(Scan *self)
{
    release_slots(self->slots, SCANNER_SLOTS);
    Py_XDECREF(self->union_name);
    Py_XDECREF((PyObject *)self->known);
    free_object(self);
}

static PyMethodDef scan_methods[] = {
    {"feed", (PyCFunction)(void (*)(void))scan_feed, METH_FASTCALL, scan_feed_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot scan_slots[] = {
    {Py_tp_new, scan_new},
    {Py_tp_dealloc, scan_dealloc},
    {Py_tp_methods, scan_methods},
    {Py_tp_doc, "Scan(probe)\n--\n\nScans reads for scanners of a class, of which the probe is one, nobody else's."},
    {0, NULL},
};

static PyType_Spec scan_spec = {"router._scan.Scan", sizeof(Scan), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, scan_slots};

// ---------------------------------------------------------------- bodies of requests

PyDoc_STRVAR(split_body_doc,
    "split_body(body)\n--\n\n"
    "Return (the body without the value of its `messages`, where that value begins, where it ends), or None unless the body is\n"
    "a JSON object of the usual form whose `messages` are an array.");

static PyObject *split_body(PyObject *module, PyObject *body)
{
    (void)module;
    if (!PyBytes_Check(body)) {
        PyErr_SetString(PyExc_TypeError, "split_body(body: bytes)");
        return NULL;
    }
    text begin = (text)PyBytes_AsString(body);
    cursor c = {.at = begin, .end = begin + PyBytes_Size(body)};
    span messages = {NULL, NULL};
    members all;
    for (bool is_more = first_member(&c, &all); is_more; is_more = next_member(&c, &all)) {
        skip_blanks(&c);
        bool is_messages = is(all.name, "messages");
        if (is_messages && (messages.begin != NULL || c.at >= c.end || *c.at != '['))
            Py_RETURN_NONE;
        text value = c.at;
        if (!take_value(&c, all.name))
            Py_RETURN_NONE;
        if (is_messages)
            messages = (span){value, c.at};
    }
    skip_blanks(&c);
    if (!all.is_whole || c.at != c.end || messages.begin == NULL)
        Py_RETURN_NONE;
    Py_ssize_t before = messages.begin - begin, after = c.end - messages.end;
    PyObject *rest = PyBytes_FromStringAndSize(NULL, before + after);
    if (rest == NULL)
        return NULL;
    memcpy(PyBytes_AsString(rest), begin, before);
    memcpy(PyBytes_AsString(rest) + before, messages.end, after);
    return tuple_of((PyObject *[]){rest, PyLong_FromSsize_t(before), PyLong_FromSsize_t(messages.end - begin)}, 3);
}

static bool is_array(text begin, text end)
{
    cursor c = {.at = begin, .end = end};
    return begin < end && *begin == '[' && take_container(&c, false) && c.at == end;
}

static const json_t json = {is_array};

// ---------------------------------------------------------------- usage

PyDoc_STRVAR(pack_usage_doc,
    "pack_usage(usage)\n--\n\nReturn the counts of tokens in usage of OpenAI's shape as a record has them, None for any other.");

// As read_report() in router/telemetry/host_report.py and then Telemetry do.
static PyObject *pack_usage(PyObject *module, PyObject *usage)
{
    (void)module;
    if (!PyBytes_Check(usage)) {
        PyErr_SetString(PyExc_TypeError, "pack_usage(usage: bytes)");
        return NULL;
    }
    text begin = (text)PyBytes_AsString(usage);
    cursor c = {.at = begin, .end = begin + PyBytes_Size(usage)};
    uint32_t numbers[USAGE_NUMBERS] = {0};
    if (!take_usage(&c, numbers))
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)numbers, sizeof numbers);
}

// ---------------------------------------------------------------- whole answers

PyDoc_STRVAR(whole_report_doc,
    "whole_report(body)\n--\n\n"
    "Return usage, timings and metrics of a whole answer as they stand (None: absent), the number of its choices, and whether\n"
    "one ended in calls of tools; None for an answer of an unusual shape.");

static PyObject *whole_report(PyObject *module, PyObject *body)
{
    (void)module;
    if (!PyBytes_Check(body)) {
        PyErr_SetString(PyExc_TypeError, "whole_report(body: bytes)");
        return NULL;
    }
    text begin = (text)PyBytes_AsString(body);
    whole_facts whole = {0};
    cursor c = {.at = begin, .end = begin + PyBytes_Size(body)};
    if (!take_whole(&c, &whole))
        Py_RETURN_NONE;
    PyObject *values[] = {
        bytes_or_none(whole.usage), bytes_or_none(whole.timings), bytes_or_none(whole.metrics),
        PyLong_FromLong(whole.choice_count), PyBool_FromLong(whole.calls_tools),
    };
    return tuple_of(values, 5);
}

// ---------------------------------------------------------------- tokens

PyDoc_STRVAR(same_token_doc,
    "same_token(data, prefix, suffix)\n--\n\n"
    "Return the payload's size if a read is one chunk with one event that differs from the template in its text only, else 0.");

static PyObject *same_token(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyBytes_Check(arguments[0]) || !PyBytes_Check(arguments[1]) || !PyBytes_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "same_token(data: bytes, prefix: bytes, suffix: bytes)");
        return NULL;
    }
    text data = (text)PyBytes_AsString(arguments[0]);
    return PyLong_FromSsize_t(token_size(data, PyBytes_Size(arguments[0]), arguments[1], arguments[2]));
}

static PyMethodDef methods[] = {
    {"pack_usage", pack_usage, METH_O, pack_usage_doc},
    {"split_body", split_body, METH_O, split_body_doc},
    {"whole_report", whole_report, METH_O, whole_report_doc},
    {"same_token", (PyCFunction)(void (*)(void))same_token, METH_FASTCALL, same_token_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._scan", .m_doc = "Reads of a host's stream, each in one call.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__scan(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&scan_spec);
    PyObject *shared = PyCapsule_New((void *)&json, RINGROUTER_JSON, NULL);
    if (module == NULL || type == NULL || shared == NULL || PyModule_AddObjectRef(module, "Scan", type) != 0
        || PyModule_AddObjectRef(module, "json", shared) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    Py_XDECREF(shared);
    return module;
}
