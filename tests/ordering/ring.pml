/* The protocols of the rings for the model checker spin, on a machine with explicit store buffers and stale caches.
 *
 * Each thread has one buffer a word, out of which its stores come into memory in any order between words, and a cache
 * whose words catch up with memory one by one, in any order too. A release waits until the thread's buffers are empty;
 * an acquire lets its whole cache catch up; a full fence does both. A load may also be late: its thread goes on, and it
 * takes its value at any time after that. A release then waits for its thread's late loads, and so does an acquire that
 * comes behind them. What a processor does in the lock of a kernel object is done in memory itself. Letters are those of
 * ringbuffer/__init__.py, with 1 for the end that stores and 2 for the end that loads: -DWEAK_B1 leaves that order out.
 *
 * PROTOCOL is LOSSY, TABLE, JOINING, GATING, DOORBELL or HEADER.
 */
#define WORDS 4
#define AT(thread, word) ((thread) * WORDS + (word))
#define PENDING 3

byte memory[WORDS];
byte cache[2 * WORDS];
chan buffers[2 * WORDS] = [PENDING] of { byte };

#define STORE(thread, word, value) buffers[AT(thread, word)]!value
#define LOAD(thread, word, register) register = cache[AT(thread, word)]
#define RELEASE(thread)                                                                        \
    (empty(buffers[AT(thread, 0)]) && empty(buffers[AT(thread, 1)]) &&                         \
     empty(buffers[AT(thread, 2)]) && empty(buffers[AT(thread, 3)]))
/* A load whose value is wanted later: it stands in late[] when none of its thread is outstanding. */
byte late[2 * WORDS];
byte outstanding[2];
proctype late_load(byte thread, word) {
    atomic { late[AT(thread, word)] = cache[AT(thread, word)]; outstanding[thread]-- }
}
#define LOAD_LATE(thread, word)                                                                \
    atomic { outstanding[thread]++; run late_load(thread, word) }
#define LATE_LOADS(thread) outstanding[thread] == 0
#define CATCH_UP(thread, word) cache[AT(thread, word)] = memory[word]
#define ACQUIRE(thread)                                                                        \
    d_step {                                                                                   \
        CATCH_UP(thread, 0); CATCH_UP(thread, 1); CATCH_UP(thread, 2); CATCH_UP(thread, 3)     \
    }

#ifdef WEAK_A1
#define RELEASE_A skip
#else
#define RELEASE_A RELEASE(0)
#endif
#ifdef WEAK_A2
#define ACQUIRE_A skip
#else
#define ACQUIRE_A ACQUIRE(1)
#endif
#ifdef WEAK_B1
#define FENCE_B1 skip
#else
#define FENCE_B1 RELEASE(0)
#endif
#ifdef WEAK_B2
#define FENCE_B2 skip
#else
#define FENCE_B2 ACQUIRE(1)
#endif
#ifdef WEAK_C1
#define RELEASE_C skip
#else
#define RELEASE_C RELEASE(0)
#endif
#ifdef WEAK_C2
#define ACQUIRE_C skip
#else
#define ACQUIRE_C ACQUIRE(1)
#endif
#ifdef WEAK_D1
#define RELEASE_D skip
#else
#define RELEASE_D LATE_LOADS(1); RELEASE(1)
#endif
#ifdef WEAK_D2
#define ACQUIRE_D skip
#else
#define ACQUIRE_D LATE_LOADS(0); ACQUIRE(0)
#endif
#ifdef WEAK_E1
#define FENCE_E1 skip
#else
#define FENCE_E1 RELEASE(0); ACQUIRE(0)
#endif
#ifdef WEAK_E2
#define FENCE_E2 skip
#else
#define FENCE_E2 RELEASE(1); ACQUIRE(1)
#endif
#ifdef WEAK_F1
#define RELEASE_F skip
#else
#define RELEASE_F RELEASE(1)
#endif
#ifdef WEAK_F2
#define ACQUIRE_F skip
#else
#define ACQUIRE_F ACQUIRE(0)
#endif
#ifdef WEAK_G1
#define RELEASE_G skip
#else
#define RELEASE_G RELEASE(0)
#endif
#ifdef WEAK_G2
#define ACQUIRE_G skip
#else
#define ACQUIRE_G ACQUIRE(1)
#endif
#ifdef WEAK_M1
#define RELEASE_M skip
#else
#define RELEASE_M RELEASE(0)
#endif
#ifdef WEAK_M2
#define ACQUIRE_M skip
#else
#define ACQUIRE_M ACQUIRE(1)
#endif

#define DRAIN(word) :: atomic { nempty(buffers[AT(thread, word)]) -> buffers[AT(thread, word)]?memory[word] }
#define AGE(word) :: atomic { cache[AT(thread, word)] != memory[word] -> CATCH_UP(thread, word) }

/* Moves what a thread has stored into memory, and what is in memory into its cache, whenever it likes. */
proctype memory_of(byte thread) {
end:
    do
    DRAIN(0)
    DRAIN(1)
    DRAIN(2)
    DRAIN(3)
    AGE(0)
    AGE(1)
    AGE(2)
    AGE(3)
    od
}

#ifdef LOSSY
/* One slot: record 0 is there and record 1 overwrites it. Record n holds n + 1 in both words. */
#define PUBLISHED 0
#define SLOT 1
#define P1 2
#define P2 3

