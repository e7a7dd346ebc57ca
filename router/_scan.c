// One read of a host's stream → its events, in one call; and what else needs to understand JSON (split_body for
// bodies of requests, pack_usage, whole_report). The twins are router/hosts/scanner.py for Scan and
// plain_same_token() in router/hosts/native_scan.py; they are the fallback, and the judges of what is right.
//
// Scan(probe).feed(scanner, data): what StreamScanner.feed() does, with what was found written into the scanner. Whatever is unusual makes it return None, having changed nothing, and the read is scanned by the twin. So everything
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
#include "_slots.h"

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

// Bytes of a string that stand for themselves: ASCII but for control characters, the quotation mark and the backslash.
static unsigned char is_plain[256];

static void fill_tables(void)
{
    for (int byte = 0x20; byte < 0x80; byte++)
        is_plain[byte] = byte != '"' && byte != '\\';
}

// Skip the bytes that stand for themselves, eight at a time: a byte that does not sets its highest bit in `found`. (A borrow
// may set that of a byte behind it as well, so only the first counts.)
static inline text behind_plain(text at, text end)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t ones = UINT64_C(0x0101010101010101), highs = ones << 7;
    for (; end - at >= 8; at += 8) {
        uint64_t bytes;
        memcpy(&bytes, at, sizeof bytes);
        uint64_t quote = bytes ^ ones * '"', backslash = bytes ^ ones * '\\';
        uint64_t found = bytes | ((bytes - ones * 0x20) & ~bytes) | ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash);
        if ((found & highs) != 0)
            return at + __builtin_ctzll(found & highs) / 8;
    }
#endif
    while (at < end && is_plain[*at])
        at++;
    return at;
}

