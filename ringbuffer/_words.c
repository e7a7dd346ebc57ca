/* The words of a segment for Python: the classes around _ring.h, which has the orderings.
 *
 * The twin with the same classes is _plain.py. Every object holds its Py_buffer until it is deallocated, so a mapping can
 * never vanish under a bound method. All sizes are checked against the buffer once, in the constructor; arguments are
 * checked in every call.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "_publish.h"
#include "_ring.h"

/* One struct serves every class: a view of a buffer, and the geometry of its slots. */
typedef struct {
    PyObject_HEAD
    Py_buffer view;
    word_t *words;
    uint64_t word_count;
    ring_t ring;
    publish_t native;
} Core;

/* ------------------------------------------------------------------ life */

static void core_dealloc(Core *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->view.obj != NULL) {
        PyBuffer_Release(&self->view);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static Core *core_alloc(PyTypeObject *type, PyObject *buffer, int writable) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Core *self = (Core *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(buffer, &self->view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    if ((uintptr_t)self->view.buf % sizeof(word_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "the buffer is not aligned to 8 bytes");
        Py_DECREF(self);
        return NULL;
    }
    self->words = self->view.buf;
    self->word_count = (uint64_t)self->view.len / sizeof(word_t);
    return self;
}

static int in_buffer(const Core *self, uint64_t first, uint64_t count, uint64_t size) {
    if (first <= self->word_count && (size == 0 || count <= (self->word_count - first) / size)) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "%llu items of %llu words at word %llu do not fit into a buffer of %llu words",
                 (unsigned long long)count, (unsigned long long)size, (unsigned long long)first,
                 (unsigned long long)self->word_count);
    return 0;
}

/* (buffer, slots, slot_count, slot_words) */
static Core *rows_alloc(PyTypeObject *type, PyObject *args, int writable) {
    PyObject *buffer;
    unsigned long long slots, slot_count, slot_words;
    if (!PyArg_ParseTuple(args, "OKKK", &buffer, &slots, &slot_count, &slot_words)) {
        return NULL;
    }
    Core *self = core_alloc(type, buffer, writable);
    if (self == NULL) {
        return NULL;
    }
    if (slot_words < 2 || slot_count == 0) {
        PyErr_SetString(PyExc_ValueError, "a segment has at least one slot of at least 16 bytes");
        Py_DECREF(self);
        return NULL;
    }
    if (!in_buffer(self, slots, slot_count, slot_words)) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.slots = self->words + slots;
    self->ring.slot_count = slot_count;
    self->ring.slot_words = slot_words;
    return self;
}

static PyObject *row_writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    return (PyObject *)rows_alloc(type, args, 1);
}

static PyObject *row_reader_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    return (PyObject *)rows_alloc(type, args, 0);
}

/* (buffer, slots, slot_count, slot_words, published) in front of what the class adds; slot_count a power of two */
static Core *ring_alloc(PyTypeObject *type, PyObject *args, int writable) {
    if (PyTuple_Size(args) < 5) {
        PyErr_SetString(PyExc_TypeError, "expected buffer, slots, slot_count, slot_words, published, …");
        return NULL;
    }
    PyObject *geometry = PyTuple_GetSlice(args, 0, 4);
    if (geometry == NULL) {
        return NULL;
    }
    Core *self = rows_alloc(type, geometry, writable);
    Py_DECREF(geometry);
    if (self == NULL) {
        return NULL;
    }
    unsigned long long published = PyLong_AsUnsignedLongLong(PyTuple_GetItem(args, 4));
    if (PyErr_Occurred() || !in_buffer(self, published, 1, 1)) {
        Py_DECREF(self);
        return NULL;
    }
    if ((self->ring.slot_count & (self->ring.slot_count - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "slot_count of a ring is not a power of two");
        Py_DECREF(self);
        return NULL;
    }
    self->ring.published = self->words + published;
    return self;
}

static PyObject *lossy_writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    Core *self = ring_alloc(type, args, 1);
    if (self != NULL) {
        self->ring.next = load_relaxed(self->ring.published);
    }
    return (PyObject *)self;
}

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

static PyObject *words_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *buffer;
    if (!PyArg_ParseTuple(args, "O", &buffer)) {
        return NULL;
    }
    return (PyObject *)core_alloc(type, buffer, 0);
}

/* ------------------------------------------------------------- arguments */

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

/* ---------------------------------------------------------------- Words */

static PyObject *words_load(Core *self, PyObject *arg, int acquire) {
    uint64_t index;
    if (!as_index(arg, self->word_count, &index)) {
        return NULL;
    }
    const word_t *word = self->words + index;
    return PyLong_FromUnsignedLongLong(acquire ? load_acquire(word) : load_relaxed(word));
}

static PyObject *words_store(Core *self, PyObject *const *args, Py_ssize_t count, int release) {
    uint64_t index, value;
    if (!check_count(count, 2) || !as_index(args[0], self->word_count, &index) || !as_word(args[1], &value)) {
        return NULL;
    }
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "cannot store into a read-only mapping");
        return NULL;
    }
    if (release) {
        store_release(self->words + index, value);
    } else {
        store_relaxed(self->words + index, value);
    }
    Py_RETURN_NONE;
}

