// The load generator's parts and what they share. How it is used stands in loadgen.c.
//
//   loadgen.c            which connection sends when, the loop      loadgen_options.c    the command line
//   loadgen_requests.c   sockets, requests, how they end            loadgen_report.c     what is printed
//   loadgen_answers.c    reading answers: HTTP, stamps, checks
//
// A request: send_request, on_writable, on_readable, end_request, leave_free.
#ifndef BENCH_LOADGEN_H
#define BENCH_LOADGEN_H

#include "common.h"
#include "histogram.h"

enum {
    HEAD_BYTES_MAX = 16384,
    TAIL_BYTES = 16, // end of a body, where "[DONE]" must stand
    CHUNK_LINE_MAX = 32,
    ERROR_BODY_MAX = 200,
};

enum mode { MODE_STREAM, MODE_CLOSED, MODE_RATE };

struct options {
    char target[256], path[256], model[128], headers[4096];
    enum mode mode;
    int64_t connections, tokens, ttft_us, itl_us, gap_us, prompt_bytes, requests_max;
    int64_t in_sync, embeddings, stagger, quickack, buckets;
    double duration_s, warm_s, drain_s, timeout_s, rate;
};

struct counts {
    unsigned long started, ok, retried, unfinished, connections, reads, bytes, stalls;
    unsigned long tokens, tokens_measured, requests_measured;
    int64_t stall_ns;
    struct {
        unsigned long connect, http, close, count, done, timeout, order;
    } errors;
    int last_status;
    char error_body[ERROR_BODY_MAX];
};

struct plan {
    int64_t begin_ns, measured_from_ns, end_ns, last_ns; // last: what still runs then is unfinished
};

struct times {
    histogram forward, ttft_overhead, ttft, token, gap, time_per_token, end_to_end, overhead;
};

// Where in an answer the next byte belongs.
enum reading { HEAD, BODY_OF_LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, BODY_TO_EOF };

// A stamp is "~", "t" or "r", digits; it may come in several reads.
enum stamp_reading { NO_STAMP, AFTER_TILDE, IN_DIGITS };

typedef struct {
    int index, fd, connecting, reused, busy, retried;
    char *out; // the request; its id differs from request to request
    int out_sent;
    int64_t intended_ns, sent_ns, next_ns;

    enum reading reading;
    char head[HEAD_BYTES_MAX], tail[TAIL_BYTES], chunk_line[CHUNK_LINE_MAX];
    int head_length, tail_length, chunk_line_length;
    int status, is_chunked, keep_alive;
    int64_t body_left, chunk_left;

    enum stamp_reading stamp_reading;
    char stamp_kind;
    int stamp_digits;
    int64_t stamp_ns;

    int tokens;
    int64_t host_received_ns, host_first_ns, host_last_ns, first_arrival_ns, last_arrival_ns;
} connection;

extern struct options options;
extern struct counts counts;
extern struct plan plan;
extern struct times times;
extern int epoll_fd, busy_count;

static inline int is_measured(const connection *c)
{
    return c->intended_ns >= plan.measured_from_ns;
}

static inline int in_window(int64_t ns)
{
    return ns >= plan.measured_from_ns && ns <= plan.end_ns;
}

// loadgen.c
void leave_free(connection *c, int64_t now, int is_right);

// loadgen_options.c
void read_options(int argc, char **argv);

// loadgen_requests.c
void prepare_request(void);
int open_socket(connection *c);
void close_socket(connection *c);
void watch(connection *c, int operation, int writable);
void write_request(connection *c);
void send_request(connection *c, int64_t intended_ns);
void end_request(connection *c, int is_complete);

// loadgen_answers.c
void expect_answer(connection *c);
int check_answer(const connection *c);
void record_answer(const connection *c, int64_t now);
void on_readable(connection *c);
void on_writable(connection *c);

// loadgen_report.c
void report(void);

#endif
