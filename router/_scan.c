// One read of a host's stream → its events, in one call. The twins are router/hosts/scanner.py for scan() and
// plain_same_token() in router/hosts/native_scan.py; they are the fallback, and the judges of what is right.
//
// scan: whatever is unusual makes it return None, having changed nothing, and the read is scanned by the twin. So everything
// there may be strict, and nothing may guess. Taken are reads that consist of
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

#include "_native.h"

enum { KIND_HEAD = 3, KIND_TEXT = 4, KIND_REASONING = 5, KIND_TOOL_CALL = 6, KIND_FINISH = 7, KIND_USAGE = 8, KIND_SENTINEL = 16 };
enum { FLAG_HOST_EVENT = 1, FLAG_FINISH = 2, FLAG_USAGE = 4, FLAG_REMOVED = 8 };
enum { DEPTH_MAX = 64, EVENTS_MAX = 4096, FINISHED_MAX = 128, INDEX_DIGITS_MAX = 5, CHUNK_DIGITS_MAX = 6, SAME_DIGITS_MAX = 3 };

// What was found in one event.
typedef struct {
    bool has_choices;
    int choice_count;
    int choice_max;  // largest index + 1
    int first_index;
    int kind;  // of the first choice with content, 0 if none has
    int kind_index;
    bool finished;
    span usage, timings, metrics, progress;
    int text_count;  // values that a template could be made around, wherever they stand
    span text_value;
} event_facts;

// What was found in one read.
typedef struct {
    PyObject *events;  // list of (code, bytes)
    int content_count;
    int choice_max;
    bool has_choices;
    int finished[FINISHED_MAX];
    int finished_count;
    span usage, timings, metrics, sentinel, lesson, lesson_text;
    uint64_t lesson_code;
    unsigned char *kept;  // the events that go out, joined; used when not all of the read does
    Py_ssize_t kept_bytes;
    bool removed;
    bool ended;
} read_facts;

typedef struct {
    text at, end;
    int depth;
    event_facts *facts;
} cursor;

// ---------------------------------------------------------------- JSON (RFC 8259)

static void skip_blanks(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t'))
        c->at++;
}

static bool take(cursor *c, char byte)
{
    skip_blanks(c);
    if (c->at >= c->end || *c->at != (unsigned char)byte)
        return false;
    c->at++;
    return true;
}

static bool next_is(cursor *c, char byte)
{
    skip_blanks(c);
    return c->at < c->end && *c->at == (unsigned char)byte;
}

static bool take_word(cursor *c, const char *word, size_t length)
{
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
        return false;
    c->at += length;
    return true;
}

static bool is_continuation(text at, text end)
{
    return at < end && (*at & 0xC0) == 0x80;
}

// Length of a well-formed sequence of two to four bytes (Unicode 15, table 3-7), 0 if it is none.
static int utf8_length(text at, text end)
{
    unsigned char lead = at[0];
    unsigned char second = at + 1 < end ? at[1] : 0;
    if (lead >= 0xC2 && lead <= 0xDF)
        return is_continuation(at + 1, end) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        bool second_fits = lead == 0xE0 ? second >= 0xA0 && second <= 0xBF
            : lead == 0xED              ? second >= 0x80 && second <= 0x9F
                                        : is_continuation(at + 1, end);
        return second_fits && is_continuation(at + 2, end) ? 3 : 0;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        bool second_fits = lead == 0xF0 ? second >= 0x90 && second <= 0xBF
            : lead == 0xF4              ? second >= 0x80 && second <= 0x8F
                                        : is_continuation(at + 1, end);
        return second_fits && is_continuation(at + 2, end) && is_continuation(at + 3, end) ? 4 : 0;
    }
    return 0;
}

static bool is_hex(unsigned char byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f') || (byte >= 'A' && byte <= 'F');
}

// Length of an escape sequence, 0 if it is none or half a surrogate pair, about which decoders differ.
static int escape_length(text at, text end)
{
    if (end - at < 2)
        return 0;
    if (at[1] != 'u')
        return memchr("\"\\/bfnrt", at[1], 8) != NULL ? 2 : 0;
    if (end - at < 6 || !is_hex(at[2]) || !is_hex(at[3]) || !is_hex(at[4]) || !is_hex(at[5]))
        return 0;
    bool surrogate = (at[2] == 'd' || at[2] == 'D') && at[3] >= '8';
    return surrogate ? 0 : 6;
}

