// The load generator's requests: their text, their sockets, how they are sent and how they end.
#include "loadgen.h"

enum { ID_DIGITS = 10 };

int busy_count;

static address target;
static char *request_template;
static int request_bytes, id_offset;

// ---------------------------------------------------------------------------------------------------- their text

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

void prepare_request(void)
{
    target = address_of(options.target);
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

// ------------------------------------------------------------------------------------------------------- sockets

void watch(connection *c, int operation, int writable)
{
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &e);
}

void close_socket(connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->connecting = 0;
}

int open_socket(connection *c)
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

void write_request(connection *c)
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

// --------------------------------------------------------------------------------------------- beginning and end

// Sends a request that should have gone out at `intended_ns`.
void send_request(connection *c, int64_t intended_ns)
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

void end_request(connection *c, int is_complete)
{
    int64_t now = now_ns();
    int is_right = is_complete && check_answer(c);
    c->busy = 0;
    busy_count--;
    if (is_right)
        record_answer(c, now);
    if (!is_right || !c->keep_alive)
        close_socket(c);
    leave_free(c, now, is_right);
}
