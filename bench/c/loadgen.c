// loadgen: a cheap HTTP load generator for OpenAI-compatible streaming servers, one thread, epoll.
//
//   loadgen target=127.0.0.1:8200 mode=stream conc=64 n=64 ttft=2000 itl=20000 dur=4 warm=0.5
//
// It knows the mock host's stamps ("~t" and "~r", CLOCK_MONOTONIC ns), so it measures one-way latencies. It prints one
// JSON object; times in it are in microseconds.
//
// target=HOST:PORT | unix:/path   path=/v1/chat/completions   model=mock-model   hdr="Name: value" (repeatable)
// mode=stream   conc streams at a time, each followed by the next (itl=0: as fast as the host writes)
// mode=closed   conc whole answers at a time, each followed by the next
// mode=rate     whole answers at rate=R per second, open loop: latency counts from the intended time
// n, ttft, itl (us), sync: passed to the host inside the prompt.   prompt=1000: bytes of it.   embed=1: /v1/embeddings
// dur, warm: seconds; what begins before warm is not measured.   drain=3: seconds for what runs at the end
// timeout=20: seconds per request.   maxreq=0: requests, 0 without limit.   gap=0: us between an answer and the next
// stagger=1: streams start evenly spread.   quickack=1: acknowledge at once, which hides a server without TCP_NODELAY
// buckets=1: whole distributions too, as [value in us, count, value, count, ...]
#include "common.h"
#include "histogram.h"

enum {
    EVENTS_PER_TURN = 1024,
    READ_BYTES = 1 << 18,
    HEAD_BYTES_MAX = 16384,
    TAIL_BYTES = 16,            // end of a body, where "[DONE]" must stand
    CHUNK_LINE_MAX = 32,
    ERROR_BODY_MAX = 200,
    OVERDUE_MAX = 1 << 20,      // power of two; intended times of requests that found no free connection
    ID_DIGITS = 10,
};

#define FIRST_REQUEST_AFTER_NS (20 * NS_PER_MS) // all connections stand before the first request
#define PAUSE_AFTER_ERROR_NS (5 * NS_PER_MS)
#define TIMEOUT_SCAN_NS (200 * NS_PER_MS)
#define WAIT_MAX_NS (10 * NS_PER_MS)
#define STALL_NS (20 * NS_PER_MS) // woken so late: the whole machine stood still, nothing else holds this core so long

// ---------------------------------------------------------------------------------------- options and counters

enum mode { MODE_STREAM, MODE_CLOSED, MODE_RATE };

static struct {
    char target[256], path[256], model[128], headers[4096];
    enum mode mode;
    int64_t connections, tokens, ttft_us, itl_us, gap_us, prompt_bytes, requests_max;
    int64_t in_sync, embeddings, stagger, quickack, buckets;
    double duration_s, warm_s, drain_s, timeout_s, rate;
} options = {.path = "/v1/chat/completions", .model = "mock-model", .connections = 1, .tokens = 32,
    .prompt_bytes = 1000, .stagger = 1, .duration_s = 3, .warm_s = 0.5, .drain_s = 3, .timeout_s = 20, .rate = 100};

static struct {
    unsigned long started, ok, retried, unfinished, connections, reads, bytes, stalls;
    unsigned long tokens, tokens_measured, requests_measured;
    int64_t stall_ns;
    struct {
        unsigned long connect, http, close, count, done, timeout, order;
    } errors;
    int last_status;
    char error_body[ERROR_BODY_MAX];
} counts;

static struct {
    int64_t begin_ns, measured_from_ns, end_ns, last_ns; // last: what still runs then is unfinished
} plan;

static struct {
    histogram forward, ttft_overhead, ttft, token, gap, time_per_token, end_to_end, overhead;
} times;

// --------------------------------------------------------------------------------------------------- connections

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

static connection **connections;
static int *free_indexes, free_count; // mode=rate: connections without a request
static int busy_count;
static int64_t next_start_ns; // mode=stream, closed: no connection without a request is due earlier
static int epoll_fd;
static address target;
static char *request_template;
static int request_bytes, id_offset;

