/* A gating ring for Python: its producer, and consumers that it waits for. */
#ifndef RINGBUFFER_GATING_H
#define RINGBUFFER_GATING_H

#include "_spin.h"

/* ---------------------------------------------------------------- writer */

/* … + (full_count, consumers, consumers_max, consumer_words, released_word) */
static PyObject *gating_writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *buffer;
    unsigned long long unused, full_count, consumers, consumers_max, consumer_words, released_word;
    if (!PyArg_ParseTuple(args, "OKKKKKKKKK", &buffer, &unused, &unused, &unused, &unused, &full_count, &consumers,
                          &consumers_max, &consumer_words, &released_word)) {
        return NULL;
    }
    Core *self = ring_alloc(type, args, 1);
    if (self == NULL) {
        return NULL;
    }
    if (released_word >= consumer_words) {
        PyErr_SetString(PyExc_ValueError, "the released word lies outside its consumer row");
        Py_DECREF(self);
        return NULL;
    }
    if (!in_buffer(self, full_count, 1, 1) || !in_buffer(self, consumers, consumers_max, consumer_words)) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.full_count = self->words + full_count;
    self->ring.consumers = self->words + consumers;
    self->ring.consumers_max = consumers_max;
    self->ring.consumer_words = consumer_words;
    self->ring.released_word = released_word;
    self->ring.next = load_relaxed(self->ring.published);
    self->ring.cached_min = self->ring.next;
    return (PyObject *)self;
}

/* Claimed records are published by publish_upto, before anything else is: what lies behind them cannot overtake them. */
static int check_nothing_claimed(const ring_t *ring) {
    if (load_relaxed(ring->published) == ring->next) {
        return 1;
    }
    PyErr_SetString(PyExc_ValueError, "claimed records have not been published yet");
    return 0;
}

static PyObject *gating_try_publish(Core *self, PyObject *const *args, Py_ssize_t count) {
    uint64_t values[WORDS_PER_RECORD];
    if (!check_count(count, WORDS_PER_RECORD) || !as_record(&self->ring, args, values) ||
        !check_nothing_claimed(&self->ring)) {
        return NULL;
    }
    if (!has_room(&self->ring, 1)) {
        return PyLong_FromLong(-1);
    }
    return PyLong_FromUnsignedLongLong(publish_words(&self->ring, values));
}

static PyObject *gating_try_publish_record(Core *self, PyObject *payload) {
    Py_buffer record;
    if (!check_nothing_claimed(&self->ring) || !as_payload(&self->ring, payload, &record)) {
        return NULL;
    }
    PyObject *result = has_room(&self->ring, 1) ? PyLong_FromUnsignedLongLong(publish_bytes(
                                                      &self->ring, record.buf, (size_t)record.len))
                                                : PyLong_FromLong(-1);
    PyBuffer_Release(&record);
    return result;
}

static PyObject *gating_try_publish_batch(Core *self, PyObject *records) {
    Py_buffer batch;
    if (!check_nothing_claimed(&self->ring)) {
        return NULL;
    }
    uint64_t count = as_batch(&self->ring, records, &batch);
    if (count == 0) {
        return NULL;
    }
    PyObject *result = has_room(&self->ring, count)
                           ? PyLong_FromUnsignedLongLong(publish_batch(&self->ring, batch.buf, count))
                           : PyLong_FromLong(-1);
    PyBuffer_Release(&batch);
    return result;
}

static PyObject *gating_try_claim(Core *self, PyObject *arg) {
    uint64_t count;
    if (!as_word(arg, &count)) {
        return NULL;
    }
    ring_t *ring = &self->ring;
    if (count == 0 || count > ring->slot_count) {
        PyErr_Format(PyExc_ValueError, "cannot claim %llu of %llu slots", (unsigned long long)count,
                     (unsigned long long)ring->slot_count);
        return NULL;
    }
    if (!has_room(ring, count)) {
        return PyLong_FromLong(-1);
    }
    uint64_t first = ring->next;
    ring->next += count;
    return PyLong_FromUnsignedLongLong(first);
}