static PyObject *words_load_acquire(Core *self, PyObject *arg) {
    return words_load(self, arg, 1);
}
static PyObject *words_load_relaxed(Core *self, PyObject *arg) {
    return words_load(self, arg, 0);
}
static PyObject *words_store_release(Core *self, PyObject *const *args, Py_ssize_t count) {
    return words_store(self, args, count, 1);
}
static PyObject *words_store_relaxed(Core *self, PyObject *const *args, Py_ssize_t count) {
    return words_store(self, args, count, 0);
}
static PyObject *words_fence(Core *Py_UNUSED(self), PyObject *Py_UNUSED(arg)) {
    atomic_thread_fence(memory_order_seq_cst);
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------- lossy writer */

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
    if (self->ring.slot_words != 1 + WORDS_PER_RECORD) {
        PyErr_Format(PyExc_ValueError, "a slot has %llu bytes: words are published into slots of 64",
                     (unsigned long long)(self->ring.slot_words * sizeof(word_t)));
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

/* --------------------------------------------------------------- readers */

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

#define LOOKS_WITH_GIL 64 /* about a microsecond: a record that comes at once is not kept waiting for the GIL */
#define LOOKS_PER_CLOCK_READ 64
#define SIGNALS_EVERY_NS 10000000u /* Ctrl-C ends a spin within 10 ms */
#define NS_PER_S 1000000000u

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Other threads of this process may run meanwhile; the object and its buffer stay, the caller holds them. */
static uint64_t spin_without_gil(const ring_t *ring, uint64_t until_ns) {
    uint64_t ready;
    Py_BEGIN_ALLOW_THREADS
    do {
        ready = spin_for_records(ring, LOOKS_PER_CLOCK_READ);
    } while (ready == 0 && monotonic_ns() < until_ns);
    Py_END_ALLOW_THREADS
    return ready;
}

/* Fills `ready` with how many records there are, after at most `limit_ns` of looking; 0 is an error. */
static int spin(const ring_t *ring, uint64_t limit_ns, uint64_t *ready) {
    *ready = spin_for_records(ring, LOOKS_WITH_GIL);
    if (*ready > 0) {
        return 1;
    }
    uint64_t began_ns = monotonic_ns(), now_ns = began_ns;
    while (*ready == 0 && now_ns - began_ns < limit_ns) {
        uint64_t left_ns = limit_ns - (now_ns - began_ns);
        *ready = spin_without_gil(ring, now_ns + (left_ns < SIGNALS_EVERY_NS ? left_ns : SIGNALS_EVERY_NS));
        if (PyErr_CheckSignals() < 0) {
            return 0;
        }
        now_ns = monotonic_ns();
    }
    return 1;
}

static PyObject *reader_spin(Core *self, PyObject *arg) {
    uint64_t limit_ns, ready;
    if (!as_word(arg, &limit_ns) || !spin(&self->ring, limit_ns, &ready)) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(ready);
}

/* The arguments of poll_into: a buffer, and how long to spin while there is nothing. As as_room. */
static uint64_t as_poll(const ring_t *ring, PyObject *const *args, Py_ssize_t count, Py_buffer *room) {
    uint64_t limit_ns = 0, ready;
    if ((count != 1 && !check_count(count, 2)) || (count == 2 && !as_word(args[1], &limit_ns))) {
        return 0;
    }
    uint64_t limit = as_room(ring, args[0], room);
    if (limit > 0 && limit_ns > 0 && !spin(ring, limit_ns, &ready)) {
        PyBuffer_Release(room);
        return 0;
    }
    return limit;
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

/* --------------------------------------------------------- gating writer */

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

/* --------------------------------------------------------- gating reader */

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

/* ------------------------------------------------------------------ rows */

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

/* -------------------------------------------------------------- counters */

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

/* ----------------------------------------------------------------- types */

#define FAST(name, function, doc) {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, doc}
#define ONE(name, function, doc) {name, (PyCFunction)(void (*)(void))(function), METH_O, doc}
#define NONE(name, function, doc) {name, (PyCFunction)(void (*)(void))(function), METH_NOARGS, doc}
#define END {NULL, NULL, 0, NULL}

static PyMethodDef words_methods[] = {
    ONE("load_acquire", words_load_acquire, "Return word i; later accesses stay behind it."),
    ONE("load_relaxed", words_load_relaxed, "Return word i."),
    FAST("store_release", words_store_release, "Store word i; earlier accesses stay before it."),
    FAST("store_relaxed", words_store_relaxed, "Store word i."),
    NONE("fence", words_fence, "Full fence: nothing crosses it, not even a load over a store."),
    END,
};
static PyMethodDef lossy_writer_methods[] = {
    FAST("publish", lossy_publish, "Publish seven words; return the sequence."),
    ONE("publish_record", lossy_publish_record, "Publish a payload, zero padded; return the sequence."),
    ONE("publish_batch", lossy_publish_batch, "Publish whole payloads at once; return the first sequence."),
    NONE("native_publish", lossy_native_publish, "Return a capsule by which native code publishes seven words."),
    END,
};
static PyMethodDef lossy_reader_methods[] = {
    ONE("poll", lossy_poll, "Return up to n (sequence, payload) and count what was overwritten."),
    FAST("poll_into", lossy_poll_into, "Copy records, each behind its sequence, into a buffer; return how many."),
    ONE("spin", reader_spin, "Spin up to n ns until there are records; return how many."),
    END,
};
static PyMethodDef gating_writer_methods[] = {
    FAST("try_publish", gating_try_publish, "Publish seven words; return the sequence, -1 when full."),
    ONE("try_publish_record", gating_try_publish_record, "Publish a payload; return the sequence, -1 when full."),
    ONE("try_publish_batch", gating_try_publish_batch, "Publish whole payloads; return the first sequence, -1: full."),
    ONE("try_claim", gating_try_claim, "Claim n slots; return the first sequence, -1 when full."),
    FAST("store", gating_store, "Store seven words into a claimed slot."),
    ONE("publish_upto", gating_publish_upto, "Publish the claimed and stored records below a sequence."),
    END,
};
static PyMethodDef gating_reader_methods[] = {
    ONE("poll", gating_poll, "Return the half-open range of sequences to read, at most n."),
    FAST("poll_into", gating_poll_into, "Copy unreleased records, each behind its sequence; return how many."),
    ONE("spin", reader_spin, "Spin up to n ns until there are records; return how many."),
    ONE("read", gating_read, "Return the seven words of a record."),
    ONE("read_record", gating_read_record, "Return the payload of a record."),
    ONE("release", gating_release, "Let the producer overwrite everything below a sequence."),
    END,
};
static PyMethodDef row_writer_methods[] = {
    FAST("write", row_write, "Write the payload of a row, zero padded."),
    ONE("clear", row_clear, "Mark a row as empty."),
    END,
};
static PyMethodDef row_reader_methods[] = {
    ONE("read", row_read, "Return a row's payload; None: empty; b'': being written."),
    END,
};
static PyMethodDef counter_words_methods[] = {
    FAST("add", counter_add, "Add n, 1 unless given, to a counter."),
    FAST("set", counter_set, "Set a counter."),
    FAST("max", counter_max, "Raise a counter to a value."),
    ONE("get", counter_get, "Return a counter."),
    END,
};

static PyMemberDef writer_members[] = {
    {"next", T_ULONGLONG, offsetof(Core, ring.next), READONLY, "next sequence"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef reader_members[] = {
    {"position", T_ULONGLONG, offsetof(Core, ring.position), READONLY, "next sequence to read"},
    {"lost", T_ULONGLONG, offsetof(Core, ring.lost), READONLY, "records overwritten before they were read"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef no_members[] = {{NULL, 0, 0, 0, NULL}};

#define TYPE(spec, type_name, constructor, type_methods, type_members)                                                 \
    static PyType_Slot spec##_slots[] = {{Py_tp_new, constructor},                                                     \
                                         {Py_tp_dealloc, core_dealloc},                                                \
                                         {Py_tp_methods, type_methods},                                                \
                                         {Py_tp_members, type_members},                                                \
                                         {0, NULL}};                                                                   \
    static PyType_Spec spec = {"ringbuffer._words." type_name, sizeof(Core), 0, Py_TPFLAGS_DEFAULT, spec##_slots}

TYPE(words_spec, "Words", words_new, words_methods, no_members);
TYPE(lossy_writer_spec, "LossyWriter", lossy_writer_new, lossy_writer_methods, writer_members);
TYPE(lossy_reader_spec, "LossyReader", lossy_reader_new, lossy_reader_methods, reader_members);
TYPE(gating_writer_spec, "GatingWriter", gating_writer_new, gating_writer_methods, writer_members);
TYPE(gating_reader_spec, "GatingReader", gating_reader_new, gating_reader_methods, reader_members);
TYPE(row_writer_spec, "RowWriter", row_writer_new, row_writer_methods, no_members);
TYPE(row_reader_spec, "RowReader", row_reader_new, row_reader_methods, no_members);
TYPE(counter_words_spec, "CounterWords", counter_words_new, counter_words_methods, no_members);

static int add_types(PyObject *module) {
    PyType_Spec *specs[] = {&words_spec,         &lossy_writer_spec, &lossy_reader_spec, &gating_writer_spec,
                            &gating_reader_spec, &row_writer_spec,   &row_reader_spec,   &counter_words_spec};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        PyObject *type = PyType_FromSpec(specs[i]);
        if (type == NULL) {
            return -1;
        }
        const char *name = strrchr(specs[i]->name, '.') + 1;
        int failed = PyModule_AddObjectRef(module, name, type);
        Py_DECREF(type);
        if (failed) {
            return -1;
        }
    }
    return PyModule_AddStringConstant(module, "BACKEND", "c");
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, add_types}, {0, NULL}};
static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "ringbuffer._words", "Words of a segment by C11 atomics.", 0, NULL, module_slots, NULL, NULL,
    NULL};

PyMODINIT_FUNC PyInit__words(void) {
    return PyModuleDef_Init(&module_definition);
}