static int64_t overdue_ns[OVERDUE_MAX]; // mode=rate: intended times that wait for a free connection
static unsigned long overdue_first, overdue_end;

static int is_measured(const connection *c)
{
    return c->intended_ns >= plan.measured_from_ns;
}

static int in_window(int64_t ns)
{
    return ns >= plan.measured_from_ns && ns <= plan.end_ns;
}

static void watch(connection *c, int operation, int writable)
{
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &e);
}

static void close_socket(connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->connecting = 0;
}

static int open_socket(connection *c)
{
    counts.connections++;
    c->fd = socket(target.socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    set_nodelay(c->fd);
    c->connecting = connect(c->fd, (struct sockaddr *)&target.socket, target.length) < 0;
    if (c->connecting && errno != EINPROGRESS) {
        close_socket(c);
        counts.errors.connect++;
        return 0;
    }
    c->reused = 0;
    watch(c, EPOLL_CTL_ADD, c->connecting);
    return 1;
}

static void write_request(connection *c)
{
    while (c->out_sent < request_bytes) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, request_bytes - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                watch(c, EPOLL_CTL_MOD, 1);
            return; // a broken connection shows itself to the reader
        }
        c->out_sent += sent;
    }
}

static void expect_answer(connection *c)
{
    c->reading = HEAD;
    c->head_length = c->tail_length = c->chunk_line_length = 0;
    c->status = c->is_chunked = 0;
    c->keep_alive = 1;
    c->body_left = -1;
    c->stamp_reading = NO_STAMP;
    c->tokens = 0;
    c->host_received_ns = c->host_first_ns = c->host_last_ns = c->first_arrival_ns = c->last_arrival_ns = 0;
}

// The template with an id of its own: ids are spread, so that a cache's hash or a prefix tree sees different prompts.
static void fill_request(connection *c)
{
    char digits[ID_DIGITS + 1];
    if (!c->out)
        c->out = resized(NULL, request_bytes);
    memcpy(c->out, request_template, request_bytes);
    snprintf(digits, sizeof digits, "%010llu", (unsigned long long)(counts.started * 2654435761ULL % 10000000000ULL));
    memcpy(c->out + id_offset, digits, ID_DIGITS);
    c->out_sent = 0;
}

// Whether a complete answer is a right one; counts what is wrong with it.
static int check_answer(const connection *c)
{
    if (c->status < 200 || c->status >= 400) {
        counts.errors.http++;
        counts.last_status = c->status;
        return 0;
    }
    if (options.mode != MODE_STREAM)
        return 1;
    if (c->tokens != options.tokens) {
        counts.errors.count++;
        return 0;
    }
    if (!memmem(c->tail, c->tail_length, "[DONE]", 6)) {
        counts.errors.done++;
        return 0;
    }
    return 1;
}

static void record_answer(const connection *c, int64_t now)
{
    counts.ok++;
    if (in_window(now))
        counts.requests_measured++;
    if (!is_measured(c))
        return;
    record(&times.end_to_end, now - c->intended_ns);
    if (c->tokens > 1)
        record(&times.time_per_token, (c->last_arrival_ns - c->first_arrival_ns) / (c->tokens - 1));
    if (options.mode == MODE_STREAM || !c->host_received_ns)
        return;
    record(&times.forward, c->host_received_ns - c->sent_ns);
    record(&times.overhead, now - c->intended_ns - (c->host_first_ns - c->host_received_ns));
}

static void end_request(connection *c, int is_complete)
{
    int64_t now = now_ns();
    int is_right = is_complete && check_answer(c);
    c->busy = 0;
    busy_count--;
    if (is_right)
        record_answer(c, now);
    if (!is_right || !c->keep_alive)
        close_socket(c);
    if (options.mode == MODE_RATE) {
        free_indexes[free_count++] = c->index;
        return;
    }
    c->next_ns = now + options.gap_us * NS_PER_US + (is_right ? 0 : PAUSE_AFTER_ERROR_NS);
    if (c->next_ns < next_start_ns)
        next_start_ns = c->next_ns;
}

