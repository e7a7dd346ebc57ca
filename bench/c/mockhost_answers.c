// Answers: streams of tokens, whole completions, embeddings.
#include "mockhost.h"

enum {
    EVENT_BYTES_MAX = 1024, // one server-sent event: ids and names have bounds, so it fits
    WRITE_BYTES_MAX = 8192, // head and all events that go out together with a token
};

static void append(buffer *b, const char *bytes, size_t length)
{
    if (b->length + length > b->capacity)
        b->bytes = resized(b->bytes, b->capacity = (b->length + length) * 2);
    memcpy(b->bytes + b->length, bytes, length);
    b->length += length;
}

static enum sent send_bytes(connection *c, const char *bytes, size_t length)
{
    if (c->out.length == c->out_sent) {
        c->out.length = c->out_sent = 0;
        ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            close_connection(c);
            return ENDED;
        }
        if (sent < 0)
            sent = 0;
        if ((size_t)sent == length)
            return SENT_ALL;
        bytes += sent;
        length -= sent;
    }
    append(&c->out, bytes, length);
    watch_writable(c, 1);
    return SENT_PART;
}

void end_answer(connection *c)
{
    c->busy = 0;
    busy_count--;
    if (c->phase) { // models, stats and the like take no slot
        note_finished(c);
        free_slot(c);
    }
    if (c->close_after) {
        shutdown(c->fd, SHUT_WR);
        close_connection(c);
        return;
    }
    idle_append(c);
    if (!c->parsing) // else the loop that called us goes on with what is there
        take_requests(c);
}

static void write_stamp(char *digits, int64_t value_ns)
{
    for (int i = STAMP_DIGITS - 1; i >= 0; i--, value_ns /= 10)
        digits[i] = '0' + value_ns % 10;
}

static size_t put_chunk(char *out, const char *payload, size_t length)
{
    size_t used = sprintf(out, "%zx\r\n", length);
    memcpy(out + used, payload, length);
    memcpy(out + used + length, "\r\n", 2);
    return used + length + 2;
}

static const char *object_name(const connection *c)
{
    return c->is_chat ? "chat.completion.chunk" : "text_completion";
}

// One event with one choice, as an HTTP chunk. `piece` is the choice's own part: `"delta":{…}` or `"text":"…"`.
static size_t put_event(const connection *c, char *out, const char *piece, const char *finish_reason)
{
    char event[EVENT_BYTES_MAX];
    int length = snprintf(event, sizeof event,
        "data: {\"id\":\"%s\",\"object\":\"%s\",\"created\":%ld,\"model\":\"%s\",\"choices\":[{\"index\":0,%s,"
        "\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
        c->id, object_name(c), (long)time(NULL), c->model, piece, finish_reason);
    return put_chunk(out, event, length);
}

static size_t put_text_event(const connection *c, char *out, const char *text)
{
    char piece[256];
    snprintf(piece, sizeof piece, c->is_chat ? "\"delta\":{\"content\":\"%s\"}" : "\"text\":\"%s\"", text);
    return put_event(c, out, piece, "null");
}

static size_t put_usage_event(const connection *c, char *out)
{
    char event[EVENT_BYTES_MAX];
    int length = snprintf(event, sizeof event,
        "data: {\"id\":\"%s\",\"object\":\"%s\",\"created\":%ld,\"model\":\"%s\",\"choices\":[],"
        "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
        c->id, object_name(c), (long)time(NULL), c->model, c->token_count, 200 + c->token_count);
    return put_chunk(out, event, length);
}

static void prepare_token_chunk(connection *c)
{
    char chunk[EVENT_BYTES_MAX + 64];
    size_t length = put_text_event(c, chunk, " tok~t0000000000000000000");
    c->token_chunk.length = 0;
    append(&c->token_chunk, chunk, length);
    c->stamp_offset = (char *)memmem(c->token_chunk.bytes, length, "~t", 2) + 2 - c->token_chunk.bytes;
}

static size_t put_first_token(connection *c, char *out, int64_t now)
{
    char text[64];
    size_t used = sprintf(out,
        "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: mock\r\n"
        "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        "%stransfer-encoding: chunked\r\n\r\n",
        c->promise_keep_alive ? "keep-alive: timeout=5, max=100\r\n" : "");
    if (c->is_chat)
        used += put_event(c, out + used, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}", "null");
    sprintf(text, " tok~r%019lld~t%019lld", (long long)c->received_ns, (long long)now);
    used += put_text_event(c, out + used, text);
    prepare_token_chunk(c);
    return used;
}

