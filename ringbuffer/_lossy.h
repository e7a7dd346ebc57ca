/* A broadcast ring for Python: its writer, and readers that it never waits for. */
#ifndef RINGBUFFER_LOSSY_H
#define RINGBUFFER_LOSSY_H

#include "_spin.h"

/* ---------------------------------------------------------------- writer */

static PyObject *lossy_writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    Core *self = ring_alloc(type, args, 1);
    if (self != NULL) {
        self->ring.next = load_relaxed(self->ring.published);
    }
    return (PyObject *)self;
}

static PyObject *lossy_publish(Core *self, PyObject *const *args, Py_ssize_t count) {
    uint64_t values[WORDS_PER_RECORD];
    if (!check_count(count, WORDS_PER_RECORD) || !as_record(&self->ring, args, values)) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(publish_words(&self->ring, values));
}

static PyObject *lossy_publish_record(Core *self, PyObject *payload) {
    Py_buffer record;
    if (!as_payload(&self->ring, payload, &record)) {
        return NULL;
    }
    uint64_t sequence = publish_bytes(&self->ring, record.buf, (size_t)record.len);
    PyBuffer_Release(&record);
    return PyLong_FromUnsignedLongLong(sequence);
}

static PyObject *lossy_publish_batch(Core *self, PyObject *records) {
    Py_buffer batch;
    uint64_t count = as_batch(&self->ring, records, &batch);
    if (count == 0) {
        return NULL;
    }
    uint64_t first = publish_batch(&self->ring, batch.buf, count);
    PyBuffer_Release(&batch);
    return PyLong_FromUnsignedLongLong(first);
}

static uint64_t publish_natively(void *ring, const uint64_t words[WORDS_PER_RECORD]) {
    return publish_words(ring, words);
}

static void release_writer(PyObject *capsule) {
    Py_DECREF(PyCapsule_GetContext(capsule));
}

static PyObject *lossy_native_publish(Core *self, PyObject *Py_UNUSED(arg)) {
    if (!check_record_size(&self->ring)) {
        return NULL;
    }
    self->native.publish = publish_natively;
    self->native.ring = &self->ring;
    PyObject *capsule = PyCapsule_New(&self->native, RINGBUFFER_PUBLISH, NULL);
    if (capsule == NULL || PyCapsule_SetContext(capsule, self) != 0 || PyCapsule_SetDestructor(capsule, release_writer) != 0) {
        Py_XDECREF(capsule);
        return NULL;
    }
    Py_INCREF((PyObject *)self);
    return capsule;
}

static PyMethodDef lossy_writer_methods[] = {
    FAST("publish", lossy_publish, "Publish seven words; return the sequence."),
    ONE("publish_record", lossy_publish_record, "Publish a payload, zero padded; return the sequence."),
    ONE("publish_batch", lossy_publish_batch, "Publish whole payloads at once; return the first sequence."),
    NONE("native_publish", lossy_native_publish, "Return a capsule by which native code publishes seven words."),
    END,
};

TYPE(lossy_writer_spec, "LossyWriter", lossy_writer_new, lossy_writer_methods, writer_members);

/* ---------------------------------------------------------------- reader */

/* … + (position) */
static PyObject *lossy_reader_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    if (PyTuple_Size(args) != 6) {
        PyErr_SetString(PyExc_TypeError, "expected buffer, slots, slot_count, slot_words, published, position");
        return NULL;
    }
    Core *self = ring_alloc(type, args, 0);
    if (self == NULL) {
        return NULL;
    }
    self->ring.position = PyLong_AsUnsignedLongLong(PyTuple_GetItem(args, 5));
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int append_record(PyObject *records, uint64_t sequence, PyObject *payload) {
    PyObject *record = Py_BuildValue("(KO)", (unsigned long long)sequence, payload);
    if (record == NULL) {
        return -1;
    }
    int result = PyList_Append(records, record);
    Py_DECREF(record);
    return result;
}

/* Reads the record at `position` into the list, or counts it as lost. 1 = read, 0 = lost, -1 = error. */
static int poll_one(ring_t *ring, PyObject *records) {
    PyObject *payload = new_payload(ring);
    if (payload == NULL) {
        return -1;
    }
    int result = copy_record(ring, ring->position, PyBytes_AsString(payload));
    if (result == 0) {
        ring->lost++;
    } else if (append_record(records, ring->position, payload) < 0) {
        result = -1;
    }
    Py_DECREF(payload);
    return result;
}

static PyObject *lossy_poll(Core *self, PyObject *arg) {
    uint64_t limit;
    if (!as_word(arg, &limit)) {
        return NULL;
    }
    PyObject *records = PyList_New(0);
    if (records == NULL) {
        return NULL;
    }
    ring_t *ring = &self->ring;
    uint64_t published = load_acquire(ring->published); /* SYNC A */
    for (uint64_t turn = 0; turn < limit && ring->position < published; turn++) {
        skip_lapped(ring, published);
        int result = poll_one(ring, records);
        if (result < 0) {
            Py_DECREF(records);
            return NULL;
        }
        if (result == 0) {
            published = load_acquire(ring->published); /* SYNC A: see at once how far ahead the writer is by now */
        }
        ring->position++;
    }
    return records;
}

static PyObject *lossy_poll_into(Core *self, PyObject *const *args, Py_ssize_t arg_count) {
    Py_buffer room;
    uint64_t limit = as_poll(&self->ring, args, arg_count, &room);
    if (limit == 0) {
        return NULL;
    }
    uint64_t count = poll_lossy_into(&self->ring, room.buf, limit);
    PyBuffer_Release(&room);
    return PyLong_FromUnsignedLongLong(count);
}

static PyMethodDef lossy_reader_methods[] = {
    ONE("poll", lossy_poll, "Return up to n (sequence, payload) and count what was overwritten."),
    FAST("poll_into", lossy_poll_into, "Copy records, each behind its sequence, into a buffer; return how many."),
    ONE("spin", reader_spin, "Spin up to n ns until there are records; return how many."),
    END,
};

TYPE(lossy_reader_spec, "LossyReader", lossy_reader_new, lossy_reader_methods, reader_members);

#endif