// Sends a request that should have gone out at `intended_ns`.
static void send_request(connection *c, int64_t intended_ns)
{
    if (!c->busy) {
        counts.started++;
        busy_count++;
    }
    c->busy = 1;
    c->intended_ns = intended_ns;
    expect_answer(c);
    fill_request(c);
    if (c->fd < 0 && !open_socket(c)) {
        end_request(c, 0);
        return;
    }
    c->sent_ns = now_ns();
    if (!c->connecting)
        write_request(c);
}

// ----------------------------------------------------------------------------------------------- reading answers

static void take_token(connection *c, int64_t written_ns, int64_t arrived_ns)
{
    if (written_ns < c->host_last_ns)
        counts.errors.order++;
    c->host_last_ns = written_ns;
    if (c->tokens == 0 && is_measured(c) && c->host_received_ns) {
        int64_t host_ns = written_ns - c->host_received_ns;
        record(&times.forward, c->host_received_ns - c->sent_ns);
        record(&times.ttft_overhead, arrived_ns - c->sent_ns - host_ns);
        record(&times.ttft, arrived_ns - c->sent_ns);
    }
    if (c->tokens && in_window(arrived_ns))
        record(&times.token, arrived_ns - written_ns);
    if (c->tokens && is_measured(c))
        record(&times.gap, arrived_ns - c->last_arrival_ns);
    if (in_window(arrived_ns))
        counts.tokens_measured++;
    if (c->tokens == 0)
        c->first_arrival_ns = arrived_ns;
    c->tokens++;
    counts.tokens++;
    c->last_arrival_ns = arrived_ns;
}

static void take_stamp(connection *c, int64_t arrived_ns)
{
    if (c->stamp_kind == 'r') {
        c->host_received_ns = c->stamp_ns;
        return;
    }
    if (!c->host_first_ns)
        c->host_first_ns = c->stamp_ns;
    if (options.mode == MODE_STREAM)
        take_token(c, c->stamp_ns, arrived_ns);
}

static const char *read_stamp_digits(connection *c, const char *p, const char *end, int64_t arrived_ns)
{
    while (p < end && c->stamp_digits < STAMP_DIGITS && *p >= '0' && *p <= '9') {
        c->stamp_ns = c->stamp_ns * 10 + (*p++ - '0');
        c->stamp_digits++;
    }
    if (c->stamp_digits == STAMP_DIGITS) {
        c->stamp_reading = NO_STAMP;
        take_stamp(c, arrived_ns);
    } else if (p < end) {
        c->stamp_reading = NO_STAMP;
    }
    return p;
}

static void find_stamps(connection *c, const char *p, const char *end, int64_t arrived_ns)
{
    while (p && p < end) {
        switch (c->stamp_reading) {
        case NO_STAMP:
            p = memchr(p, '~', end - p);
            if (p) {
                p++;
                c->stamp_reading = AFTER_TILDE;
            }
            break;
        case AFTER_TILDE:
            c->stamp_reading = NO_STAMP;
            if (*p == 't' || *p == 'r') {
                c->stamp_kind = *p++;
                c->stamp_reading = IN_DIGITS;
                c->stamp_ns = c->stamp_digits = 0;
            }
            break;
        case IN_DIGITS:
            p = read_stamp_digits(c, p, end, arrived_ns);
            break;
        }
    }
}

static void keep_tail(connection *c, const char *bytes, size_t length)
{
    if (length >= TAIL_BYTES) {
        memcpy(c->tail, bytes + length - TAIL_BYTES, TAIL_BYTES);
        c->tail_length = TAIL_BYTES;
        return;
    }
    int surplus = c->tail_length + (int)length - TAIL_BYTES;
    if (surplus > 0) {
        memmove(c->tail, c->tail + surplus, c->tail_length - surplus);
        c->tail_length -= surplus;
    }
    memcpy(c->tail + c->tail_length, bytes, length);
    c->tail_length += length;
}