proctype first() {
    STORE(0, SLOT, 0);
    FENCE_B1;
    STORE(0, P1, 2);
    STORE(0, P2, 2);
    RELEASE_C;
    STORE(0, SLOT, 2);
    RELEASE_A;
    STORE(0, PUBLISHED, 2)
}

proctype second() {
    byte n, published, mark, p1, p2, again;
    if
    :: n = 0
    :: n = 1
    fi;
    LOAD(1, PUBLISHED, published);
    ACQUIRE_A;
    if
    :: published <= n
    :: else ->
        LOAD(1, SLOT, mark);
        ACQUIRE_C;
        LOAD(1, P1, p1);
        LOAD(1, P2, p2);
        FENCE_B2;
        LOAD(1, SLOT, again);
        if
        :: mark == n + 1 && again == n + 1 -> assert(p1 == n + 1 && p2 == n + 1) /* none is torn */
        :: else -> assert(n == 0)                                                /* the newest one is there */
        fi
    fi
}

#define START memory[PUBLISHED] = 1; memory[SLOT] = 1; memory[P1] = 1; memory[P2] = 1
#endif

#ifdef TABLE
#define ROW 0
#define P1 1
#define P2 2
#define OLD 6 /* version 1, in use */
#define OPEN 7
#define NEW 10 /* version 2, in use */

proctype first() {
    STORE(0, ROW, OPEN);
    FENCE_B1;
    STORE(0, P1, 2);
    STORE(0, P2, 2);
    RELEASE_C;
    STORE(0, ROW, NEW)
}

proctype second() {
    byte word, p1, p2, again;
    LOAD(1, ROW, word);
    ACQUIRE_C;
    LOAD(1, P1, p1);
    LOAD(1, P2, p2);
    FENCE_B2;
    LOAD(1, ROW, again);
    if
    :: word == OPEN || word != again
    :: else -> assert(p1 == p2 && p1 == (word == OLD -> 1 : 2))
    fi
}

#define START memory[ROW] = OLD; memory[P1] = 1; memory[P2] = 1
#endif

#ifdef JOINING
#define PUBLISHED 0
#define STATE 1
#define RELEASED 2
#define STALE 9 /* what the row's last owner left */
byte seen_state, seen_released;
bool has_looked;

/* The producer publishes a record, then looks for consumers. */
proctype first() {
    STORE(0, PUBLISHED, 1);
    FENCE_E1;
    LOAD(0, STATE, seen_state);
    ACQUIRE_F;
    LOAD(0, RELEASED, seen_released);
    has_looked = true
}

proctype second() {
    byte begin;
    LOAD(1, PUBLISHED, begin);
    STORE(1, RELEASED, begin);
    RELEASE_F;
    STORE(1, STATE, 1);
    FENCE_E2;
    LOAD(1, PUBLISHED, begin);
    RELEASE(1);
    STORE(1, RELEASED, begin);
    has_looked;
    assert(seen_state == 1 || begin == 1); /* one of the two has seen the other */
    assert(seen_state == 0 || seen_released <= begin)
}

#define START memory[RELEASED] = STALE
#endif

#ifdef GATING
/* Record 0 lies in the only slot, not released yet. The producer overwrites it without waiting to learn that it was:
 * executions in which it was not, in the end, are none, as no processor keeps stores that it should not have done. */
#define RELEASED 0
#define P1 1
#define P2 2
bool has_overwritten;

proctype first() {
    LOAD_LATE(0, RELEASED);
    ACQUIRE_D;
    STORE(0, P1, 2);
    STORE(0, P2, 2);
    LATE_LOADS(0);
    has_overwritten = true
}

proctype second() {
    LOAD_LATE(1, P1);
    LOAD_LATE(1, P2);
    RELEASE_D;
    STORE(1, RELEASED, 1);
    LATE_LOADS(1);
    has_overwritten;
    assert(late[AT(0, RELEASED)] == 0 || (late[AT(1, P1)] == 1 && late[AT(1, P2)] == 1))
}

#define START memory[P1] = 1; memory[P2] = 1
#endif

#ifdef DOORBELL
#define PUBLISHED 0
#define BELL 1

/* The producer publishes, then rings. */
proctype first() {
    STORE(0, PUBLISHED, 1);
    RELEASE_G;
    memory[BELL] = 1
}

/* The consumer clears its bell, then looks. */
proctype second() {
    byte rung, published;
    atomic { rung = memory[BELL]; memory[BELL] = 0 }
    ACQUIRE_G;
    LOAD(1, PUBLISHED, published);
    assert(rung == 0 || published == 1) /* it sees what it was rung for, or will be rung */
}

#define START skip
#endif

#ifdef HEADER
#define MAGIC 0
#define SLOT_COUNT 1

proctype first() {
    STORE(0, SLOT_COUNT, 8);
    RELEASE_M;
    STORE(0, MAGIC, 1)
}

proctype second() {
    byte magic, slot_count;
    LOAD(1, MAGIC, magic);
    ACQUIRE_M;
    LOAD(1, SLOT_COUNT, slot_count);
    assert(magic == 0 || slot_count == 8)
}

#define START skip
#endif

init {
    atomic {
        START;
        ACQUIRE(0);
        ACQUIRE(1);
        run memory_of(0);
        run memory_of(1);
        run first();
        run second()
    }
}
