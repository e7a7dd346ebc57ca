/* What Python gives to a method, checked: integers as words and indices, buffers as payloads, batches and room. */
#ifndef RINGBUFFER_ARGUMENTS_H
#define RINGBUFFER_ARGUMENTS_H

#include "_core.h"

/* Not inlined, so that what is called for every word of a record stays small. */
#define RARE __attribute__((noinline, cold))

/* Takes what stands for an integer, such as one of numpy's, or says why there is no word in it. */
RARE static int as_word_slowly(PyObject *object, uint64_t *value) {
    PyErr_Clear();
    PyObject *integer = PyNumber_Index(object);
    if (integer == NULL) {
        return 0;
    }
    *value = PyLong_AsUnsignedLongLong(integer);
    int failed = *value == UINT64_MAX && PyErr_Occurred() != NULL;
    if (failed) {
        PyErr_Clear();
        PyErr_Format(PyExc_OverflowError, "%S is not in 0 to 18446744073709551615", integer);
    }
    Py_DECREF(integer);
    return !failed;
}

/* Nearly all words are below 2**63, for which the signed conversion takes a quarter of the other's time. */
static int as_word(PyObject *object, uint64_t *value) {
    if (PyLong_Check(object)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
        if (number >= 0 && overflow == 0) {
            *value = (uint64_t)number;
            return 1;
        }
    }
    *value = PyLong_AsUnsignedLongLong(object);
    return *value != UINT64_MAX || !PyErr_Occurred() || as_word_slowly(object, value);
}

RARE static int as_index_slowly(PyObject *object, uint64_t count, uint64_t *index) {
    PyErr_Clear();
    PyObject *integer = PyNumber_Index(object);
    if (integer == NULL) {
        return 0;
    }
    *index = PyLong_AsUnsignedLongLong(integer);
    PyErr_Clear(); /* what does not fit into a word has become 2^64 - 1, which is below no count */
    int is_below = *index < count;
    if (!is_below) {
        PyErr_Format(PyExc_IndexError, "index %S is not in 0 to %lld", integer, (long long)count - 1);
    }
    Py_DECREF(integer);
    return is_below;
}

/* Fills `index` with an integer below `count`. */
static int as_index(PyObject *object, uint64_t count, uint64_t *index) {
    *index = PyLong_AsUnsignedLongLong(object);
    return *index < count || as_index_slowly(object, count, index);
}

static int check_count(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) {
        return 1;
    }
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
    return 0;
}

/* The slots must have the size of a record of seven words. */
static int check_record_size(const ring_t *ring) {
    if (ring->slot_words == WORDS_PER_RECORD + 1) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "records of seven words need slots of 64 bytes, these have %llu",
                 (unsigned long long)(ring->slot_words * sizeof(word_t)));
    return 0;
}

static int as_record(const ring_t *ring, PyObject *const *args, uint64_t values[WORDS_PER_RECORD]) {
    if (!check_record_size(ring)) {
        return 0;
    }
    for (int i = 0; i < WORDS_PER_RECORD; i++) {
        if (!as_word(args[i], &values[i])) {
            return 0;
        }
    }
    return 1;
}

/* Fills `record` with a payload; the caller releases it. */
static int as_payload(const ring_t *ring, PyObject *object, Py_buffer *record) {
    if (PyObject_GetBuffer(object, record, PyBUF_SIMPLE) < 0) {
        return 0;
    }
    size_t room = payload_bytes(ring);
    if ((size_t)record->len <= room) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "payload of %zd bytes, at most %zu fit", record->len, room);
    PyBuffer_Release(record);
    return 0;
}

/* Fills `batch` with whole payloads and returns how many, 1 to slot_count; 0 is an error. The caller releases it. */
static uint64_t as_batch(const ring_t *ring, PyObject *object, Py_buffer *batch) {
    if (PyObject_GetBuffer(object, batch, PyBUF_SIMPLE) < 0) {
        return 0;
    }
    size_t size = payload_bytes(ring);
    uint64_t count = (size_t)batch->len / size;
    if ((size_t)batch->len % size == 0 && count >= 1 && count <= ring->slot_count) {
        return count;
    }
    PyErr_Format(PyExc_ValueError, "a batch of %zd bytes, must be 1 to %llu payloads of %zu bytes", batch->len,
                 (unsigned long long)ring->slot_count, size);
    PyBuffer_Release(batch);
    return 0;
}

/* Fills `room` with a writable buffer and returns how many slots it holds; 0 is an error. The caller releases it. */
static uint64_t as_room(const ring_t *ring, PyObject *object, Py_buffer *room) {
    if (PyObject_GetBuffer(object, room, PyBUF_WRITABLE) < 0) {
        return 0;
    }
    size_t size = (size_t)ring->slot_words * sizeof(uint64_t);
    uint64_t count = (size_t)room->len / size;
    if (count > 0) {
        return count;
    }
    PyErr_Format(PyExc_ValueError, "a buffer of %zd bytes, one record has %zu", room->len, size);
    PyBuffer_Release(room);
    return 0;
}

static PyObject *new_payload(const ring_t *ring) {
    return PyBytes_FromStringAndSize(NULL, (Py_ssize_t)payload_bytes(ring));
}

#endif