// Take a string; `inside` is what stands between its quotation marks.
static bool take_string(cursor *c, span *inside, bool *escaped)
{
    if (!take(c, '"'))
        return false;
    text at = c->at, end = c->end;
    inside->begin = at;
    *escaped = false;
    while (at < end && *at != '"') {
        if (*at == '\\') {
            int length = escape_length(at, end);
            if (length == 0)
                return false;
            *escaped = true;
            at += length;
        } else if (*at >= 0x80) {
            int length = utf8_length(at, end);
            if (length == 0)
                return false;
            at += length;
        } else if (*at < 0x20) {
            return false;
        } else {
            at++;
        }
    }
    if (at >= end)
        return false;
    inside->end = at;
    c->at = at + 1;
    return true;
}

static bool take_digits(cursor *c)
{
    text begin = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9')
        c->at++;
    return c->at > begin;
}

static bool take_number(cursor *c)
{
    if (c->at < c->end && *c->at == '-')
        c->at++;
    if (c->at < c->end && *c->at == '0')
        c->at++;
    else if (!take_digits(c))
        return false;
    if (c->at < c->end && *c->at == '.') {
        c->at++;
        if (!take_digits(c))
            return false;
    }
    if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
        c->at++;
        if (c->at < c->end && (*c->at == '+' || *c->at == '-'))
            c->at++;
        return take_digits(c);
    }
    return true;
}

static bool is(span name, const char *word)
{
    size_t length = strlen(word);
    return (size_t)(name.end - name.begin) == length && memcmp(name.begin, word, length) == 0;
}

// Take `"name":` of an object's member.
static bool take_name(cursor *c, span *name)
{
    bool escaped;
    return take_string(c, name, &escaped) && !escaped && take(c, ':');
}

// A text that a template could be made around: what the expression _TEXT_VALUE of scanner.py finds.
static void note_text(cursor *c, span name, span value)
{
    if (value.begin == value.end || !(is(name, "content") || is(name, "text") || is(name, "reasoning") || is(name, "reasoning_content")))
        return;
    c->facts->text_count++;
    c->facts->text_value = value;
}

static bool take_value(cursor *c, span name);

// Take the members of an object, or the elements of an array, about which nothing needs to be known.
static bool take_container(cursor *c, bool is_object)
{
    char close = is_object ? '}' : ']';
    if (++c->depth > DEPTH_MAX)
        return false;
    c->at++;
    if (!next_is(c, close)) {
        do {
            span name = {(text) "", (text) ""};
            if (is_object && !take_name(c, &name))
                return false;
            if (!take_value(c, name))
                return false;
        } while (take(c, ','));
    }
    c->depth--;
    return take(c, close);
}

static bool take_value(cursor *c, span name)
{
    skip_blanks(c);
    if (c->at >= c->end)
        return false;
    switch (*c->at) {
    case '"': {
        span value;
        bool escaped;
        if (!take_string(c, &value, &escaped))
            return false;
        note_text(c, name, value);
        return true;
    }
    case '{': return take_container(c, true);
    case '[': return take_container(c, false);
    case 't': return take_word(c, "true", 4);
    case 'f': return take_word(c, "false", 5);
    case 'n': return take_word(c, "null", 4);
    default: return take_number(c);
    }
}

// ---------------------------------------------------------------- OpenAI's objects

// A value kept as it stands; null is as if it were not there.
static bool take_raw(cursor *c, span name, span *raw)
{
    skip_blanks(c);
    text begin = c->at;
    if (!take_value(c, name))
        return false;
    raw->begin = c->at - begin == 4 && memcmp(begin, "null", 4) == 0 ? NULL : begin;
    raw->end = c->at;
    return true;
}

// A string or null; `full` tells whether it is a string that is not empty.
static bool take_text_or_null(cursor *c, span name, bool *full)
{
    span value;
    bool escaped;
    *full = false;
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    if (!take_string(c, &value, &escaped))
        return false;
    note_text(c, name, value);
    *full = value.end > value.begin;
    return true;
}