// The beginning of the first error's body, made fit for a JSON string.
static void keep_error(const char *bytes, size_t length)
{
    if (counts.error_body[0])
        return;
    for (size_t i = 0; i < length && i < ERROR_BODY_MAX - 1; i++) {
        unsigned char ch = bytes[i];
        counts.error_body[i] = ch == '"' || ch == '\\' || ch < 32 || ch > 126 ? ' ' : ch;
    }
}

static void read_body(connection *c, const char *bytes, size_t length, int64_t arrived_ns)
{
    if (c->status >= 400)
        keep_error(bytes, length);
    keep_tail(c, bytes, length);
    find_stamps(c, bytes, bytes + length, arrived_ns);
}

// The value of a header in a head that ends in NUL; NULL when it is not there.
static const char *header_value(const char *head, const char *line_end_and_name)
{
    const char *line = strcasestr(head, line_end_and_name);
    if (!line)
        return NULL;
    line += strlen(line_end_and_name);
    return line + strspn(line, " ");
}

static void interpret_head(connection *c)
{
    const char *value;
    c->status = atoi(c->head + 9); // after "HTTP/1.1 "
    if ((value = header_value(c->head, "\r\ntransfer-encoding:")) && !strncasecmp(value, "chunked", 7))
        c->is_chunked = 1;
    else if ((value = header_value(c->head, "\r\ncontent-length:")))
        c->body_left = atoll(value);
    if ((value = header_value(c->head, "\r\nconnection:")) && !strncasecmp(value, "close", 5))
        c->keep_alive = 0;
    if (!strncmp(c->head, "HTTP/1.0", 8))
        c->keep_alive = 0;
}

static void begin_body(connection *c)
{
    if (c->is_chunked) {
        c->reading = CHUNK_SIZE;
    } else if (c->body_left >= 0) {
        c->reading = BODY_OF_LENGTH;
        if (!c->body_left)
            end_request(c, 1);
    } else {
        c->reading = BODY_TO_EOF;
        c->keep_alive = 0;
    }
}

