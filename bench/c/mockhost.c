// mockhost: a cheap mock model host (OpenAI-compatible), one thread, epoll.
//
//   mockhost listen=127.0.0.1:8101 listen=unix:/tmp/h.sock [model=mock-model] [n=64] [ttft=0] [itl=0] [dim=64]
//            [close=0] [idle=MS] [slots=0] [prefill_us=0]
//
// Each listen= is an "instance" with slots of its own; port 0 takes a free one. When all are ready, one line
// "listening ADDRESS" is printed for each. Times are in microseconds unless said.
//
// Settings of one request, the first found wins:
//   1. the text "[[mock n=64 ttft=2000 itl=20000 sync=0 close=0 id=7]]" anywhere in the request's body, which survives
//      every proxy that writes the body anew
//   2. the headers x-mock-tokens, x-mock-ttft-us, x-mock-itl-us, x-mock-sync
//   3. "max_tokens" or "max_completion_tokens", for the count
//   4. the command line, or MOCK_N, MOCK_TTFT_US, MOCK_ITL_US in the environment
// sync=1: a token's time is a multiple of itl on the clock, so that all streams' tokens come in one burst, as an
// engine's do. Every token's text holds "~t" and 19 digits: CLOCK_MONOTONIC ns just before its write(); the first
// token's also "~r" and 19 digits: when the request's last byte had been read.
//
// close=1, as llama.cpp's server: after a streamed answer the connection is closed without "Connection: close" (the
//   head even promises "keep-alive: timeout=5, max=100"); whole answers keep it. A connection idle for idle=5000 ms is
//   closed (idle=0: never; without close the default is never).
// slots=N: at most N answers at once per instance. Further requests wait in silence (no head, no byte), first come
//   first served; ttft counts from the start. A waiting request whose client has closed stays in the queue, is started
//   all the same, holds its slot for prefill_us and is dropped only then; so does one whose client closes within
//   prefill_us of its start. Such an answer to nobody is a "ghost".
//
// GET /set?close=1&slots=8&prefill_us=20000&idle=0   the same at run time, for all instances
// GET /stats[?reset=1][&cancels=1]                   counts, as JSON
// GET /left?id=ID&t=NS    a test says when (CLOCK_MONOTONIC ns) the client of request ID left, so that /stats can say
//                         how long it took until this host noticed. ID: "id=" inside [[mock ]], or the digits just
//                         before it.
#include "mockhost.h"

enum {
    EVENTS_PER_TURN = 512,
    READ_BYTES = 16384, // free space kept for each recv
    IDLE_MS_WHEN_CLOSING = 5000,
};

struct options options = {.token_count = 64, .idle_ms = -1, .embedding_size = 64, .model = "mock-model"};
struct stats stats;
instance instances[INSTANCES_MAX];
int instance_count;
unsigned long request_count, token_total;
long busy_count;

static int epoll_fd;

// --------------------------------------------------------------------------------------------------- sockets

void watch_writable(connection *c, int wanted)
{
    if (c->wants_write == wanted)
        return;
    c->wants_write = wanted;
    struct epoll_event e = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static void on_readable(connection *c)
{
    for (;;) {
        if (c->in.capacity - c->in.length < READ_BYTES)
            c->in.bytes = resized(c->in.bytes, c->in.capacity = c->in.capacity ? c->in.capacity * 2 : 2 * READ_BYTES);
        ssize_t got = recv(c->fd, c->in.bytes + c->in.length, c->in.capacity - c->in.length - 1, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            close_connection(c);
            return;
        }
        if (got < 0)
            return;
        c->in.length += got;
        c->in.bytes[c->in.length] = 0;
        int was_full = c->in.length >= c->in.capacity - 1;
        if (!c->busy)
            take_requests(c);
        if (c->dead || !was_full)
            return;
    }
}

static void on_writable(connection *c)
{
    while (c->out_sent < c->out.length) {
        ssize_t sent = send(c->fd, c->out.bytes + c->out_sent, c->out.length - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                close_connection(c);
            return;
        }
        c->out_sent += sent;
    }
    c->out.length = c->out_sent = 0;
    watch_writable(c, 0);
    if (!c->busy)
        return;
    if (c->answer == FLUSHING)
        end_answer(c);
    else if (c->answer == STREAM && c->tokens_written && c->itl_ns <= 0)
        ready_add(c);
}

static void accept_all(connection *listener)
{
    int fd;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        connection *c = zeroed(1, sizeof *c);
        set_nodelay(fd);
        c->fd = fd;
        c->instance = listener->instance;
        c->heap_index = c->ready_index = -1;
        instances[c->instance].connections++;
        instances[c->instance].open++;
        idle_append(c);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

// Tells the instances' addresses, once all options are known to be good. Port 0 has become a real one.
static void announce_instances(void)
{
    for (int i = 0; i < instance_count; i++) {
        instance *host = &instances[i];
        struct sockaddr_in bound;
        socklen_t length = sizeof bound;
        if (strncmp(host->name, "unix:", 5)) {
            getsockname(host->listener_fd, (struct sockaddr *)&bound, &length);
            inet_ntop(AF_INET, &bound.sin_addr, host->name, sizeof host->name);
            sprintf(host->name + strlen(host->name), ":%d", ntohs(bound.sin_port));
        }
        printf("listening %s\n", host->name);
    }
    fflush(stdout);
}

static void listen_on(const char *where)
{
    address a = address_of(where);
    connection *listener = zeroed(1, sizeof *listener);
    int one = 1;
    if (instance_count == INSTANCES_MAX)
        die("listen=%s: at most %d instances", where, INSTANCES_MAX);
    listener->is_listener = 1;
    listener->instance = instance_count++;
    listener->fd = socket(a.socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (a.socket.ss_family == AF_UNIX)
        unlink(where + 5);
    setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener->fd, (struct sockaddr *)&a.socket, a.length) || listen(listener->fd, 4096))
        die("listen=%s: %s", where, strerror(errno));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener->fd, &e);
    instances[listener->instance].listener_fd = listener->fd;
    snprintf(instances[listener->instance].name, sizeof instances->name, "%s", where);
}

