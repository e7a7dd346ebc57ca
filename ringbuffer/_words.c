/* The words of a segment, by C11 atomics: the only place where ordering is spelled out for every processor.
 *
 * Letters name the edges of the table in ringbuffer/__init__.py; each stands at both ends. The Python twin with the same
 * classes is _plain.py. Every object holds its Py_buffer until it is deallocated, so a mapping can never vanish under a
 * bound method. All sizes are checked against the buffer once, in the constructor; arguments are checked in every call.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef _Atomic uint64_t word_t;

_Static_assert(sizeof(word_t) == 8, "a word is eight bytes");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock inside the process would order nothing between processes");

#define WORDS_PER_RECORD 7 /* payload words of a 64-byte slot */

static inline uint64_t load_relaxed(const word_t *word) {
    return atomic_load_explicit((word_t *)word, memory_order_relaxed);
}
static inline uint64_t load_acquire(const word_t *word) {
    return atomic_load_explicit((word_t *)word, memory_order_acquire);
}
static inline void store_relaxed(word_t *word, uint64_t value) {
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline void store_release(word_t *word, uint64_t value) {
    atomic_store_explicit(word, value, memory_order_release);
}

/* One struct serves every class: a view of a buffer, and the geometry of its slots. */
typedef struct {
    PyObject_HEAD
    Py_buffer view;
    word_t *words;
    uint64_t word_count;
    word_t *published;
    word_t *slots;
    uint64_t slot_count;
    uint64_t slot_words;
    uint64_t next;     /* writers: the next sequence to hand out */
    uint64_t position; /* readers: the next sequence to read */
    uint64_t lost;     /* lossy reader: records overwritten before it came */
    word_t *full_count;
    word_t *consumers;
    uint64_t consumers_max;
    uint64_t consumer_words;
    uint64_t released_word; /* within a consumer row */
    uint64_t cached_min;    /* gating writer: lowest released sequence at the last look */
    word_t *released;       /* gating reader: the two words of its own row */
    word_t *heartbeat;
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
    self->slots = self->words + slots;
    self->slot_count = slot_count;
    self->slot_words = slot_words;
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
    if ((self->slot_count & (self->slot_count - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "slot_count of a ring is not a power of two");
        Py_DECREF(self);
        return NULL;
    }
    self->published = self->words + published;
    return self;
}

static PyObject *lossy_writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    Core *self = ring_alloc(type, args, 1);
    if (self != NULL) {
        self->next = load_relaxed(self->published);
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
    self->position = PyLong_AsUnsignedLongLong(PyTuple_GetItem(args, 5));
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
    self->full_count = self->words + full_count;
    self->consumers = self->words + consumers;
    self->consumers_max = consumers_max;
    self->consumer_words = consumer_words;
    self->released_word = released_word;
    self->next = load_relaxed(self->published);
    self->cached_min = self->next;
    return (PyObject *)self;
}

/* … + (released, heartbeat) : two words of this consumer's own row */
static PyObject *gating_reader_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *buffer;
    unsigned long long unused, released, heartbeat;
    if (!PyArg_ParseTuple(args, "OKKKKKK", &buffer, &unused, &unused, &unused, &unused, &released, &heartbeat)) {
        return NULL;
    }
    Core *self = ring_alloc(type, args, 1);
    if (self == NULL) {
        return NULL;
    }
    if (!in_buffer(self, released, 1, 1) || !in_buffer(self, heartbeat, 1, 1)) {
        Py_DECREF(self);
        return NULL;
    }
    self->released = self->words + released;
    self->heartbeat = self->words + heartbeat;
    self->position = load_relaxed(self->released);
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
    self->slots = self->words + first;
    self->slot_count = count;
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

static int as_word(PyObject *object, uint64_t *value) {
    *value = PyLong_AsUnsignedLongLong(object);
    return !(*value == UINT64_MAX && PyErr_Occurred());
}

static int check_count(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) {
        return 1;
    }
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
    return 0;
}

static int check_below(uint64_t index, uint64_t count) {
    if (index < count) {
        return 1;
    }
    PyErr_Format(PyExc_IndexError, "index %llu is not below %llu", (unsigned long long)index, (unsigned long long)count);
    return 0;
}

static int as_record(const Core *self, PyObject *const *args, uint64_t values[WORDS_PER_RECORD]) {
    if (self->slot_words != WORDS_PER_RECORD + 1) {
        PyErr_Format(PyExc_ValueError, "records of seven words need slots of 64 bytes, these have %llu",
                     (unsigned long long)(self->slot_words * sizeof(word_t)));
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
static int as_payload(const Core *self, PyObject *object, Py_buffer *record) {
    if (PyObject_GetBuffer(object, record, PyBUF_SIMPLE) < 0) {
        return 0;
    }
    uint64_t room = (self->slot_words - 1) * sizeof(word_t);
    if ((uint64_t)record->len <= room) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "payload of %zd bytes, at most %llu fit", record->len, (unsigned long long)room);
    PyBuffer_Release(record);
    return 0;
}

/* ---------------------------------------------------------------- slots */

static inline word_t *slot_at(const Core *self, uint64_t sequence) {
    return self->slots + (sequence & (self->slot_count - 1)) * self->slot_words;
}

static inline void store_words(word_t *slot, const uint64_t values[WORDS_PER_RECORD]) {
    for (int i = 0; i < WORDS_PER_RECORD; i++) {
        store_relaxed(&slot[1 + i], values[i]);
    }
}

/* Stores a payload word by word, then zeroes the rest of the slot. */
static void store_payload(word_t *slot, uint64_t slot_words, const Py_buffer *record) {
    const char *bytes = record->buf;
    size_t left = (size_t)record->len;
    uint64_t i = 1;
    for (; left >= sizeof(uint64_t); i++, bytes += sizeof(uint64_t), left -= sizeof(uint64_t)) {
        uint64_t value;
        memcpy(&value, bytes, sizeof value);
        store_relaxed(&slot[i], value);
    }
    if (left > 0) {
        uint64_t value = 0;
        memcpy(&value, bytes, left);
        store_relaxed(&slot[i++], value);
    }
    for (; i < slot_words; i++) {
        store_relaxed(&slot[i], 0);
    }
}

static PyObject *load_payload(const word_t *slot, uint64_t slot_words) {
    PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((slot_words - 1) * sizeof(word_t)));
    if (payload == NULL) {
        return NULL;
    }
    char *bytes = PyBytes_AsString(payload);
    for (uint64_t i = 1; i < slot_words; i++, bytes += sizeof(uint64_t)) {
        uint64_t value = load_relaxed(&slot[i]);
        memcpy(bytes, &value, sizeof value);
    }
    return payload;
}

/* ---------------------------------------------------------------- Words */

static PyObject *words_load(Core *self, PyObject *arg, int acquire) {
    uint64_t index;
    if (!as_word(arg, &index) || !check_below(index, self->word_count)) {
        return NULL;
    }
    const word_t *word = self->words + index;
    return PyLong_FromUnsignedLongLong(acquire ? load_acquire(word) : load_relaxed(word));
}

static PyObject *words_store(Core *self, PyObject *const *args, Py_ssize_t count, int release) {
    uint64_t index, value;
    if (!check_count(count, 2) || !as_word(args[0], &index) || !as_word(args[1], &value) ||
        !check_below(index, self->word_count)) {
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

static inline void open_slot(word_t *slot) {
    store_relaxed(slot, 0);
    atomic_thread_fence(memory_order_release); /* SYNC B: the slot is marked before its payload changes */
}

static inline PyObject *close_slot(Core *self, word_t *slot) {
    uint64_t sequence = self->next++;
    store_release(slot, sequence + 1);            /* SYNC C: the payload stands before its sequence word */
    store_release(self->published, sequence + 1); /* SYNC A: the record stands before it counts as published */
    return PyLong_FromUnsignedLongLong(sequence);
}

static PyObject *lossy_publish(Core *self, PyObject *const *args, Py_ssize_t count) {
    uint64_t values[WORDS_PER_RECORD];
    if (!check_count(count, WORDS_PER_RECORD) || !as_record(self, args, values)) {
        return NULL;
    }
    word_t *slot = slot_at(self, self->next);
    open_slot(slot);
    store_words(slot, values);
    return close_slot(self, slot);
}

static PyObject *lossy_publish_record(Core *self, PyObject *payload) {
    Py_buffer record;
    if (!as_payload(self, payload, &record)) {
        return NULL;
    }
    word_t *slot = slot_at(self, self->next);
    open_slot(slot);
    store_payload(slot, self->slot_words, &record);
    PyBuffer_Release(&record);
    return close_slot(self, slot);
}

/* ---------------------------------------------------------- lossy reader */

/* Copies the record at `position`. 1 = copied, 0 = overwritten meanwhile, -1 = error. */
static int copy_record(const Core *self, PyObject **payload) {
    const word_t *slot = slot_at(self, self->position);
    uint64_t mark = self->position + 1;
    if (load_acquire(slot) != mark) { /* SYNC C */
        return 0;
    }
    *payload = load_payload(slot, self->slot_words);
    if (*payload == NULL) {
        return -1;
    }
    atomic_thread_fence(memory_order_acquire); /* SYNC B: the copy is complete before the mark is looked at again */
    if (load_relaxed(slot) == mark) {
        return 1;
    }
    Py_CLEAR(*payload);
    return 0;
}

static int append_record(PyObject *records, uint64_t sequence, PyObject *payload) {
    PyObject *record = Py_BuildValue("(KN)", (unsigned long long)sequence, payload);
    if (record == NULL) {
        return -1;
    }
    int result = PyList_Append(records, record);
    Py_DECREF(record);
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
    uint64_t published = load_acquire(self->published); /* SYNC A */
    for (uint64_t turn = 0; turn < limit && self->position < published; turn++) {
        if (published - self->position > self->slot_count) {
            uint64_t oldest = published - self->slot_count;
            self->lost += oldest - self->position;
            self->position = oldest;
        }
        PyObject *payload = NULL;
        int copied = copy_record(self, &payload);
        if (copied < 0 || (copied > 0 && append_record(records, self->position, payload) < 0)) {
            Py_DECREF(records);
            return NULL;
        }
        if (copied == 0) {
            self->lost++;
            published = load_acquire(self->published); /* SYNC A: see at once how far ahead the writer is by now */
        }
        self->position++;
    }
    return records;
}

/* --------------------------------------------------------- gating writer */

/* Looks at every consumer again. Without consumers nothing gates and everything published counts as released. */
static void refresh_minimum(Core *self) {
    uint64_t minimum = load_relaxed(self->published);
    atomic_thread_fence(memory_order_seq_cst); /* SYNC E: what is published is seen by a consumer that we do not see */
    for (uint64_t row = 0; row < self->consumers_max; row++) {
        const word_t *consumer = self->consumers + row * self->consumer_words;
        if (load_acquire(consumer) == 0) { /* SYNC F */
            continue;
        }
        uint64_t released = load_acquire(consumer + self->released_word); /* SYNC D */
        if (released < minimum) {
            minimum = released;
        }
    }
    self->cached_min = minimum;
}

/* 1 = there is room for `count` more records, 0 = full, and counted. */
static int has_room(Core *self, uint64_t count) {
    if (self->next + count - self->cached_min <= self->slot_count) {
        return 1;
    }
    refresh_minimum(self);
    if (self->next + count - self->cached_min <= self->slot_count) {
        return 1;
    }
    store_relaxed(self->full_count, load_relaxed(self->full_count) + 1);
    return 0;
}

static PyObject *gating_try_publish(Core *self, PyObject *const *args, Py_ssize_t count) {
    uint64_t values[WORDS_PER_RECORD];
    if (!check_count(count, WORDS_PER_RECORD) || !as_record(self, args, values)) {
        return NULL;
    }
    if (load_relaxed(self->published) != self->next) {
        PyErr_SetString(PyExc_ValueError, "claimed records have not been published yet");
        return NULL;
    }
    if (!has_room(self, 1)) {
        return PyLong_FromLong(-1);
    }
    word_t *slot = slot_at(self, self->next);
    open_slot(slot); /* no consumer needs the mark: it is for observers that read the ring without gating it */
    store_words(slot, values);
    return close_slot(self, slot);
}

static PyObject *gating_try_claim(Core *self, PyObject *arg) {
    uint64_t count;
    if (!as_word(arg, &count)) {
        return NULL;
    }
    if (count == 0 || count > self->slot_count) {
        PyErr_Format(PyExc_ValueError, "cannot claim %llu of %llu slots", (unsigned long long)count,
                     (unsigned long long)self->slot_count);
        return NULL;
    }
    if (!has_room(self, count)) {
        return PyLong_FromLong(-1);
    }
    uint64_t first = self->next;
    self->next += count;
    return PyLong_FromUnsignedLongLong(first);
}

static PyObject *gating_store(Core *self, PyObject *const *args, Py_ssize_t count) {
    uint64_t sequence, values[WORDS_PER_RECORD];
    if (!check_count(count, WORDS_PER_RECORD + 1) || !as_word(args[0], &sequence) ||
        !as_record(self, args + 1, values)) {
        return NULL;
    }
    if (sequence < load_relaxed(self->published) || sequence >= self->next) {
        PyErr_Format(PyExc_ValueError, "sequence %llu is not claimed", (unsigned long long)sequence);
        return NULL;
    }
    word_t *slot = slot_at(self, sequence);
    open_slot(slot);
    store_words(slot, values);
    store_release(slot, sequence + 1); /* SYNC C */
    Py_RETURN_NONE;
}

static PyObject *gating_publish_upto(Core *self, PyObject *arg) {
    uint64_t end;
    if (!as_word(arg, &end)) {
        return NULL;
    }
    uint64_t published = load_relaxed(self->published);
    if (end < published || end > self->next) {
        PyErr_Format(PyExc_ValueError, "cannot publish up to %llu: %llu are published, %llu claimed",
                     (unsigned long long)end, (unsigned long long)published, (unsigned long long)self->next);
        return NULL;
    }
    for (uint64_t sequence = published; sequence < end; sequence++) {
        if (load_relaxed(slot_at(self, sequence)) != sequence + 1) {
            PyErr_Format(PyExc_ValueError, "sequence %llu was claimed but never stored", (unsigned long long)sequence);
            return NULL;
        }
    }
    store_release(self->published, end); /* SYNC A */
    Py_RETURN_NONE;
}

/* --------------------------------------------------------- gating reader */

static PyObject *gating_poll(Core *self, PyObject *arg) {
    uint64_t limit;
    if (!as_word(arg, &limit)) {
        return NULL;
    }
    uint64_t ready = load_acquire(self->published) - self->position; /* SYNC A */
    uint64_t end = self->position + (ready < limit ? ready : limit);
    return Py_BuildValue("(KK)", (unsigned long long)self->position, (unsigned long long)end);
}

static PyObject *gating_read(Core *self, PyObject *arg) {
    uint64_t sequence, values[WORDS_PER_RECORD];
    if (!as_word(arg, &sequence)) {
        return NULL;
    }
    const word_t *slot = slot_at(self, sequence);
    /* A record this consumer has not released cannot be overwritten: another mark is a broken ring, or a caller's
       mistake. */
    if (sequence < self->position || sequence >= load_acquire(self->published) || /* SYNC A */
        load_acquire(slot) != sequence + 1) {                                    /* SYNC C */
        PyErr_Format(PyExc_AssertionError, "sequence %llu is not between released and published",
                     (unsigned long long)sequence);
        return NULL;
    }
    for (int i = 0; i < WORDS_PER_RECORD; i++) {
        values[i] = load_relaxed(&slot[1 + i]);
    }
    return Py_BuildValue("(KKKKKKK)", (unsigned long long)values[0], (unsigned long long)values[1],
                         (unsigned long long)values[2], (unsigned long long)values[3], (unsigned long long)values[4],
                         (unsigned long long)values[5], (unsigned long long)values[6]);
}

static PyObject *gating_release(Core *self, PyObject *arg) {
    uint64_t end;
    if (!as_word(arg, &end)) {
        return NULL;
    }
    if (end < self->position || end > load_relaxed(self->published)) {
        PyErr_Format(PyExc_ValueError, "cannot release up to %llu: %llu are released already or it is not published",
                     (unsigned long long)end, (unsigned long long)self->position);
        return NULL;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    store_relaxed(self->heartbeat, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    self->position = end;
    store_release(self->released, end); /* SYNC D: every read of these slots is done before they may be overwritten */
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ rows */

#define ROW_WRITING 1u
#define ROW_IN_USE 2u
#define ROW_VERSION 4u

static word_t *open_row(const Core *self, PyObject *arg, uint64_t *word) {
    uint64_t row;
    if (!as_word(arg, &row) || !check_below(row, self->slot_count)) {
        return NULL;
    }
    word_t *first = self->slots + row * self->slot_words;
    *word = load_relaxed(first);
    store_relaxed(first, *word | ROW_WRITING);
    atomic_thread_fence(memory_order_release); /* SYNC B */
    return first;
}

static inline void close_row(word_t *row, uint64_t word, uint64_t in_use) {
    uint64_t version = (word & ~(uint64_t)(ROW_WRITING | ROW_IN_USE)) + ROW_VERSION;
    store_release(row, version | in_use); /* SYNC C */
}

static PyObject *row_write(Core *self, PyObject *const *args, Py_ssize_t count) {
    Py_buffer record;
    if (!check_count(count, 2) || !as_payload(self, args[1], &record)) {
        return NULL;
    }
    uint64_t word;
    word_t *row = open_row(self, args[0], &word);
    if (row != NULL) {
        store_payload(row, self->slot_words, &record);
        close_row(row, word, ROW_IN_USE);
    }
    PyBuffer_Release(&record);
    if (row == NULL) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *row_clear(Core *self, PyObject *arg) {
    uint64_t word;
    word_t *row = open_row(self, arg, &word);
    if (row == NULL) {
        return NULL;
    }
    close_row(row, word, 0);
    Py_RETURN_NONE;
}

/* None = the row is empty, b"" = it is being written just now. */
static PyObject *row_read(Core *self, PyObject *arg) {
    uint64_t index;
    if (!as_word(arg, &index) || !check_below(index, self->slot_count)) {
        return NULL;
    }
    const word_t *row = self->slots + index * self->slot_words;
    uint64_t word = load_acquire(row); /* SYNC C */
    if (word & ROW_WRITING) {
        return PyBytes_FromStringAndSize("", 0);
    }
    if (!(word & ROW_IN_USE)) {
        Py_RETURN_NONE;
    }
    PyObject *payload = load_payload(row, self->slot_words);
    if (payload == NULL) {
        return NULL;
    }
    atomic_thread_fence(memory_order_acquire); /* SYNC B */
    if (load_relaxed(row) == word) {
        return payload;
    }
    Py_DECREF(payload);
    return PyBytes_FromStringAndSize("", 0);
}

/* -------------------------------------------------------------- counters */

static word_t *counter_at(const Core *self, PyObject *arg) {
    uint64_t id;
    if (!as_word(arg, &id) || !check_below(id, self->slot_count)) {
        return NULL;
    }
    return self->slots + id;
}

/* The value of a counter is signed; its only writer is this process, so load and store need not be one step. */
static int as_value(PyObject *object, int64_t *value) {
    *value = PyLong_AsLongLong(object);
    return !(*value == -1 && PyErr_Occurred());
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
    END,
};
static PyMethodDef lossy_reader_methods[] = {
    ONE("poll", lossy_poll, "Return up to n (sequence, payload) and count what was overwritten."),
    END,
};
static PyMethodDef gating_writer_methods[] = {
    FAST("try_publish", gating_try_publish, "Publish seven words; return the sequence, -1 when full."),
    ONE("try_claim", gating_try_claim, "Claim n slots; return the first sequence, -1 when full."),
    FAST("store", gating_store, "Store seven words into a claimed slot."),
    ONE("publish_upto", gating_publish_upto, "Publish the claimed and stored records below a sequence."),
    END,
};
static PyMethodDef gating_reader_methods[] = {
    ONE("poll", gating_poll, "Return the half-open range of sequences to read, at most n."),
    ONE("read", gating_read, "Return the seven words of a record."),
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
    {"next", T_ULONGLONG, offsetof(Core, next), READONLY, "next sequence"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef reader_members[] = {
    {"position", T_ULONGLONG, offsetof(Core, position), READONLY, "next sequence to read"},
    {"lost", T_ULONGLONG, offsetof(Core, lost), READONLY, "records overwritten before they were read"},
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
