/* Two threads on one mapping, with the very functions that the extension is made of: harness MODE COUNT.
 *
 * Every record checks itself. Each also names a word of `boxes`, which the writer fills before it publishes: those words
 * are no atomics, so that a sanitizer of threads sees whether publishing orders them. Exits with 0 and one line of
 * figures when all was right, with 1 and what was wrong otherwise.
 */
#define _GNU_SOURCE
#include "_ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    PUBLISHED = 0, /* places in words; each writer has lines of its own */
    FULL_COUNT = 16,
    CONSUMER = 32,
    CONSUMER_WORDS = 32,
    RELEASED = 16,
    HEARTBEAT = 17,
    SLOTS = 512,
    SLOT_COUNT = 8,
    SLOT_WORDS = WORDS_PER_RECORD + 1,
    BATCH_MAX = 5,
    JOINED_FOR = 40, /* records */
    YIELD_EVERY = 32, /* records: a writer that nothing gates would be done before the reader looks */
    STATE_FREE = 0,
    STATE_ACTIVE = 1
};

static pthread_barrier_t start;
static word_t *memory;
static uint64_t *boxes;
static uint64_t count;

static ring_t one_side(void) {
    ring_t ring = {0};
    ring.published = memory + PUBLISHED;
    ring.slots = memory + SLOTS;
    ring.slot_count = SLOT_COUNT;
    ring.slot_words = SLOT_WORDS;
    ring.full_count = memory + FULL_COUNT;
    ring.consumers = memory + CONSUMER;
    ring.consumers_max = 1;
    ring.consumer_words = CONSUMER_WORDS;
    ring.released_word = RELEASED;
    ring.released = memory + CONSUMER + RELEASED;
    ring.heartbeat = memory + CONSUMER + HEARTBEAT;
    return ring;
}

static void fail(const char *what, uint64_t sequence) {
    fprintf(stderr, "record %llu: %s\n", (unsigned long long)sequence, what);
    exit(1);
}

static uint64_t box_value(uint64_t sequence) {
    return sequence * 3 + 1;
}

static void fill(uint64_t values[WORDS_PER_RECORD], uint64_t sequence) {
    boxes[sequence] = box_value(sequence);
    for (int i = 0; i < WORDS_PER_RECORD; i++) {
        values[i] = sequence + (uint64_t)i;
    }
}

static void check(const uint64_t values[WORDS_PER_RECORD], uint64_t sequence) {
    for (int i = 0; i < WORDS_PER_RECORD; i++) {
        if (values[i] != sequence + (uint64_t)i) {
            fail("torn", sequence);
        }
    }
    if (boxes[sequence] != box_value(sequence)) {
        fail("published before what it names", sequence);
    }
}

static void yield_at(uint64_t sequence) {
    if (sequence % YIELD_EVERY == 0) {
        sched_yield();
    }
}

/* ---------------------------------------------------------------- gating */

static uint64_t batch_at(uint64_t sequence) {
    uint64_t size = sequence % BATCH_MAX + 1;
    return count - sequence < size ? count - sequence : size;
}

static void *produce(void *unused) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    uint64_t records[BATCH_MAX * WORDS_PER_RECORD];
    while (ring.next < count) {
        uint64_t size = batch_at(ring.next);
        yield_at(ring.next);
        if (!has_room(&ring, size)) {
            sched_yield();
            continue;
        }
        for (uint64_t i = 0; i < size; i++) {
            fill(records + i * WORDS_PER_RECORD, ring.next + i);
        }
        if (size == 1) {
            publish_words(&ring, records);
        } else {
            publish_batch(&ring, (const char *)records, size);
        }
    }
    return unused;
}

/* Reads records below `end`; returns how many. */
static uint64_t consume_upto(ring_t *ring, uint64_t end) {
    uint64_t records[SLOT_COUNT * SLOT_WORDS];
    uint64_t taken = 0;
    while (ring->position < end) {
        int64_t ready = poll_gating_into(ring, (char *)records, 1 + ring->position % SLOT_COUNT);
        if (ready < 0) {
            fail("overwritten before it was released", ring->position);
        }
        if (ready == 0) {
            sched_yield();
            continue;
        }
        for (int64_t i = 0; i < ready; i++) {
            const uint64_t *record = records + i * SLOT_WORDS;
            if (record[0] != ring->position + (uint64_t)i) {
                fail("out of turn", record[0]);
            }
            check(record + 1, record[0]);
        }
        release_upto(ring, ring->position + (uint64_t)ready);
        taken += (uint64_t)ready;
    }
    return taken;
}

