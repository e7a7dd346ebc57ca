// JSON, taken from its beginning to its end: checked against RFC 8259, UTF-8 included, and stricter than that where decoders
// differ. What these functions refuse is for Python to decide about, so they may refuse whatever is unusual.

#ifndef RINGROUTER_JSON_CURSOR_H
#define RINGROUTER_JSON_CURSOR_H

#include "_native.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { DEPTH_MAX = 64, WHOLE_DIGITS_MAX = 10 };

typedef struct {
    text at, end;
    int depth;
    int text_count;   // values met so far that a template could be made around, wherever they stand
    span text_value;  // the last of them
} cursor;

static inline void skip_blanks(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t'))
        c->at++;
}

static inline bool take(cursor *c, char byte)
{
    skip_blanks(c);
    if (c->at >= c->end || *c->at != (unsigned char)byte)
        return false;
    c->at++;
    return true;
}

static inline bool next_is(cursor *c, char byte)
{
    skip_blanks(c);
    return c->at < c->end && *c->at == (unsigned char)byte;
}

static inline bool take_word(cursor *c, const char *word, size_t length)
{
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
        return false;
    c->at += length;
    return true;
}

static inline bool is_continuation(text at, text end)
{
    return at < end && (*at & 0xC0) == 0x80;
}

// Length of a well-formed sequence of two to four bytes (Unicode 15, table 3-7), 0 if it is none.
static inline int utf8_length(text at, text end)
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

// Length of an escape sequence, 0 if it is none or half a surrogate pair, about which decoders differ.
static inline int escape_length(text at, text end)
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
static const unsigned char is_plain[256] = {[0x20 ... '"' - 1] = 1, ['"' + 1 ... '\\' - 1] = 1, ['\\' + 1 ... 0x7F] = 1};

// Skip the bytes that stand for themselves: sixteen at a time where the processor's family can (a byte of 0x80 or more is
// below zero there, and so below the blank), then eight at a time: a byte that does not sets its highest bit in `found`. (A
// borrow may set that of a byte behind it as well, so only the first counts.)
static inline text behind_plain(text at, text end)
{
#ifdef __SSE2__
    const __m128i quotes = _mm_set1_epi8('"'), backslashes = _mm_set1_epi8('\\'), blanks = _mm_set1_epi8(' ');
    for (; end - at >= 16; at += 16) {
        __m128i given = _mm_loadu_si128((const __m128i *)at);
        __m128i escapes = _mm_or_si128(_mm_cmpeq_epi8(given, quotes), _mm_cmpeq_epi8(given, backslashes));
        int others = _mm_movemask_epi8(_mm_or_si128(escapes, _mm_cmplt_epi8(given, blanks)));
        if (others != 0)
            return at + __builtin_ctz((unsigned)others);
    }
#endif
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
static inline bool take_string(cursor *c, span *inside, bool *escaped)
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

static inline bool take_digits(cursor *c)
{
    text begin = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9')
        c->at++;
    return c->at > begin;
}

static inline bool take_number(cursor *c)
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

static inline bool is(span name, const char *word)
{
    size_t length = strlen(word);
    return (size_t)(name.end - name.begin) == length && memcmp(name.begin, word, length) == 0;
}

// Take `"name":` of an object's member.
static inline bool take_name(cursor *c, span *name)
{
    bool escaped;
    return take_string(c, name, &escaped) && !escaped && take(c, ':');
}

// The members of an object, one after the other:
//
//     members all;
//     for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all))
//         …take the value of all.name, or return false…
//     return all.is_whole;
typedef struct {
    span name;
    bool is_whole;
} members;

// Take what stands before the value of the first member; false where there is none, which is well only if `is_whole`.
static inline bool first_member(cursor *c, members *all)
{
    all->is_whole = false;
    if (!take(c, '{'))
        return false;
    if (!next_is(c, '}'))
        return take_name(c, &all->name);
    c->at++;
    all->is_whole = true;
    return false;
}

// Likewise of the next one.
static inline bool next_member(cursor *c, members *all)
{
    if (take(c, ','))
        return take_name(c, &all->name);
    all->is_whole = take(c, '}');
    return false;
}

// Remember a text that a template could be made around: what the expression _TEXT_VALUE of scanner.py finds.
static inline void note_text(cursor *c, span name, span value)
{
    if (value.begin == value.end || !(is(name, "content") || is(name, "text") || is(name, "reasoning") || is(name, "reasoning_content")))
        return;
    c->text_count++;
    c->text_value = value;
}

static inline bool take_value(cursor *c, span name);

// Take the members of an object, or the elements of an array, about which nothing needs to be known.
static inline bool take_container(cursor *c, bool is_object)
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

static inline bool take_value(cursor *c, span name)
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

// ---------------------------------------------------------------- values of which something is known

// A whole number without a sign, at most `most`.
static inline bool take_whole_number(cursor *c, uint32_t most, uint32_t *number)
{
    skip_blanks(c);
    text begin = c->at;
    if (!take_digits(c) || c->at - begin > WHOLE_DIGITS_MAX || (*begin == '0' && c->at - begin > 1))
        return false;
    uint64_t value = 0;
    for (text at = begin; at < c->at; at++)
        value = value * 10 + (*at - '0');
    if (value > most || (c->at < c->end && memchr(".eE", *c->at, 3) != NULL))
        return false;
    *number = (uint32_t)value;
    return true;
}

// A value kept as it stands; null is as if it were not there.
static inline bool take_raw(cursor *c, span name, span *raw)
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
static inline bool take_text_or_null(cursor *c, span name, bool *full)
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
static inline bool take_container_or_null(cursor *c, char open, bool *full)
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

// Whether a key stands there twice; `keys` are the bits of those that were met.
static inline bool seen(unsigned *keys, unsigned key)
{
    bool twice = (*keys & key) != 0;
    *keys |= key;
    return twice;
}

#endif