// An array or object (as `open` says) or null; `full` tells whether it has members.
static bool take_container_or_null(cursor *c, char open, bool *full)
{
    *full = false;
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    if (!next_is(c, open))
        return false;
    text begin = c->at + 1;
    if (!take_container(c, open == '{'))
        return false;
    while (*begin == ' ' || *begin == '\t')
        begin++;
    *full = begin < c->at - 1;
    return true;
}

static bool seen(unsigned *keys, unsigned key)
{
    bool twice = (*keys & key) != 0;
    *keys |= key;
    return twice;
}

// Content of a delta, in the order in which the twin looks at its fields.
typedef struct {
    bool text, reasoning, tool_call;
} content_facts;

static bool take_delta(cursor *c, content_facts *content)
{
    static const struct {
        const char *name;
        enum { IS_TEXT, IS_REASONING, IS_ARRAY, IS_OBJECT } what;
    } fields[] = {
        {"content", IS_TEXT}, {"refusal", IS_TEXT}, {"reasoning", IS_REASONING}, {"reasoning_content", IS_REASONING},
        {"tool_calls", IS_ARRAY}, {"function_call", IS_OBJECT},
    };
    unsigned keys = 0;
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    if (!take(c, '{'))
        return false;
    if (take(c, '}'))
        return true;
    do {
        span name;
        if (!take_name(c, &name))
            return false;
        size_t field = 0;
        while (field < sizeof fields / sizeof *fields && !is(name, fields[field].name))
            field++;
        bool full = false;
        if (field == sizeof fields / sizeof *fields) {
            if (!take_value(c, name))
                return false;
            continue;
        }
        if (seen(&keys, 1u << field))
            return false;
        if (fields[field].what == IS_ARRAY || fields[field].what == IS_OBJECT) {
            if (!take_container_or_null(c, fields[field].what == IS_ARRAY ? '[' : '{', &full))
                return false;
            content->tool_call |= full;
        } else {
            if (!take_text_or_null(c, name, &full))
                return false;
            *(fields[field].what == IS_TEXT ? &content->text : &content->reasoning) |= full;
        }
    } while (take(c, ','));
    return take(c, '}');
}

static bool take_index(cursor *c, int *index)
{
    skip_blanks(c);
    text begin = c->at;
    if (!take_digits(c) || c->at - begin > INDEX_DIGITS_MAX || (*begin == '0' && c->at - begin > 1))
        return false;
    int value = 0;
    for (text at = begin; at < c->at; at++)
        value = value * 10 + (*at - '0');
    if (value > 0xFFFF || (c->at < c->end && memchr(".eE", *c->at, 3) != NULL))
        return false;
    *index = value;
    return true;
}

static bool take_choice(cursor *c, read_facts *read)
{
    enum { INDEX = 1, DELTA = 2, TEXT = 4, FINISH = 8 };
    event_facts *facts = c->facts;
    content_facts content = {false, false, false};
    bool has_text = false, finished = false;
    unsigned keys = 0;
    int index = 0;
    if (!take(c, '{'))
        return false;
    if (!take(c, '}')) {
        do {
            span name;
            bool ok;
            if (!take_name(c, &name))
                return false;
            if (is(name, "delta"))
                ok = !seen(&keys, DELTA) && take_delta(c, &content);
            else if (is(name, "index"))
                ok = !seen(&keys, INDEX) && take_index(c, &index);
            else if (is(name, "text"))
                ok = !seen(&keys, TEXT) && take_text_or_null(c, name, &has_text);
            else if (is(name, "finish_reason"))
                ok = !seen(&keys, FINISH) && take_text_or_null(c, name, &finished);
            else
                ok = take_value(c, name);
            if (!ok)
                return false;
        } while (take(c, ','));
        if (!take(c, '}'))
            return false;
    }
    if (facts->choice_count++ == 0)
        facts->first_index = index;
    if (index >= facts->choice_max)
        facts->choice_max = index + 1;
    if (facts->kind == 0) {
        facts->kind = has_text || content.text ? KIND_TEXT : content.reasoning ? KIND_REASONING : content.tool_call ? KIND_TOOL_CALL : 0;
        facts->kind_index = index;
    }
    if (finished) {
        facts->finished = true;
        if (read->finished_count == FINISHED_MAX)
            return false;
        read->finished[read->finished_count++] = index;
    }
    return true;
}

static bool take_choices(cursor *c, read_facts *read)
{
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    if (!take(c, '['))
        return false;
    c->facts->has_choices = true;
    if (take(c, ']'))
        return true;
    do {
        if (!take_choice(c, read))
            return false;
    } while (take(c, ','));
    return take(c, ']');
}