// -------------------------------------------------------------------------------------------------- the loop

int64_t idle_limit_ns(void)
{
    int64_t ms = options.idle_ms >= 0 ? options.idle_ms : options.close_streams ? IDLE_MS_WHEN_CLOSING : 0;
    return ms * NS_PER_MS;
}

// Nanoseconds until the next timer, 0 with a stream that can write now, -1 for ever.
static int64_t wait_ns(void)
{
    connection *due = first_due(), *idle = first_idle();
    int64_t next_ns = due ? due->due_ns : INT64_MAX, limit_ns = idle_limit_ns();
    if (ready_total())
        return 0;
    if (limit_ns && idle && idle->idle_since_ns + limit_ns < next_ns)
        next_ns = idle->idle_since_ns + limit_ns;
    if (next_ns == INT64_MAX)
        return -1;
    int64_t left_ns = next_ns - now_ns();
    return left_ns > 0 ? left_ns : 0;
}

static void handle_event(const struct epoll_event *e)
{
    connection *c = e->data.ptr;
    if (c->is_listener) {
        accept_all(c);
        return;
    }
    if (!c->dead && (e->events & EPOLLOUT))
        on_writable(c);
    if (!c->dead && (e->events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        on_readable(c);
}

static void run_due_timers(void)
{
    int64_t now = now_ns();
    for (connection *c; (c = first_due()) && c->due_ns <= now;) {
        timer_stop(c);
        if (c->is_ghost) {
            drop_ghost(c);
        } else if (c->answer == WHOLE) {
            answer_whole(c);
        } else {
            step_stream(c);
        }
    }
}

// One token from every unpaced stream. Backwards, because writing can remove the stream, and others, from the list.
static void run_ready_streams(void)
{
    for (int i = ready_total() - 1; i >= 0; i--) {
        if (i >= ready_total())
            continue;
        connection *c = ready_at(i);
        if (c->out.length > c->out_sent || write_token(c) == SENT_PART)
            ready_remove(c); // comes back when the socket has taken what waits
    }
}

static void close_idle_connections(void)
{
    int64_t limit_ns = idle_limit_ns(), now = now_ns();
    for (connection *c; limit_ns && (c = first_idle()) && c->idle_since_ns + limit_ns <= now;) {
        idle_remove(c);
        if (c->in.length) // half a request has come
            continue;
        instances[c->instance].closed_idle++;
        close_connection(c);
    }
}

static void run_turn(void)
{
    static struct epoll_event events[EVENTS_PER_TURN];
    int64_t wait = wait_ns();
    struct timespec limit = {wait / NS_PER_S, wait % NS_PER_S};
    int count = epoll_pwait2(epoll_fd, events, EVENTS_PER_TURN, wait < 0 ? NULL : &limit, NULL);
    for (int i = 0; i < count; i++)
        handle_event(&events[i]);
    run_due_timers();
    run_ready_streams();
    close_idle_connections();
    fill_free_slots();
    empty_graveyard();
}

static int set_option(const char *name, const char *value)
{
    if (!strcmp(name, "close"))
        options.close_streams = atoi(value);
    else if (!strcmp(name, "idle"))
        options.idle_ms = atoll(value);
    else if (!strcmp(name, "slots"))
        options.slots = atoi(value);
    else if (!strcmp(name, "prefill_us"))
        options.prefill_us = atoll(value);
    else
        return 0;
    note_slots_changed();
    return 1;
}

void set_options(char *query)
{
    char *rest = NULL;
    for (char *pair = strtok_r(query, "&", &rest); pair; pair = strtok_r(NULL, "&", &rest)) {
        char *equals = strchr(pair, '=');
        if (!equals)
            continue;
        *equals = 0;
        set_option(pair, equals + 1);
    }
}

static void read_environment(void)
{
    struct {
        const char *name;
        int64_t *value;
    } numbers[] = {
        {"MOCK_N", &options.token_count}, {"MOCK_TTFT_US", &options.ttft_us}, {"MOCK_ITL_US", &options.itl_us}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const char *value = getenv(numbers[i].name);
        if (value)
            *numbers[i].value = atoll(value);
    }
}

static void read_argument(char *argument)
{
    char *value = strchr(argument, '=');
    if (!value)
        die("%s: expected NAME=VALUE", argument);
    *value++ = 0;
    if (!strcmp(argument, "listen"))
        listen_on(value);
    else if (!strcmp(argument, "model"))
        snprintf(options.model, sizeof options.model, "%s", value);
    else if (!strcmp(argument, "n"))
        options.token_count = atoll(value);
    else if (!strcmp(argument, "ttft"))
        options.ttft_us = atoll(value);
    else if (!strcmp(argument, "itl"))
        options.itl_us = atoll(value);
    else if (!strcmp(argument, "dim"))
        options.embedding_size = atoi(value);
    else if (!set_option(argument, value))
        die("%s: not an option of the mock host", argument);
}

int main(int argc, char **argv)
{
    start_measuring_process();
    read_environment();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 1; i < argc; i++)
        read_argument(argv[i]);
    if (!instance_count)
        die("listen=ADDRESS is needed at least once");
    announce_instances();
    for (;;)
        run_turn();
}
