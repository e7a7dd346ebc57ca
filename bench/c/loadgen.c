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
#include "loadgen.h"

enum {
    EVENTS_PER_TURN = 1024,
    OVERDUE_MAX = 1 << 20, // power of two; intended times of requests that found no free connection
};

#define FIRST_REQUEST_AFTER_NS (20 * NS_PER_MS) // all connections stand before the first request
#define PAUSE_AFTER_ERROR_NS (5 * NS_PER_MS)
#define TIMEOUT_SCAN_NS (200 * NS_PER_MS)
#define WAIT_MAX_NS (10 * NS_PER_MS)
#define STALL_NS (20 * NS_PER_MS) // woken so late: the whole machine stood still, nothing else holds this core so long

struct counts counts;
struct plan plan;
struct times times;
int epoll_fd;

static connection **connections;
static int *free_indexes, free_count; // mode=rate: connections without a request
static int64_t next_start_ns; // mode=stream, closed: no connection without a request is due earlier

static int64_t overdue_ns[OVERDUE_MAX]; // mode=rate: intended times that wait for a free connection
static unsigned long overdue_first, overdue_end;

// -------------------------------------------------------------------------------------------- which one sends when

// A connection's request has ended: has it send the next one.
void leave_free(connection *c, int64_t now, int is_right)
{
    if (options.mode == MODE_RATE) {
        free_indexes[free_count++] = c->index;
        return;
    }
    c->next_ns = now + options.gap_us * NS_PER_US + (is_right ? 0 : PAUSE_AFTER_ERROR_NS);
    if (c->next_ns < next_start_ns)
        next_start_ns = c->next_ns;
}

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

// ------------------------------------------------------------------------------------------------------ the loop

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

int main(int argc, char **argv)
{
    start_measuring_process();
    read_options(argc, argv);
    prepare_request();
    prepare_connections();
    run();
    count_unfinished();
    report();
    return 0;
}