static int check_claimed(const ring_t *ring, uint64_t sequence) {
    if (sequence >= load_relaxed(ring->published) && sequence < ring->next) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "sequence %llu is not claimed", (unsigned long long)sequence);
    return 0;
}

static PyObject *gating_store(Core *self, PyObject *const *args, Py_ssize_t count) {
    uint64_t sequence, values[WORDS_PER_RECORD];
    if (!check_count(count, WORDS_PER_RECORD + 1) || !as_word(args[0], &sequence) ||
        !as_record(&self->ring, args + 1, values) || !check_claimed(&self->ring, sequence)) {
        return NULL;
    }
    word_t *slot = slot_at(&self->ring, sequence);
    open_slot(slot);
    store_words(slot, values);
    close_slot(slot, sequence);
    Py_RETURN_NONE;
}

static PyObject *gating_publish_upto(Core *self, PyObject *arg) {
    uint64_t end;
    if (!as_word(arg, &end)) {
        return NULL;
    }
    const ring_t *ring = &self->ring;
    uint64_t published = load_relaxed(ring->published);
    if (end < published || end > ring->next) {
        PyErr_Format(PyExc_ValueError, "cannot publish up to %llu: %llu are published, %llu claimed",
                     (unsigned long long)end, (unsigned long long)published, (unsigned long long)ring->next);
        return NULL;
    }
    for (uint64_t sequence = published; sequence < end; sequence++) {
        if (load_relaxed(slot_at(ring, sequence)) != sequence + 1) {
            PyErr_Format(PyExc_ValueError, "sequence %llu was claimed but never stored", (unsigned long long)sequence);
            return NULL;
        }
    }
    publish_upto(ring, end); /* SYNC A */
    Py_RETURN_NONE;
}

static PyMethodDef gating_writer_methods[] = {
    FAST("try_publish", gating_try_publish, "Publish seven words; return the sequence, -1 when full."),
    ONE("try_publish_record", gating_try_publish_record, "Publish a payload; return the sequence, -1 when full."),
    ONE("try_publish_batch", gating_try_publish_batch, "Publish whole payloads; return the first sequence, -1: full."),
    ONE("try_claim", gating_try_claim, "Claim n slots; return the first sequence, -1 when full."),
    FAST("store", gating_store, "Store seven words into a claimed slot."),
    ONE("publish_upto", gating_publish_upto, "Publish the claimed and stored records below a sequence."),
    END,
};

TYPE(gating_writer_spec, "GatingWriter", gating_writer_new, gating_writer_methods, writer_members);

/* ---------------------------------------------------------------- reader */

/* … + (released, heartbeat, handed) : words of this consumer's own row */
static PyObject *gating_reader_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *buffer;
    unsigned long long unused, released, heartbeat, handed;
    if (!PyArg_ParseTuple(args, "OKKKKKKK", &buffer, &unused, &unused, &unused, &unused, &released, &heartbeat,
                          &handed)) {
        return NULL;
    }
    Core *self = ring_alloc(type, args, 1);
    if (self == NULL) {
        return NULL;
    }
    if (!in_buffer(self, released, 1, 1) || !in_buffer(self, heartbeat, 1, 1) || !in_buffer(self, handed, 1, 1)) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.released = self->words + released;
    self->ring.heartbeat = self->words + heartbeat;
    self->ring.handed = self->words + handed;
    self->ring.position = load_relaxed(self->ring.released);
    self->ring.handed_end = self->ring.position;
    self->ring.is_idle = 1;
    return (PyObject *)self;
}

/* Notes what a consumer has in hand. One that had nothing to do begins now, and its heartbeat says so: only then can
 * others tell that it holds records for too long. */
static void note_handed(ring_t *ring, uint64_t end) {
    if (end == ring->position) {
        ring->is_idle = 1;
        return;
    }
    if (end <= ring->handed_end) {
        return;
    }
    if (ring->is_idle) {
        ring->is_idle = 0;
        store_relaxed(ring->heartbeat, monotonic_ns());
    }
    ring->handed_end = end;
    store_release(ring->handed, end); /* SYNC C: the time stands before what it is of */
}