// Take a string; `inside` is what stands between its quotation marks.
static bool take_string(cursor *c, span *inside, bool *escaped)
{
    if (!take(c, '"'))
        return false;
    text at = c->at, end = c->end;
    inside->begin = at;
    *escaped = false;
    for (;;) {
        at = behind_plain(at, end);
        if (at >= end || *at == '"')
            break;
        if (*at == '\\') {
            int length = escape_length(at, end);
            if (length == 0)
                return false;
            *escaped = true;
            at += length;
        } else {
            int length = *at >= 0x80 ? utf8_length(at, end) : 0;
            if (length == 0)
                return false;
            at += length;
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
    const slot *from = self->slots + which;
    PyObject *value = from->kind == IS_OBJECT ? object_at(scanner, from) : NULL;
    return value != NULL ? Py_NewRef(value) : PyObject_GetAttr(scanner, from->name);
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
    if (read->finished_count == 0)
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
    for (int i = 0; self != NULL && i < SCANNER_SLOTS; i++)
        if ((self->slots[i].name = PyUnicode_InternFromString(slot_names[i])) == NULL || !find_slot(probe, self->slots + i))
            Py_CLEAR(self);
    if (self != NULL)
        self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return (PyObject *)self;
}

static void scan_dealloc(Scan *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < SCANNER_SLOTS; i++)
        Py_XDECREF(self->slots[i].name);
    Py_XDECREF(self->union_name);
    Py_XDECREF((PyObject *)self->known);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
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

// The judge is decode_body() in router/messages.py: of two bodies with the same rest it decodes the same but for messages.
static PyObject *split_body(PyObject *module, PyObject *body)
{
    (void)module;
    if (!PyBytes_Check(body)) {
        PyErr_SetString(PyExc_TypeError, "split_body(body: bytes)");
        return NULL;
    }
    text begin = (text)PyBytes_AsString(body);
    event_facts nothing = {0};
    cursor c = {begin, begin + PyBytes_Size(body), 0, &nothing};
    span messages = {NULL, NULL};
    if (!take(&c, '{'))
        Py_RETURN_NONE;
    do {
        span name;
        if (!take_name(&c, &name))
            Py_RETURN_NONE;
        skip_blanks(&c);
        bool is_messages = is(name, "messages");
        if (is_messages && (messages.begin != NULL || c.at >= c.end || *c.at != '['))
            Py_RETURN_NONE;
        text value = c.at;
        if (!take_value(&c, name))
            Py_RETURN_NONE;
        if (is_messages)
            messages = (span){value, c.at};
    } while (take(&c, ','));
    if (!take(&c, '}'))
        Py_RETURN_NONE;
    skip_blanks(&c);
    if (c.at != c.end || messages.begin == NULL)
        Py_RETURN_NONE;
    Py_ssize_t before = messages.begin - begin, after = c.end - messages.end;
    PyObject *rest = PyBytes_FromStringAndSize(NULL, before + after);
    if (rest == NULL)
        return NULL;
    memcpy(PyBytes_AsString(rest), begin, before);
    memcpy(PyBytes_AsString(rest) + before, messages.end, after);
    return tuple_of((PyObject *[]){rest, PyLong_FromSsize_t(before), PyLong_FromSsize_t(messages.end - begin)}, 3);
}

// ---------------------------------------------------------------- usage

enum { USAGE_NUMBERS = 5, COUNT_DIGITS_MAX = 10 };  // the layout is that of TOKENS in records.py

static bool take_count(cursor *c, uint32_t *count)
{
    skip_blanks(c);
    text begin = c->at;
    if (!take_digits(c) || c->at - begin > COUNT_DIGITS_MAX || (*begin == '0' && c->at - begin > 1))
        return false;
    uint64_t value = 0;
    for (text at = begin; at < c->at; at++)
        value = value * 10 + (*at - '0');
    if (value > UINT32_MAX || (c->at < c->end && memchr(".eE", *c->at, 3) != NULL))
        return false;
    *count = (uint32_t)value;
    return true;
}

// Take an object with a count in it, or null.
static bool take_details(cursor *c, const char *field, uint32_t *count)
{
    bool is_twice = false;
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
        if (!is(name, field)) {
            if (!take_value(c, name))
                return false;
        } else if (is_twice || !take_count(c, count)) {
            return false;
        } else {
            is_twice = true;
        }
    } while (take(c, ','));
    return take(c, '}');
}

static bool take_usage(cursor *c, uint32_t numbers[USAGE_NUMBERS])
{
    enum { IN = 1, OUT = 2, IN_DETAILS = 4, OUT_DETAILS = 8 };
    unsigned keys = 0;
    if (!take(c, '{'))
        return false;
    do {
        span name;
        bool ok;
        if (!take_name(c, &name))
            return false;
        if (is(name, "prompt_tokens"))
            ok = !seen(&keys, IN) && take_count(c, numbers);
        else if (is(name, "completion_tokens"))
            ok = !seen(&keys, OUT) && take_count(c, numbers + 1);
        else if (is(name, "prompt_tokens_details"))
            ok = !seen(&keys, IN_DETAILS) && take_details(c, "cached_tokens", numbers + 2);
        else if (is(name, "completion_tokens_details"))
            ok = !seen(&keys, OUT_DETAILS) && take_details(c, "reasoning_tokens", numbers + 3);
        else
            ok = take_value(c, name);
        if (!ok)
            return false;
    } while (take(c, ','));
    numbers[4] = numbers[1] != 0;
    bool ends = take(c, '}');
    skip_blanks(c);
    return ends && c->at == c->end && (keys & IN) != 0;
}

PyDoc_STRVAR(pack_usage_doc,
    "pack_usage(usage)\n--\n\nReturn the counts of tokens in usage of OpenAI's shape as a record has them, None for any other.");

// The twin is read_report() in router/telemetry/host_report.py, packed as Telemetry does.
static PyObject *pack_usage(PyObject *module, PyObject *usage)
{
    (void)module;
    if (!PyBytes_Check(usage)) {
        PyErr_SetString(PyExc_TypeError, "pack_usage(usage: bytes)");
        return NULL;
    }
    event_facts nothing = {0};
    cursor c = {(text)PyBytes_AsString(usage), NULL, 0, &nothing};
    c.end = c.at + PyBytes_Size(usage);
    uint32_t numbers[USAGE_NUMBERS] = {0};
    if (!take_usage(&c, numbers))
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)numbers, sizeof numbers);
}

