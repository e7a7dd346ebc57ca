/* Waiting for records of a ring without sleeping, for readers of both kinds. */
#ifndef RINGBUFFER_SPIN_H
#define RINGBUFFER_SPIN_H

#include "_arguments.h"

#include <time.h>

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

#endif