static PyObject *gating_poll(Core *self, PyObject *arg) {
    uint64_t limit;
    if (!as_word(arg, &limit)) {
        return NULL;
    }
    uint64_t ready = records_ready(&self->ring);
    uint64_t end = self->ring.position + (ready < limit ? ready : limit);
    if (limit > 0) {
        note_handed(&self->ring, end);
    }
    return Py_BuildValue("(KK)", (unsigned long long)self->ring.position, (unsigned long long)end);
}

static PyObject *gating_poll_into(Core *self, PyObject *const *args, Py_ssize_t arg_count) {
    Py_buffer room;
    uint64_t limit = as_poll(&self->ring, args, arg_count, &room);
    if (limit == 0) {
        return NULL;
    }
    int64_t count = poll_gating_into(&self->ring, room.buf, limit);
    PyBuffer_Release(&room);
    if (count < 0) {
        PyErr_SetString(PyExc_AssertionError, "a record that was not released has been overwritten");
        return NULL;
    }
    note_handed(&self->ring, self->ring.position + (uint64_t)count);
    return PyLong_FromLongLong(count);
}

/* A record this consumer has not released cannot be overwritten: another mark is a broken ring, or a caller's mistake. */
static PyObject *not_readable(uint64_t sequence) {
    PyErr_Format(PyExc_AssertionError, "sequence %llu is not between released and published",
                 (unsigned long long)sequence);
    return NULL;
}

static int is_readable(const ring_t *ring, uint64_t sequence) {
    return sequence >= ring->position && sequence < load_acquire(ring->published) && /* SYNC A */
           load_acquire(slot_at(ring, sequence)) == sequence + 1;                    /* SYNC C */
}

static PyObject *gating_read(Core *self, PyObject *arg) {
    uint64_t sequence, values[WORDS_PER_RECORD];
    if (!as_word(arg, &sequence) || !check_record_size(&self->ring)) {
        return NULL;
    }
    if (!is_readable(&self->ring, sequence)) {
        return not_readable(sequence);
    }
    load_payload(slot_at(&self->ring, sequence), self->ring.slot_words, (char *)values);
    return Py_BuildValue("(KKKKKKK)", (unsigned long long)values[0], (unsigned long long)values[1],
                         (unsigned long long)values[2], (unsigned long long)values[3], (unsigned long long)values[4],
                         (unsigned long long)values[5], (unsigned long long)values[6]);
}

static PyObject *gating_read_record(Core *self, PyObject *arg) {
    uint64_t sequence;
    if (!as_word(arg, &sequence)) {
        return NULL;
    }
    if (!is_readable(&self->ring, sequence)) {
        return not_readable(sequence);
    }
    PyObject *payload = new_payload(&self->ring);
    if (payload != NULL) {
        load_payload(slot_at(&self->ring, sequence), self->ring.slot_words, PyBytes_AsString(payload));
    }
    return payload;
}

static PyObject *gating_release(Core *self, PyObject *arg) {
    uint64_t end;
    if (!as_word(arg, &end)) {
        return NULL;
    }
    ring_t *ring = &self->ring;
    uint64_t published = load_relaxed(ring->published);
    if (end < ring->position || end > published) {
        PyErr_Format(PyExc_ValueError, "cannot release up to %llu: %llu are released already or it is not published",
                     (unsigned long long)end, (unsigned long long)ring->position);
        return NULL;
    }
    ring->is_idle = end == published;
    store_relaxed(ring->heartbeat, monotonic_ns());
    release_upto(ring, end);
    Py_RETURN_NONE;
}

static PyMethodDef gating_reader_methods[] = {
    ONE("poll", gating_poll, "Return the half-open range of sequences to read, at most n."),
    FAST("poll_into", gating_poll_into, "Copy unreleased records, each behind its sequence; return how many."),
    ONE("spin", reader_spin, "Spin up to n ns until there are records; return how many."),
    ONE("read", gating_read, "Return the seven words of a record."),
    ONE("read_record", gating_read_record, "Return the payload of a record."),
    ONE("release", gating_release, "Let the producer overwrite everything below a sequence."),
    END,
};

TYPE(gating_reader_spec, "GatingReader", gating_reader_new, gating_reader_methods, reader_members);

#endif
