// What tells one more token like the last. The judge is plain_same_token() in router/hosts/native_scan.py, which takes chunks
// of up to 4,095 bytes as well.

#ifndef RINGROUTER_TOKEN_H
#define RINGROUTER_TOKEN_H

#include "_native.h"

enum { TOKEN_DIGITS_MAX = 3 };

// The payload's size if a read is one chunk with one event that differs from the template (two bytes objects) in its text
// only, else 0.
static inline Py_ssize_t token_size(text at, Py_ssize_t bytes, PyObject *prefix, PyObject *suffix)
{
    text line = at, end = at + bytes;
    Py_ssize_t size = 0, prefix_bytes = PyBytes_Size(prefix), suffix_bytes = PyBytes_Size(suffix);
    for (; at < end && at - line < TOKEN_DIGITS_MAX && is_hex(*at); at++)
        size = size * 16 + hex_value(*at);
    if (prefix_bytes == 0 || at == line || *line == '0' || end - at < 2 + prefix_bytes + 1 + suffix_bytes || at[0] != '\r' || at[1] != '\n')
        return 0;
    at += 2;
    text value = at + prefix_bytes, value_end = end - suffix_bytes;
    bool same = end - at - 2 == size && memcmp(at, PyBytes_AsString(prefix), prefix_bytes) == 0
        && memcmp(value_end, PyBytes_AsString(suffix), suffix_bytes) == 0
        && memchr(value, '"', value_end - value) == NULL;
    return same ? size : 0;
}

#endif