// ---------------------------------------------------------------- whole answers

// What router/hosts/whole.py reads of a whole answer.
typedef struct {
    span usage, timings, metrics;
    long choice_count;
    bool calls_tools;
} whole_facts;

// Take an object with a finish_reason, as each choice is.
static bool take_finished(cursor *c, whole_facts *whole)
{
    bool is_twice = false;
    if (!take(c, '{'))
        return false;
    if (take(c, '}'))
        return true;
    do {
        span name, reason;
        bool escaped = false;
        if (!take_name(c, &name))
            return false;
        if (!is(name, "finish_reason") || next_is(c, 'n')) {
            if (!take_value(c, name))
                return false;
        } else if (is_twice || !take_string(c, &reason, &escaped) || escaped) {
            return false;
        } else {
            whole->calls_tools |= is(reason, "tool_calls");
        }
        is_twice |= is(name, "finish_reason");
    } while (take(c, ','));
    return take(c, '}');
}

static bool take_all_finished(cursor *c, whole_facts *whole)
{
    if (!take(c, '['))
        return false;
    if (take(c, ']'))
        return true;
    do {
        whole->choice_count++;
        if (!take_finished(c, whole))
            return false;
    } while (take(c, ','));
    return take(c, ']');
}

// A value as it stands, null included.
static bool take_as_it_stands(cursor *c, span name, span *value)
{
    skip_blanks(c);
    value->begin = c->at;
    bool is_taken = take_value(c, name);
    value->end = c->at;
    return is_taken;
}

static bool take_whole(cursor *c, whole_facts *whole)
{
    enum { CHOICES = 1, USAGE = 2, TIMINGS = 4, METRICS = 8 };
    unsigned keys = 0;
    if (!take(c, '{'))
        return false;
    do {
        span name;
        bool ok;
        if (!take_name(c, &name))
            return false;
        if (is(name, "choices"))
            ok = !seen(&keys, CHOICES) && take_all_finished(c, whole);
        else if (is(name, "usage"))
            ok = !seen(&keys, USAGE) && take_as_it_stands(c, name, &whole->usage);
        else if (is(name, "timings"))
            ok = !seen(&keys, TIMINGS) && take_as_it_stands(c, name, &whole->timings);
        else if (is(name, "metrics"))
            ok = !seen(&keys, METRICS) && take_as_it_stands(c, name, &whole->metrics);
        else
            ok = take_value(c, name);
        if (!ok)
            return false;
    } while (take(c, ','));
    bool ends = take(c, '}');
    skip_blanks(c);
    return ends && c->at == c->end;
}

PyDoc_STRVAR(whole_report_doc,
    "whole_report(body)\n--\n\n"
    "Return usage, timings and metrics of a whole answer as they stand (None: absent), the number of its choices, and whether\n"
    "one ended in calls of tools; None for an answer of an unusual shape.");

// The twin is plain_report_of() in router/hosts/whole.py.
static PyObject *whole_report(PyObject *module, PyObject *body)
{
    (void)module;
    if (!PyBytes_Check(body)) {
        PyErr_SetString(PyExc_TypeError, "whole_report(body: bytes)");
        return NULL;
    }
    event_facts nothing = {0};
    whole_facts whole = {0};
    cursor c = {(text)PyBytes_AsString(body), NULL, 0, &nothing};
    c.end = c.at + PyBytes_Size(body);
    if (!take_whole(&c, &whole))
        Py_RETURN_NONE;
    PyObject *values[] = {
        bytes_or_none(whole.usage), bytes_or_none(whole.timings), bytes_or_none(whole.metrics),
        PyLong_FromLong(whole.choice_count), PyBool_FromLong(whole.calls_tools),
    };
    return tuple_of(values, 5);
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
    fill_tables();
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&scan_spec);
    if (module == NULL || type == NULL || PyModule_AddObjectRef(module, "Scan", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