static bool take_object(cursor *c, read_facts *read)
{
    enum { CHOICES = 1, USAGE = 2, TIMINGS = 4, METRICS = 8, PROGRESS = 16 };
    event_facts *facts = c->facts;
    unsigned keys = 0;
    if (!take(c, '{'))
        return false;
    if (!take(c, '}')) {
        do {
            span name;
            bool ok;
            if (!take_name(c, &name) || is(name, "error"))
                return false;
            if (is(name, "choices"))
                ok = !seen(&keys, CHOICES) && take_choices(c, read);
            else if (is(name, "usage"))
                ok = !seen(&keys, USAGE) && take_raw(c, name, &facts->usage);
            else if (is(name, "timings"))
                ok = !seen(&keys, TIMINGS) && take_raw(c, name, &facts->timings);
            else if (is(name, "metrics"))
                ok = !seen(&keys, METRICS) && take_raw(c, name, &facts->metrics);
            else if (is(name, "prompt_progress"))
                ok = !seen(&keys, PROGRESS) && take_raw(c, name, &facts->progress);
            else
                ok = take_value(c, name);
            if (!ok)
                return false;
        } while (take(c, ','));
        if (!take(c, '}'))
            return false;
    }
    skip_blanks(c);
    return c->at == c->end;
}

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

// The event's code as _classify_answer of the twin makes it; `stays` tells whether the client gets it.
static uint64_t classify(const event_facts *facts, bool drop_usage, bool drop_progress, bool *stays)
{
    uint64_t flags = FLAG_HOST_EVENT | (facts->usage.begin != NULL ? FLAG_USAGE : 0);
    bool progress = drop_progress && facts->progress.begin != NULL;
    *stays = true;
    if (facts->choice_count == 0) {
        if (facts->usage.begin == NULL) {
            *stays = !progress;
            return KIND_HEAD | flags << 8;
        }
        *stays = !facts->has_choices || !drop_usage;
        return KIND_USAGE | flags << 8;
    }
    if (facts->finished)
        flags |= FLAG_FINISH;
    if (facts->kind != 0)
        return facts->kind | flags << 8 | (uint64_t)facts->kind_index << 32;
    *stays = !progress || facts->finished;
    return (facts->finished ? KIND_FINISH : KIND_HEAD) | flags << 8 | (uint64_t)facts->first_index << 32;
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
    cursor c = {data, line_end, 0, &facts};
    if (!take_object(&c, read))
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
            read->lesson_text = facts.text_count == 1 ? facts.text_value : (span){NULL, NULL};
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

static int hex_value(unsigned char byte)
{
    return byte <= '9' ? byte - '0' : (byte | 0x20) - 'a' + 10;
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
    PyObject *tuple = PyTuple_New(read->finished_count);
    for (int i = 0; tuple != NULL && i < read->finished_count; i++) {
        PyObject *index = PyLong_FromLong(read->finished[i]);
        if (index == NULL || PyTuple_SetItem(tuple, i, index) != 0) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}

// (code, prefix, suffix with the chunk's end), prefix None where no template can be made; or None
static PyObject *lesson_tuple(const read_facts *read)
{
    if (read->lesson.begin == NULL)
        Py_RETURN_NONE;
    PyObject *code = PyLong_FromUnsignedLongLong(read->lesson_code);
    if (read->lesson_text.begin == NULL)
        return tuple_of((PyObject *[]){code, Py_NewRef(Py_None), Py_NewRef(Py_None)}, 3);
    Py_ssize_t after = read->lesson.end - read->lesson_text.end;
    PyObject *suffix = PyBytes_FromStringAndSize(NULL, after + 2);
    if (suffix == NULL) {
        Py_XDECREF(code);
        return NULL;
    }
    memcpy(PyBytes_AsString(suffix), read->lesson_text.end, after);
    memcpy(PyBytes_AsString(suffix) + after, "\r\n", 2);
    span prefix = {read->lesson.begin, read->lesson_text.begin};
    return tuple_of((PyObject *[]){code, bytes_or_none(prefix), suffix}, 3);
}

static PyObject *result(PyObject *data, const read_facts *read, bool raw, Py_ssize_t chunks_bytes)
{
    PyObject *parts[] = {
        outgoing(data, read, raw, chunks_bytes), finished_tuple(read), bytes_or_none(read->usage),
        bytes_or_none(read->timings), bytes_or_none(read->metrics), bytes_or_none(read->sentinel), lesson_tuple(read),
    };
    bool whole = true;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        whole = whole && parts[i] != NULL;
    if (!whole) {
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            Py_XDECREF(parts[i]);
        return NULL;
    }
    PyObject *values[] = {
        parts[0], Py_NewRef(read->events), PyLong_FromLong(read->content_count), PyLong_FromLong(read->choice_max),
        PyBool_FromLong(read->has_choices), parts[1], parts[2], parts[3], parts[4], parts[5], PyBool_FromLong(read->ended), parts[6],
    };
    return tuple_of(values, sizeof values / sizeof *values);
}

PyDoc_STRVAR(scan_doc,
    "scan(data, raw, drop_usage, drop_progress)\n--\n\n"
    "Scan one read that begins at a chunk's beginning. Returns None, or (out, events, content_count, choice_count,\n"
    "has_choices, finished, usage, timings, metrics, sentinel, ended, lesson).");

static PyObject *scan(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 4 || !PyBytes_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "scan(data: bytes, raw: bool, drop_usage: bool, drop_progress: bool)");
        return NULL;
    }
    int raw = PyObject_IsTrue(arguments[1]), drop_usage = PyObject_IsTrue(arguments[2]), drop_progress = PyObject_IsTrue(arguments[3]);
    if (raw < 0 || drop_usage < 0 || drop_progress < 0)
        return NULL;
    Py_ssize_t size = PyBytes_Size(arguments[0]);
    text data = (text)PyBytes_AsString(arguments[0]);
    read_facts read = {0};
    read.kept = PyMem_Malloc(size + 1);
    read.events = PyList_New(0);
    PyObject *found = NULL;
    if (read.kept == NULL) {
        PyErr_NoMemory();
    } else if (read.events != NULL) {
        text chunks_end = data;
        if (take_chunks(&read, data, data + size, drop_usage, drop_progress, &chunks_end))
            found = result(arguments[0], &read, raw, chunks_end - data);
        else if (!PyErr_Occurred())
            found = Py_NewRef(Py_None);
    }
    Py_XDECREF(read.events);
    PyMem_Free(read.kept);
    return found;
}

