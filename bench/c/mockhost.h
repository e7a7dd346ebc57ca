// The mock host's parts and what they share. How it is used stands in mockhost.c.
//
//   mockhost.c           options, sockets, the loop             mockhost_slots.c     who has a slot, who waits for one
//   mockhost_requests.c  reading requests and their settings    mockhost_lists.c     timers, ready streams, idle ones
//   mockhost_answers.c   writing answers                        mockhost_clients.c   clients that left; /left
//                                                               mockhost_stats.c     /stats
//
// A request: take_requests, generate, start_answer or wait_for_slot, step_stream or answer_whole, end_answer.
#ifndef BENCH_MOCKHOST_H
#define BENCH_MOCKHOST_H

#include "common.h"

enum {
    INSTANCES_MAX = 64,
    RECENT_TOKENS = 8, // write times kept per stream, to count tokens written after the client had left
};

enum phase { NO_PHASE, WAITING_FOR_SLOT, HAS_SLOT };
enum cancel_phase { CANCELLED_WAITING, CANCELLED_BEFORE_FIRST_TOKEN, CANCELLED_STREAMING, CANCEL_PHASES };

// What is still to be produced. FLUSHING: all bytes exist, the socket has not taken them yet.
enum answer { FLUSHING, STREAM, WHOLE };

enum sent { SENT_ALL, SENT_PART, ENDED };

typedef struct {
    char *bytes;
    size_t length, capacity;
} buffer;

typedef struct connection {
    int fd, instance, is_listener, dead;
    buffer in, out;
    size_t out_sent;
    int wants_write, busy, parsing;

    // the request being answered
    enum answer answer;
    enum phase phase;
    int is_chat, is_embedding, wants_usage, in_sync, close_after, promise_keep_alive;
    int tokens_written, token_count;
    int64_t ttft_ns, itl_ns;
    int64_t received_ns, started_ns, due_ns;
    char model[128], id[40];
    buffer token_chunk; // one token's chunk; its stamp is patched in place
    size_t stamp_offset;

    // what became of its client
    uint64_t request_id;
    int64_t left_ns, cancel_seen_ns, recent_ns[RECENT_TOKENS];
    int is_ghost;

    // places in lists
    int heap_index, ready_index, in_idle_list;
    struct connection *queue_next, *idle_previous, *idle_next;
    int64_t idle_since_ns;
} connection;

typedef struct {
    char name[160];
    int listener_fd;
    int running, waiting, running_max, waiting_max, open;
    connection *queue_head, *queue_tail;
    unsigned long received, connections, closed_idle;
} instance;

typedef struct {
    int64_t *values_ns;
    int length, capacity;
} samples;

struct options {
    int64_t token_count, ttft_us, itl_us, idle_ms, prefill_us;
    int embedding_size, close_streams, slots;
    char model[128];
};

struct stats {
    unsigned long received, started, finished, cancelled[CANCEL_PHASES];
    unsigned long told_left, left_but_finished, tokens_after_left, ghosts, tokens_at_reset;
    int64_t ghost_slot_ns;
    samples noticed, dropped;
};

extern struct options options;
extern struct stats stats;
extern instance instances[INSTANCES_MAX];
extern int instance_count;
extern unsigned long request_count, token_total; // never reset
extern long busy_count;

// mockhost.c
void set_options(char *query);
int64_t idle_limit_ns(void);
void watch_writable(connection *c, int wanted);

// mockhost_requests.c
void take_requests(connection *c);
int64_t query_number(const char *query, const char *name);

// mockhost_answers.c
void step_stream(connection *c);
enum sent write_token(connection *c);
void answer_whole(connection *c);
void answer_json(connection *c, const char *status, const char *body, size_t length);
void end_answer(connection *c);

// mockhost_slots.c
int has_free_slot(const instance *host);
void wait_for_slot(connection *c);
void start_answer(connection *c, int64_t now);
void free_slot(connection *c);
void note_slots_changed(void);
void fill_free_slots(void);
void drop_ghost(connection *c);
void close_connection(connection *c);
void empty_graveyard(void);

// mockhost_lists.c
void timer_start(connection *c);
void timer_stop(connection *c);
connection *first_due(void);
void ready_add(connection *c);
void ready_remove(connection *c);
int ready_total(void);
connection *ready_at(int i);
void idle_append(connection *c);
void idle_remove(connection *c);
connection *first_idle(void);

// mockhost_clients.c
void note_received(connection *c);
void note_finished(connection *c);
void note_cancelled(connection *c, enum cancel_phase phase);
void note_dropped(connection *c);
void note_left(uint64_t request_id, int64_t left_ns);
int left_early_total(void);
void forget_clients(void);
void print_cancels(FILE *out);

// mockhost_stats.c
void add_sample(samples *s, int64_t value_ns);
void answer_stats(connection *c, const char *query);

#endif