static size_t put_stream_end(connection *c, char *out)
{
    size_t used = put_event(c, out, c->is_chat ? "\"delta\":{}" : "\"text\":\"\"", "\"stop\"");
    if (c->wants_usage)
        used += put_usage_event(c, out + used);
    used += put_chunk(out + used, "data: [DONE]\n\n", 14);
    memcpy(out + used, "0\r\n\r\n", 5);
    return used + 5;
}

// Writes one token, one write() each; with the last one the stream ends. ENDED: nothing more is to be written.
enum sent write_token(connection *c)
{
    int is_first = c->tokens_written == 0, is_last = c->tokens_written + 1 >= c->token_count;
    int64_t now = now_ns();
    char out[WRITE_BYTES_MAX];
    size_t used = 0;

    c->recent_ns[c->tokens_written++ % RECENT_TOKENS] = now;
    token_total++;
    if (c->left_ns)
        stats.tokens_after_left++;
    if (is_first) {
        used = put_first_token(c, out, now);
    } else {
        write_stamp(c->token_chunk.bytes + c->stamp_offset, now);
        if (!is_last)
            return send_bytes(c, c->token_chunk.bytes, c->token_chunk.length);
        memcpy(out, c->token_chunk.bytes, used = c->token_chunk.length);
    }
    if (!is_last)
        return send_bytes(c, out, used);

    used += put_stream_end(c, out + used);
    c->answer = FLUSHING;
    ready_remove(c);
    if (send_bytes(c, out, used) == SENT_ALL)
        end_answer(c);
    return ENDED;
}

static void schedule_next_token(connection *c)
{
    if (c->itl_ns <= 0) {
        ready_add(c);
        return;
    }
    c->due_ns = c->in_sync ? (now_ns() / c->itl_ns + 1) * c->itl_ns : c->due_ns + c->itl_ns;
    timer_start(c);
}

// Writes a token and arranges the next: a paced stream keeps its times even when its reader is slow.
void step_stream(connection *c)
{
    enum sent sent = write_token(c);
    if (sent == SENT_ALL || (sent == SENT_PART && c->itl_ns > 0))
        schedule_next_token(c);
}

void answer_json(connection *c, const char *status, const char *body, size_t length)
{
    char head[256];
    int head_length = snprintf(head, sizeof head,
        "HTTP/1.1 %s\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: mock\r\ncontent-type: application/json\r\n"
        "%scontent-length: %zu\r\n\r\n",
        status, options.close_streams ? "keep-alive: timeout=5, max=100\r\n" : "", length);
    char *out = resized(NULL, head_length + length);
    memcpy(out, head, head_length);
    memcpy(out + head_length, body, length);
    c->answer = FLUSHING;
    enum sent sent = send_bytes(c, out, head_length + length);
    free(out);
    if (sent == SENT_ALL)
        end_answer(c);
}

static size_t put_embedding(const connection *c, char *out, size_t capacity)
{
    size_t used = snprintf(out, capacity,
        "{\"object\":\"list\",\"mock\":\"~r%019lld~t%019lld\",\"data\":[{\"object\":\"embedding\",\"index\":0,"
        "\"embedding\":[",
        (long long)c->received_ns, (long long)now_ns());
    for (int i = 0; i < options.embedding_size; i++)
        used += sprintf(out + used, "%s0.%06d", i ? "," : "", (i * 7919) % 1000000);
    return used + sprintf(out + used,
        "]}],\"model\":\"%s\",\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}}", c->model);
}

static size_t put_completion(const connection *c, char *out, size_t capacity)
{
    size_t used = snprintf(out, capacity,
        "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%ld,\"model\":\"%s\",\"choices\":[{\"index\":0,"
        "%s~r%019lld~t%019lld",
        c->id, c->is_chat ? "chat.completion" : "text_completion", (long)time(NULL), c->model,
        c->is_chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"text\":\"", (long long)c->received_ns,
        (long long)now_ns());
    for (int i = 0; i < c->token_count; i++, used += 4)
        memcpy(out + used, " tok", 4);
    return used + sprintf(out + used,
        "\"%s,\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":%d,\"total_tokens\":%d}}",
        c->is_chat ? "}" : "", c->token_count, 200 + c->token_count);
}

void answer_whole(connection *c)
{
    size_t capacity = 2048 + (size_t)c->token_count * 4 + (size_t)options.embedding_size * 12;
    char *body = resized(NULL, capacity);
    size_t length = c->is_embedding ? put_embedding(c, body, capacity) : put_completion(c, body, capacity);
    token_total += c->token_count;
    answer_json(c, "200 OK", body, length);
    free(body);
}