static const char *read_head(connection *c, const char *p, const char *end)
{
    int before = c->head_length, room = HEAD_BYTES_MAX - 1 - before, length = end - p < room ? end - p : room;
    memcpy(c->head + before, p, length);
    c->head_length += length;
    c->head[c->head_length] = 0;
    char *head_end = strstr(c->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
    if (!head_end) {
        if (c->head_length >= HEAD_BYTES_MAX - 1) {
            counts.errors.close++;
            end_request(c, 0);
        }
        return p + length;
    }
    *head_end = 0;
    p += head_end + 4 - c->head - before;
    interpret_head(c);
    c->head_length = 0;
    if (c->status >= 200) // else an interim head; the real one follows
        begin_body(c);
    return p;
}

static const char *read_chunk_size(connection *c, const char *p)
{
    char ch = *p++;
    if (ch != '\n') {
        if (c->chunk_line_length < CHUNK_LINE_MAX - 1)
            c->chunk_line[c->chunk_line_length++] = ch;
        return p;
    }
    c->chunk_line[c->chunk_line_length] = 0;
    c->chunk_line_length = 0;
    c->chunk_left = strtoll(c->chunk_line, NULL, 16);
    c->reading = c->chunk_left ? CHUNK_DATA : TRAILERS;
    return p;
}

// After the last chunk: lines up to an empty one.
static const char *read_trailers(connection *c, const char *p)
{
    char ch = *p++;
    if (ch == '\n' && !c->chunk_line_length)
        end_request(c, 1);
    else if (ch == '\n')
        c->chunk_line_length = 0;
    else if (ch != '\r')
        c->chunk_line_length = 1;
    return p;
}

// Takes what belongs to a body part of which `*left` bytes are missing.
static const char *read_part(connection *c, const char *p, const char *end, int64_t *left, int64_t arrived_ns)
{
    int64_t length = end - p < *left ? end - p : *left;
    read_body(c, p, length, arrived_ns);
    *left -= length;
    return p + length;
}

static void read_answer(connection *c, const char *p, const char *end, int64_t arrived_ns)
{
    while (p < end && c->busy) {
        switch (c->reading) {
        case HEAD:
            p = read_head(c, p, end);
            break;
        case BODY_OF_LENGTH:
            p = read_part(c, p, end, &c->body_left, arrived_ns);
            if (!c->body_left)
                end_request(c, 1);
            break;
        case CHUNK_SIZE:
            p = read_chunk_size(c, p);
            break;
        case CHUNK_DATA:
            p = read_part(c, p, end, &c->chunk_left, arrived_ns);
            if (!c->chunk_left)
                c->reading = CHUNK_END;
            break;
        case CHUNK_END:
            if (*p++ == '\n')
                c->reading = CHUNK_SIZE;
            break;
        case TRAILERS:
            p = read_trailers(c, p);
            break;
        case BODY_TO_EOF:
            read_body(c, p, end - p, arrived_ns);
            p = end;
            break;
        }
    }
}

// A kept connection that the server closed before the answer's first byte: the request is sent again once, as by
// ordinary clients.
static int can_retry(const connection *c)
{
    return c->busy && c->reused && c->reading == HEAD && !c->head_length && !c->retried;
}

static void on_end_of_input(connection *c)
{
    if (c->busy && c->reading == BODY_TO_EOF) {
        end_request(c, 1);
        return;
    }
    if (can_retry(c)) {
        c->retried = 1;
        counts.retried++;
        close_socket(c);
        send_request(c, c->intended_ns);
        return;
    }
    close_socket(c);
    if (c->busy) {
        counts.errors.close++;
        end_request(c, 0);
    }
}

static void on_readable(connection *c)
{
    static char bytes[READ_BYTES];
    ssize_t got = recv(c->fd, bytes, sizeof bytes, 0);
    int64_t arrived_ns = now_ns();
    int one = 1;
    if (options.quickack)
        setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    if (got > 0) {
        counts.reads++;
        counts.bytes += got;
        c->reused = 1;
        read_answer(c, bytes, bytes + got, arrived_ns);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        on_end_of_input(c);
    }
}

static void on_writable(connection *c)
{
    int error = 0;
    socklen_t length = sizeof error;
    if (c->connecting) {
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        c->connecting = 0;
    }
    if (error) {
        close_socket(c);
        counts.errors.connect++;
        if (c->busy)
            end_request(c, 0);
        return;
    }
    watch(c, EPOLL_CTL_MOD, 0);
    if (c->busy)
        write_request(c);
}

// ------------------------------------------------------------------------------------------------------ the loop

static int may_start(int64_t now)
{
    return now < plan.end_ns && (!options.requests_max || (int64_t)counts.started < options.requests_max);
}

// mode=stream, closed: starts what is due. Returns how many connections are busy, lowers `*wake_ns` to the next start.
// Going through thousands of connections takes longer than reading a token, so it is done only when one is due.
static int start_next_requests(int64_t now, int64_t *wake_ns)
{
    if (now >= next_start_ns) {
        next_start_ns = INT64_MAX;
        for (int i = 0; i < options.connections && may_start(now); i++) {
            connection *c = connections[i];
            if (!c->busy && c->next_ns <= now) {
                c->retried = 0;
                send_request(c, now_ns());
            }
            if (!c->busy && c->next_ns < next_start_ns)
                next_start_ns = c->next_ns;
        }
    }
    if (next_start_ns < *wake_ns)
        *wake_ns = next_start_ns;
    return busy_count;
}

// mode=rate: the same for requests whose times are fixed beforehand.
static int start_intended_requests(int64_t now, int64_t *wake_ns)
{
    static int64_t next_ns;
    if (!next_ns)
        next_ns = plan.begin_ns + FIRST_REQUEST_AFTER_NS;
    for (; next_ns <= now && next_ns < plan.end_ns && overdue_end - overdue_first < OVERDUE_MAX;
         next_ns += NS_PER_S / options.rate)
        overdue_ns[overdue_end++ % OVERDUE_MAX] = next_ns;
    while (overdue_first < overdue_end && free_count) {
        connection *c = connections[free_indexes[--free_count]];
        c->retried = 0;
        send_request(c, overdue_ns[overdue_first++ % OVERDUE_MAX]);
    }
    if (next_ns < plan.end_ns && next_ns < *wake_ns)
        *wake_ns = next_ns;
    return options.connections - free_count + (overdue_end > overdue_first);
}

static void end_timed_out_requests(int64_t now)
{
    static int64_t last_scan_ns;
    if (now - last_scan_ns < TIMEOUT_SCAN_NS)
        return;
    last_scan_ns = now;
    for (int i = 0; i < options.connections; i++) {
        connection *c = connections[i];
        if (!c->busy || now - c->sent_ns < options.timeout_s * NS_PER_S)
            continue;
        counts.errors.timeout++;
        close_socket(c);
        end_request(c, 0);
    }
}

static int wait_for_events(struct epoll_event *events, int64_t wake_ns)
{
    int64_t called_ns = now_ns(), wait_ns = wake_ns - called_ns;
    wait_ns = wait_ns < 0 ? 0 : wait_ns > WAIT_MAX_NS ? WAIT_MAX_NS : wait_ns;
    struct timespec limit = {wait_ns / NS_PER_S, wait_ns % NS_PER_S};
    int count = epoll_pwait2(epoll_fd, events, EVENTS_PER_TURN, &limit, NULL);
    int64_t late_ns = now_ns() - called_ns - wait_ns;
    if (late_ns > STALL_NS) {
        counts.stall_ns += late_ns;
        counts.stalls++;
    }
    return count;
}

static void handle_events(const struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        connection *c = events[i].data.ptr;
        if (c->fd >= 0 && (events[i].events & EPOLLOUT))
            on_writable(c);
        if (c->fd >= 0 && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            on_readable(c);
    }
}

static void run(void)
{
    static struct epoll_event events[EVENTS_PER_TURN];
    for (;;) {
        int64_t now = now_ns(), wake_ns = now < plan.end_ns ? plan.end_ns : plan.last_ns;
        int busy = options.mode == MODE_RATE ? start_intended_requests(now, &wake_ns)
                                             : start_next_requests(now, &wake_ns);
        if (now >= plan.last_ns || (!busy && !may_start(now)))
            return;
        end_timed_out_requests(now);
        handle_events(events, wait_for_events(events, wake_ns));
    }
}

// ----------------------------------------------------------------------------------------- preparing and reporting

static char *prompt_text(void)
{
    const char *words = "the quick brown fox jumps over a lazy dog and then ";
    char *prompt = resized(NULL, options.prompt_bytes + 1);
    for (int i = 0; i < options.prompt_bytes; i++)
        prompt[i] = words[i % strlen(words)];
    prompt[options.prompt_bytes] = 0;
    return prompt;
}

static int put_embeddings_body(char *out, const char *prompt)
{
    return sprintf(out, "{\"model\":\"%s\",\"input\":\"0000000000 [[mock ttft=%lld n=1]] %s\"}", options.model,
        (long long)options.ttft_us, prompt);
}

static int put_chat_body(char *out, const char *prompt)
{
    return sprintf(out,
        "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
        "{\"role\":\"user\",\"content\":\"0000000000 [[mock n=%lld ttft=%lld itl=%lld sync=%lld]] %s\"}],"
        "\"max_tokens\":%lld,\"temperature\":0.7%s}",
        options.model, (long long)options.tokens, (long long)options.ttft_us, (long long)options.itl_us,
        (long long)options.in_sync, prompt, (long long)options.tokens,
        options.mode == MODE_STREAM ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
}

static void prepare_request(void)
{
    char *prompt = prompt_text(), *body = resized(NULL, options.prompt_bytes + 2048);
    int body_bytes = options.embeddings ? put_embeddings_body(body, prompt) : put_chat_body(body, prompt);
    request_template = resized(NULL, body_bytes + 8192);
    request_bytes = sprintf(request_template,
        "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: loadgen/1\r\nAccept: */*\r\nContent-Type: application/json\r\n"
        "%s%sContent-Length: %d\r\n\r\n",
        options.path, target.socket.ss_family == AF_UNIX ? "localhost" : options.target,
        strcasestr(options.headers, "authorization:") ? "" : "Authorization: Bearer sk-bench\r\n", options.headers,
        body_bytes);
    memcpy(request_template + request_bytes, body, body_bytes);
    request_bytes += body_bytes;
    id_offset = (char *)memmem(request_template, request_bytes, "0000000000 [[mock", 17) - request_template;
    free(body);
    free(prompt);
}

// When the i-th connection sends its first request. Paced streams spread over 60 % of the warm-up and one token
// interval, so that tokens come evenly; others over 2 ms.
static int64_t first_start_ns(int i)
{
    int64_t spread_ns = 0;
    if (options.stagger && options.connections > 1)
        spread_ns = options.itl_us > 0 ? options.warm_s * 0.6 * NS_PER_S + options.itl_us * NS_PER_US : 2 * NS_PER_MS;
    return plan.begin_ns + FIRST_REQUEST_AFTER_NS + spread_ns * i / options.connections;
}

static void prepare_connections(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = zeroed(options.connections, sizeof *connections);
    free_indexes = zeroed(options.connections, sizeof *free_indexes);
    for (int i = options.connections - 1; i >= 0; i--) {
        connections[i] = zeroed(1, sizeof **connections);
        connections[i]->index = i;
        connections[i]->fd = -1;
        if (options.mode == MODE_RATE)
            free_indexes[free_count++] = i;
    }
    plan.begin_ns = now_ns();
    plan.measured_from_ns = plan.begin_ns + (int64_t)(options.warm_s * NS_PER_S);
    plan.end_ns = plan.begin_ns + (int64_t)(options.duration_s * NS_PER_S);
    plan.last_ns = plan.end_ns + (int64_t)(options.drain_s * NS_PER_S);
    for (int i = 0; i < options.connections && options.mode != MODE_RATE; i++) {
        open_socket(connections[i]);
        connections[i]->next_ns = first_start_ns(i);
    }
}

static void count_unfinished(void)
{
    counts.unfinished = overdue_end - overdue_first;
    for (int i = 0; i < options.connections; i++)
        counts.unfinished += connections[i]->busy;
}

static void report(void)
{
    double window_s = (plan.end_ns - plan.measured_from_ns) / 1e9;
    printf("{");
    print_histogram("fwd", &times.forward);
    print_histogram("ttft_over", &times.ttft_overhead);
    print_histogram("ttft", &times.ttft);
    print_histogram("tok", &times.token);
    print_histogram("gap", &times.gap);
    print_histogram("tpot", &times.time_per_token);
    print_histogram("e2e", &times.end_to_end);
    print_histogram("over", &times.overhead);
    if (options.buckets) {
        printf("\"buckets\":{");
        print_buckets("ttft_over", &times.ttft_overhead, ",");
        print_buckets("tok", &times.token, ",");
        print_buckets("over", &times.overhead, "},");
    }
    printf("\"started\":%lu,\"ok\":%lu,\"win_s\":%.3f,\"tokens_win\":%lu,\"tokens_all\":%lu,\"req_win\":%lu,",
        counts.started, counts.ok, window_s, counts.tokens_measured, counts.tokens, counts.requests_measured);
    printf("\"tok_s\":%.1f,\"req_s\":%.1f,\"conns\":%lu,\"stall_ms\":%.1f,\"stalls\":%lu,\"reads\":%lu,\"bytes\":%lu,",
        counts.tokens_measured / window_s, counts.requests_measured / window_s, counts.connections,
        counts.stall_ns / 1e6, counts.stalls, counts.reads, counts.bytes);
    printf("\"unfinished\":%lu,\"retried\":%lu,", counts.unfinished, counts.retried);
    printf("\"errors\":{\"connect\":%lu,\"http\":%lu,\"close\":%lu,\"count\":%lu,", counts.errors.connect,
        counts.errors.http, counts.errors.close, counts.errors.count);
    printf("\"done\":%lu,\"timeout\":%lu,\"order\":%lu},", counts.errors.done, counts.errors.timeout,
        counts.errors.order);
    printf("\"last_status\":%d,\"errbody\":\"%s\"}\n", counts.last_status, counts.error_body);
}

// ------------------------------------------------------------------------------------------------- the command line

static void add_header(const char *header)
{
    size_t used = strlen(options.headers);
    int length = snprintf(options.headers + used, sizeof options.headers - used, "%s\r\n", header);
    if ((size_t)length >= sizeof options.headers - used)
        die("hdr=%s: headers have at most %zu bytes", header, sizeof options.headers);
}

static enum mode mode_of(const char *name)
{
    if (!strcmp(name, "stream"))
        return MODE_STREAM;
    if (!strcmp(name, "closed"))
        return MODE_CLOSED;
    if (!strcmp(name, "rate"))
        return MODE_RATE;
    die("mode=%s: expected stream, closed or rate", name);
}

static int set_text(const char *name, const char *value)
{
    struct {
        const char *name;
        char *text;
        size_t capacity;
    } texts[] = {{"target", options.target, sizeof options.target}, {"path", options.path, sizeof options.path},
        {"model", options.model, sizeof options.model}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(name, texts[i].name)) {
            snprintf(texts[i].text, texts[i].capacity, "%s", value);
            return 1;
        }
    return 0;
}

static int set_number(const char *name, const char *value)
{
    struct {
        const char *name;
        int64_t *number;
    } numbers[] = {{"conc", &options.connections}, {"n", &options.tokens}, {"ttft", &options.ttft_us},
        {"itl", &options.itl_us}, {"sync", &options.in_sync}, {"prompt", &options.prompt_bytes},
        {"embed", &options.embeddings}, {"quickack", &options.quickack}, {"stagger", &options.stagger},
        {"gap", &options.gap_us}, {"maxreq", &options.requests_max}, {"buckets", &options.buckets}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) {
            *numbers[i].number = atoll(value);
            return 1;
        }
    return 0;
}

static int set_seconds_or_rate(const char *name, const char *value)
{
    struct {
        const char *name;
        double *number;
    } numbers[] = {{"dur", &options.duration_s}, {"warm", &options.warm_s}, {"rate", &options.rate},
        {"drain", &options.drain_s}, {"timeout", &options.timeout_s}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) {
            *numbers[i].number = atof(value);
            return 1;
        }
    return 0;
}

static void read_argument(char *argument)
{
    char *value = strchr(argument, '=');
    if (!value)
        die("%s: expected NAME=VALUE", argument);
    *value++ = 0;
    if (!strcmp(argument, "hdr"))
        add_header(value);
    else if (!strcmp(argument, "mode"))
        options.mode = mode_of(value);
    else if (!set_text(argument, value) && !set_number(argument, value) && !set_seconds_or_rate(argument, value))
        die("%s: not an option of the load generator", argument);
}

int main(int argc, char **argv)
{
    start_measuring_process();
    for (int i = 1; i < argc; i++)
        read_argument(argv[i]);
    if (!options.target[0])
        die("target=HOST:PORT or target=unix:/path is needed");
    if (options.connections < 1 || options.rate <= 0 || options.prompt_bytes < 0)
        die("conc must be at least 1, rate above 0, prompt at least 0");
    if (options.embeddings && !strcmp(options.path, "/v1/chat/completions"))
        strcpy(options.path, "/v1/embeddings");
    target = address_of(options.target);
    prepare_request();
    prepare_connections();
    run();
    count_unfinished();
    report();
    return 0;
}
