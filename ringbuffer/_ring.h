/* The rings themselves, without Python: every access to a live word, and every ordering between two processes.
 *
 * Letters name the edges of the table in ringbuffer/__init__.py; each stands at both of its ends, on the line that makes
 * it. _words.c gives these functions to Python; its twin in Python is _plain.py. Nothing here checks an argument: the
 * caller has compared all sizes with the buffer.
 */
#ifndef RINGBUFFER_RING_H
#define RINGBUFFER_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef _Atomic uint64_t word_t;

_Static_assert(sizeof(word_t) == 8, "a word is eight bytes");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock inside the process would order nothing between processes");

#define WORDS_PER_RECORD 7 /* payload words of a 64-byte slot */

/* What one writer or one reader knows of a ring or a table. */
typedef struct {
    word_t *published;
    word_t *slots;
    uint64_t slot_count; /* a power of two in rings */
    uint64_t slot_words;
    uint64_t next;     /* writer: the next sequence to hand out */
    uint64_t position; /* reader: the next sequence to read; gating reader: the first it has not released */
    uint64_t lost;     /* lossy reader: records overwritten before it came */
    word_t *full_count;
    word_t *consumers;
    uint64_t consumers_max;
    uint64_t consumer_words;
    uint64_t released_word; /* within a consumer row */
    uint64_t cached_min;    /* gating writer: lowest released sequence at the last look */
    word_t *released;       /* gating reader: the words of its own row */
    word_t *heartbeat;
    word_t *handed;
    uint64_t handed_end; /* gating reader: what `handed` holds */
    int is_idle;         /* gating reader: at the last look it had nothing to do */
} ring_t;

/* ----------------------------------------------------------------- words */

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

/* Words of a payload are atomic because a lossy reader may look while they change; it throws away what it saw then. */
static inline void store_payload_word(word_t *word, uint64_t value) {
    store_relaxed(word, value);
}
static inline uint64_t load_payload_word(const word_t *word) {
    return load_relaxed(word);
}

/* ----------------------------------------------------------------- slots */

static inline word_t *slot_at(const ring_t *ring, uint64_t sequence) {
    return ring->slots + (sequence & (ring->slot_count - 1)) * ring->slot_words;
}

static inline size_t payload_bytes(const ring_t *ring) {
    return (size_t)(ring->slot_words - 1) * sizeof(uint64_t);
}

static inline void store_words(word_t *slot, const uint64_t values[WORDS_PER_RECORD]) {
    for (int i = 0; i < WORDS_PER_RECORD; i++) {
        store_payload_word(&slot[1 + i], values[i]);
    }
}

/* Stores a payload word by word, then zeroes the rest of the slot. */
static inline void store_payload(word_t *slot, uint64_t slot_words, const char *bytes, size_t size) {
    uint64_t i = 1;
    for (; size >= sizeof(uint64_t); i++, bytes += sizeof(uint64_t), size -= sizeof(uint64_t)) {
        uint64_t value;
        memcpy(&value, bytes, sizeof value);
        store_payload_word(&slot[i], value);
    }
    if (size > 0) {
        uint64_t value = 0;
        memcpy(&value, bytes, size);
        store_payload_word(&slot[i++], value);
    }
    for (; i < slot_words; i++) {
        store_payload_word(&slot[i], 0);
    }
}

static inline void load_payload(const word_t *slot, uint64_t slot_words, char *to) {
    for (uint64_t i = 1; i < slot_words; i++, to += sizeof(uint64_t)) {
        uint64_t value = load_payload_word(&slot[i]);
        memcpy(to, &value, sizeof value);
    }
}

/* ---------------------------------------------------------------- writer */

static inline void open_slot(word_t *slot) {
    store_relaxed(slot, 0);
    atomic_thread_fence(memory_order_release); /* SYNC B: the slot is marked before its payload changes */
}

static inline void close_slot(word_t *slot, uint64_t sequence) {
    store_release(slot, sequence + 1); /* SYNC C: the payload stands before its sequence word */
}

static inline void publish_upto(const ring_t *ring, uint64_t end) {
    store_release(ring->published, end); /* SYNC A: the records stand before they count as published */
}

/* A gating consumer does not need the marks of open_slot: they are for observers that read the ring without gating. */
static inline uint64_t publish_words(ring_t *ring, const uint64_t values[WORDS_PER_RECORD]) {
    uint64_t sequence = ring->next++;
    word_t *slot = slot_at(ring, sequence);
    open_slot(slot);
    store_words(slot, values);
    close_slot(slot, sequence);
    publish_upto(ring, sequence + 1);
    return sequence;
}

static inline uint64_t publish_bytes(ring_t *ring, const char *bytes, size_t size) {
    uint64_t sequence = ring->next++;
    word_t *slot = slot_at(ring, sequence);
    open_slot(slot);
    store_payload(slot, ring->slot_words, bytes, size);
    close_slot(slot, sequence);
    publish_upto(ring, sequence + 1);
    return sequence;
}

/* Publishes `count` whole payloads that lie one behind the other; `published` moves once. Returns the first sequence. */
static inline uint64_t publish_batch(ring_t *ring, const char *bytes, uint64_t count) {
    uint64_t first = ring->next;
    size_t size = payload_bytes(ring);
    ring->next = first + count;
    for (uint64_t sequence = first; sequence < ring->next; sequence++, bytes += size) {
        word_t *slot = slot_at(ring, sequence);
        open_slot(slot);
        store_payload(slot, ring->slot_words, bytes, size);
        close_slot(slot, sequence);
    }
    publish_upto(ring, ring->next);
    return first;
}

/* ---------------------------------------------------------------- reader */