PyDoc_STRVAR(same_token_doc,
    "same_token(data, prefix, suffix)\n--\n\n"
    "Return the payload's size if a read is one chunk with one event that differs from the template in its text only, else 0.");

// The twin of plain_same_token() in router/hosts/native_scan.py, which takes chunks of up to 4,095 bytes as well.
static PyObject *same_token(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyBytes_Check(arguments[0]) || !PyBytes_Check(arguments[1]) || !PyBytes_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "same_token(data: bytes, prefix: bytes, suffix: bytes)");
        return NULL;
    }
    text at = (text)PyBytes_AsString(arguments[0]), end = at + PyBytes_Size(arguments[0]), line = at;
    Py_ssize_t prefix_bytes = PyBytes_Size(arguments[1]), suffix_bytes = PyBytes_Size(arguments[2]), size = 0;
    while (at < end && at - line < SAME_DIGITS_MAX && is_hex(*at))
        size = size * 16 + hex_value(*at++);
    if (prefix_bytes == 0 || at == line || *line == '0' || end - at < 2 + prefix_bytes + 1 + suffix_bytes || at[0] != '\r' || at[1] != '\n')
        return PyLong_FromLong(0);
    at += 2;
    text value = at + prefix_bytes, value_end = end - suffix_bytes;
    if (end - at - 2 != size || memcmp(at, PyBytes_AsString(arguments[1]), prefix_bytes) != 0
        || memcmp(value_end, PyBytes_AsString(arguments[2]), suffix_bytes) != 0
        || memchr(value, '"', value_end - value) != NULL)
        return PyLong_FromLong(0);
    return PyLong_FromSsize_t(size);
}

static PyMethodDef methods[] = {
    {"same_token", (PyCFunction)(void (*)(void))same_token, METH_FASTCALL, same_token_doc},
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, scan_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._scan", .m_doc = "Reads of a host's stream, each in one call.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModule_Create(&definition);
}