static void *consume_all(void *result) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    *(uint64_t *)result = consume_upto(&ring, count);
    return NULL;
}

/* What ConsumerRow.take and .free of gating.py do, which have no lock to take here. */
static void join(ring_t *ring) {
    store_relaxed(ring->released, load_acquire(ring->published));
    store_release(ring->consumers, STATE_ACTIVE);
    atomic_thread_fence(memory_order_seq_cst);
    ring->position = load_acquire(ring->published);
    store_release(ring->released, ring->position);
}

static void *join_and_leave(void *result) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    uint64_t *taken = result;
    while (ring.position < count) {
        join(&ring);
        uint64_t end = ring.position + JOINED_FOR < count ? ring.position + JOINED_FOR : count;
        *taken += consume_upto(&ring, end);
        store_release(ring.consumers, STATE_FREE);
    }
    return NULL;
}

/* ----------------------------------------------------------------- lossy */

static void *publish_lossy(void *unused) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    for (uint64_t n = 0; n < count; n++) {
        uint64_t values[WORDS_PER_RECORD];
        fill(values, n);
        publish_words(&ring, values);
        yield_at(n);
    }
    return unused;
}

static void *read_lossy(void *result) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    uint64_t *taken = result;
    uint64_t records[SLOT_COUNT * SLOT_WORDS];
    while (ring.position < count) {
        uint64_t ready = poll_lossy_into(&ring, (char *)records, SLOT_COUNT);
        for (uint64_t i = 0; i < ready; i++) {
            check(records + i * SLOT_WORDS + 1, records[i * SLOT_WORDS]);
        }
        *taken += ready;
    }
    if (*taken + ring.lost != count) {
        fail("neither delivered nor counted as lost", *taken + ring.lost);
    }
    return NULL;
}

/* ------------------------------------------------------------------ rows */

static void *rewrite_row(void *unused) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    for (uint64_t n = 0; n < count; n++) {
        uint64_t values[WORDS_PER_RECORD];
        fill(values, n);
        uint64_t word = open_row(ring.slots);
        store_words(ring.slots, values);
        close_row(ring.slots, word, ROW_IN_USE);
        yield_at(n);
    }
    return unused;
}

static void *read_row(void *result) {
    ring_t ring = one_side();
    pthread_barrier_wait(&start);
    uint64_t *taken = result;
    uint64_t last = 0;
    while (last < count - 1) {
        uint64_t values[WORDS_PER_RECORD];
        if (copy_row(ring.slots, SLOT_WORDS, (char *)values) != ROW_COPIED) {
            continue;
        }
        check(values, values[0]);
        if (values[0] < last) {
            fail("older than what was read before", values[0]);
        }
        last = values[0];
        ++*taken;
    }
    return NULL;
}

/* ------------------------------------------------------------------ main */

typedef void *(*thread_t)(void *);

static const struct {
    const char *name;
    thread_t write;
    thread_t read;
    uint64_t first_state;
} modes[] = {
    {"gating", produce, consume_all, STATE_ACTIVE},
    {"joining", produce, join_and_leave, STATE_FREE},
    {"lossy", publish_lossy, read_lossy, STATE_FREE},
    {"table", rewrite_row, read_row, STATE_FREE},
};

static void run(thread_t write, thread_t read, uint64_t *taken) {
    pthread_t writer, reader;
    pthread_barrier_init(&start, NULL, 2);
    if (pthread_create(&writer, NULL, write, NULL) != 0 || pthread_create(&reader, NULL, read, taken) != 0) {
        fail("no thread", 0);
    }
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    count = strtoull(argv[2], NULL, 10);
    memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    boxes = calloc(count, sizeof *boxes);
    if (memory == MAP_FAILED || boxes == NULL) {
        return 2;
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, argv[1]) == 0) {
            uint64_t taken = 0;
            store_relaxed(memory + CONSUMER, modes[i].first_state);
            run(modes[i].write, modes[i].read, &taken);
            printf("%llu of %llu\n", (unsigned long long)taken, (unsigned long long)count);
            return 0;
        }
    }
    return 2;
}