/* Copies the payload of one record. 1 = copied whole, 0 = it has been, or is being, overwritten. */
static inline int copy_record(const ring_t *ring, uint64_t sequence, char *to) {
    const word_t *slot = slot_at(ring, sequence);
    if (load_acquire(slot) != sequence + 1) { /* SYNC C */
        return 0;
    }
    load_payload(slot, ring->slot_words, to);
    atomic_thread_fence(memory_order_acquire); /* SYNC B: the copy is complete before the mark is looked at again */
    return load_relaxed(slot) == sequence + 1;
}

/* Moves a lossy reader to the oldest record that may still be there; what it passes over is lost. */
static inline void skip_lapped(ring_t *ring, uint64_t published) {
    if (published - ring->position > ring->slot_count) {
        uint64_t oldest = published - ring->slot_count;
        ring->lost += oldest - ring->position;
        ring->position = oldest;
    }
}

/* Copies up to `limit` records, each as its sequence and its payload; returns how many. */
static inline uint64_t poll_lossy_into(ring_t *ring, char *to, uint64_t limit) {
    uint64_t copied = 0;
    uint64_t published = load_acquire(ring->published); /* SYNC A */
    for (uint64_t turn = 0; turn < limit && ring->position < published; turn++) {
        skip_lapped(ring, published);
        if (copy_record(ring, ring->position, to + sizeof(uint64_t))) {
            memcpy(to, &ring->position, sizeof(uint64_t));
            to += ring->slot_words * sizeof(uint64_t);
            copied++;
        } else {
            ring->lost++;
            published = load_acquire(ring->published); /* SYNC A: see at once how far ahead the writer is by now */
        }
        ring->position++;
    }
    return copied;
}

/* Returns how many records are published that a gating reader has not released. */
static inline uint64_t records_ready(const ring_t *ring) {
    uint64_t published = load_acquire(ring->published); /* SYNC A */
    return published > ring->position ? published - ring->position : 0;
}

/* As poll_lossy_into, and stays where it is: what was not released comes again. -1 = a broken ring. */
static inline int64_t poll_gating_into(const ring_t *ring, char *to, uint64_t limit) {
    uint64_t ready = records_ready(ring);
    uint64_t count = ready < limit ? ready : limit;
    for (uint64_t sequence = ring->position; sequence < ring->position + count; sequence++) {
        if (!copy_record(ring, sequence, to + sizeof(uint64_t))) {
            return -1;
        }
        memcpy(to, &sequence, sizeof sequence);
        to += ring->slot_words * sizeof(uint64_t);
    }
    return (int64_t)count;
}

static inline void release_upto(ring_t *ring, uint64_t end) {
    ring->position = end;
    store_release(ring->released, end); /* SYNC D: every read of these slots is done before they may be overwritten */
}

/* Tells the processor that this is a spin, so that it saves power and leaves the loop without a pipeline flush. */
static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Looks up to `looks` times; returns how many records the reader has before it. */
static inline uint64_t spin_for_records(const ring_t *ring, uint64_t looks) {
    for (uint64_t look = 0; look < looks; look++) {
        uint64_t published = load_acquire(ring->published); /* SYNC A */
        if (published > ring->position) {
            return published - ring->position;
        }
        cpu_relax();
    }
    return 0;
}

/* ---------------------------------------------------------------- gating */

/* Looks at every consumer again. Without consumers nothing gates and everything published counts as released. */
static inline void refresh_minimum(ring_t *ring) {
    uint64_t minimum = load_relaxed(ring->published);
    atomic_thread_fence(memory_order_seq_cst); /* SYNC E: what is published is seen by a consumer that we do not see */
    for (uint64_t row = 0; row < ring->consumers_max; row++) {
        const word_t *consumer = ring->consumers + row * ring->consumer_words;
        if (load_acquire(consumer) == 0) { /* SYNC F */
            continue;
        }
        uint64_t released = load_acquire(consumer + ring->released_word); /* SYNC D */
        if (released < minimum) {
            minimum = released;
        }
    }
    ring->cached_min = minimum;
}

/* 1 = there is room for `count` more records, 0 = full, and counted. */
static inline int has_room(ring_t *ring, uint64_t count) {
    if (ring->next + count - ring->cached_min <= ring->slot_count) {
        return 1;
    }
    refresh_minimum(ring);
    if (ring->next + count - ring->cached_min <= ring->slot_count) {
        return 1;
    }
    store_relaxed(ring->full_count, load_relaxed(ring->full_count) + 1);
    return 0;
}

/* ------------------------------------------------------------------ rows */

#define ROW_WRITING 1u
#define ROW_IN_USE 2u
#define ROW_VERSION 4u

/* Marks a row as being written; returns its word of before. */
static inline uint64_t open_row(word_t *row) {
    uint64_t word = load_relaxed(row);
    store_relaxed(row, word | ROW_WRITING);
    atomic_thread_fence(memory_order_release); /* SYNC B */
    return word;
}

static inline void close_row(word_t *row, uint64_t word, uint64_t in_use) {
    uint64_t version = (word & ~(uint64_t)(ROW_WRITING | ROW_IN_USE)) + ROW_VERSION;
    store_release(row, version | in_use); /* SYNC C */
}

typedef enum { ROW_EMPTY, ROW_BUSY, ROW_COPIED } row_state_t;

static inline row_state_t copy_row(const word_t *row, uint64_t slot_words, char *to) {
    uint64_t word = load_acquire(row); /* SYNC C */
    if (word & ROW_WRITING) {
        return ROW_BUSY;
    }
    if (!(word & ROW_IN_USE)) {
        return ROW_EMPTY;
    }
    load_payload(row, slot_words, to);
    atomic_thread_fence(memory_order_acquire); /* SYNC B */
    return load_relaxed(row) == word ? ROW_COPIED : ROW_BUSY;
}

#endif
