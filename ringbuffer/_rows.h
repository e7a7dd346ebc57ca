/* Tables for Python: rows that are read whole or not at all, and signed counters. */
#ifndef RINGBUFFER_ROWS_H
#define RINGBUFFER_ROWS_H

#include "_arguments.h"

/* ------------------------------------------------------------------ rows */

static PyObject *row_writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    return (PyObject *)rows_alloc(type, args, 1);
}

static PyObject *row_reader_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    return (PyObject *)rows_alloc(type, args, 0);
}

static word_t *row_at(const Core *self, PyObject *arg) {
    uint64_t row;
    if (!as_index(arg, self->ring.slot_count, &row)) {
        return NULL;
    }
    return self->ring.slots + row * self->ring.slot_words;
}

static PyObject *row_write(Core *self, PyObject *const *args, Py_ssize_t count) {
    Py_buffer record;
    if (!check_count(count, 2)) {
        return NULL;
    }
    word_t *row = row_at(self, args[0]);
    if (row == NULL || !as_payload(&self->ring, args[1], &record)) {
        return NULL;
    }
    uint64_t word = open_row(row);
    store_payload(row, self->ring.slot_words, record.buf, (size_t)record.len);
    close_row(row, word, ROW_IN_USE);
    PyBuffer_Release(&record);
    Py_RETURN_NONE;
}

static PyObject *row_clear(Core *self, PyObject *arg) {
    word_t *row = row_at(self, arg);
    if (row == NULL) {
        return NULL;
    }
    close_row(row, open_row(row), 0);
    Py_RETURN_NONE;
}

/* None = the row is empty, b"" = it is being written just now. */
static PyObject *row_read(Core *self, PyObject *arg) {
    const word_t *row = row_at(self, arg);
    if (row == NULL) {
        return NULL;
    }
    PyObject *payload = new_payload(&self->ring);
    if (payload == NULL) {
        return NULL;
    }
    row_state_t state = copy_row(row, self->ring.slot_words, PyBytes_AsString(payload));
    if (state == ROW_COPIED) {
        return payload;
    }
    Py_DECREF(payload);
    if (state == ROW_EMPTY) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize("", 0);
}

static PyMethodDef row_writer_methods[] = {
    FAST("write", row_write, "Write the payload of a row, zero padded."),
    ONE("clear", row_clear, "Mark a row as empty."),
    END,
};

static PyMethodDef row_reader_methods[] = {
    ONE("read", row_read, "Return a row's payload; None: empty; b'': being written."),
    END,
};

TYPE(row_writer_spec, "RowWriter", row_writer_new, row_writer_methods, no_members);
TYPE(row_reader_spec, "RowReader", row_reader_new, row_reader_methods, no_members);

/* -------------------------------------------------------------- counters */

/* (buffer, first, count) */
static PyObject *counter_words_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *buffer;
    unsigned long long first, count;
    if (!PyArg_ParseTuple(args, "OKK", &buffer, &first, &count)) {
        return NULL;
    }
    Core *self = core_alloc(type, buffer, 1);
    if (self == NULL) {
        return NULL;
    }
    if (!in_buffer(self, first, count, 1)) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.slots = self->words + first;
    self->ring.slot_count = count;
    return (PyObject *)self;
}

static word_t *counter_at(const Core *self, PyObject *arg) {
    uint64_t id;
    if (!as_index(arg, self->ring.slot_count, &id)) {
        return NULL;
    }
    return self->ring.slots + id;
}

/* The value of a counter is signed; its only writer is this process, so load and store need not be one step. */
static int as_value(PyObject *object, int64_t *value) {
    *value = PyLong_AsLongLong(object);
    if (*value != -1 || !PyErr_Occurred()) {
        return 1;
    }
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
        return 0;
    }
    PyErr_Clear();
    PyObject *integer = PyNumber_Index(object);
    if (integer != NULL) {
        PyErr_Format(PyExc_OverflowError, "%S is not in -9223372036854775808 to 9223372036854775807", integer);
        Py_DECREF(integer);
    }
    return 0;
}

static PyObject *counter_add(Core *self, PyObject *const *args, Py_ssize_t count) {
    int64_t value = 1;
    if (count != 1 && !check_count(count, 2)) {
        return NULL;
    }
    word_t *word = counter_at(self, args[0]);
    if (word == NULL || (count == 2 && !as_value(args[1], &value))) {
        return NULL;
    }
    store_relaxed(word, load_relaxed(word) + (uint64_t)value);
    Py_RETURN_NONE;
}

static PyObject *counter_change(Core *self, PyObject *const *args, Py_ssize_t count, int only_up) {
    int64_t value;
    if (!check_count(count, 2)) {
        return NULL;
    }
    word_t *word = counter_at(self, args[0]);
    if (word == NULL || !as_value(args[1], &value)) {
        return NULL;
    }
    if (!only_up || value > (int64_t)load_relaxed(word)) {
        store_relaxed(word, (uint64_t)value);
    }
    Py_RETURN_NONE;
}

static PyObject *counter_set(Core *self, PyObject *const *args, Py_ssize_t count) {
    return counter_change(self, args, count, 0);
}
static PyObject *counter_max(Core *self, PyObject *const *args, Py_ssize_t count) {
    return counter_change(self, args, count, 1);
}
static PyObject *counter_get(Core *self, PyObject *arg) {
    const word_t *word = counter_at(self, arg);
    return word == NULL ? NULL : PyLong_FromLongLong((int64_t)load_relaxed(word));
}

static PyMethodDef counter_words_methods[] = {
    FAST("add", counter_add, "Add n, 1 unless given, to a counter."),
    FAST("set", counter_set, "Set a counter."),
    FAST("max", counter_max, "Raise a counter to a value."),
    ONE("get", counter_get, "Return a counter."),
    END,
};

TYPE(counter_words_spec, "CounterWords", counter_words_new, counter_words_methods, no_members);

#endif
