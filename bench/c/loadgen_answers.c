// Reading answers: HTTP, the host's time stamps in bodies, and whether an answer is a right one.
#include "loadgen.h"

enum { READ_BYTES = 1 << 18 };

void expect_answer(connection *c)
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

// Whether a complete answer is a right one; counts what is wrong with it.
int check_answer(const connection *c)
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

void record_answer(const connection *c, int64_t now)
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

// -------------------------------------------------------------------------------------------------------- stamps

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

// -------------------------------------------------------------------------------------------------- HTTP answers

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

// ------------------------------------------------------------------------------------------------------- sockets

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

void on_readable(connection *c)
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

void on_writable(connection *c)
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
