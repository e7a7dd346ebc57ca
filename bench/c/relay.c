// relay: the cheapest hop there is, the floor that proxies are compared with.
//
//   relay listen=127.0.0.1:8200 host=127.0.0.1:8101 host=127.0.0.1:8102
//
// Each accepted connection gets one to the next host, and bytes are copied both ways. One thread, epoll; nothing is
// parsed, so a connection stays with its host. A side that takes no more bytes is waited for, and everybody with it:
// the clients that measure always read.
#include "common.h"

enum { HOSTS_MAX = 16, EVENTS_PER_TURN = 512, BACKLOG = 4096, COPY_BYTES = 1 << 16 };

// One of the two sockets of a connection; the listening one has no other side.
typedef struct side {
    int fd, is_closed;
    struct side *other;
} side;

static address hosts[HOSTS_MAX];
static int host_count, accepted_count, epoll_fd;
static side *closed_pairs[EVENTS_PER_TURN]; // freed after the turn: its later events may still point to them
static int closed_count;

static void watch(side *s)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &e);
}

static void listen_at(const char *text)
{
    static side listener;
    address at = address_of(text);
    int one = 1;
    listener.fd = socket(at.socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener.fd, (struct sockaddr *)&at.socket, at.length) || listen(listener.fd, BACKLOG))
        die("%s: %s", text, strerror(errno));
    watch(&listener);
}

static void join(int client_fd, int host_fd)
{
    side *pair = zeroed(2, sizeof *pair);
    pair[0] = (side){.fd = client_fd, .other = &pair[1]};
    pair[1] = (side){.fd = host_fd, .other = &pair[0]};
    for (int i = 0; i < 2; i++) {
        set_nodelay(pair[i].fd);
        watch(&pair[i]);
    }
}

static void accept_clients(int listener_fd)
{
    for (int client_fd; (client_fd = accept4(listener_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
        const address *host = &hosts[accepted_count++ % host_count];
        int host_fd = socket(host->socket.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (!connect(host_fd, (const struct sockaddr *)&host->socket, host->length)) {
            join(client_fd, host_fd);
            continue;
        }
        close(host_fd);
        close(client_fd);
    }
}

static void close_pair(side *s)
{
    s->is_closed = s->other->is_closed = 1;
    close(s->fd);
    close(s->other->fd);
    closed_pairs[closed_count++] = s < s->other ? s : s->other;
}

static void copy(side *s)
{
    static char bytes[COPY_BYTES];
    ssize_t got = recv(s->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    ssize_t sent = 0;
    while (sent < got) {
        ssize_t part = send(s->other->fd, bytes + sent, got - sent, MSG_NOSIGNAL);
        if (part <= 0)
            break;
        sent += part;
    }
    if (got <= 0 || sent < got)
        close_pair(s);
}

static void run(void)
{
    static struct epoll_event events[EVENTS_PER_TURN];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS_PER_TURN, -1);
        for (int i = 0; i < count; i++) {
            side *s = events[i].data.ptr;
            if (!s->other)
                accept_clients(s->fd);
            else if (!s->is_closed)
                copy(s);
        }
        while (closed_count)
            free(closed_pairs[--closed_count]);
    }
}

int main(int argc, char **argv)
{
    const char *listen_address = NULL;
    start_measuring_process();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "listen=", 7))
            listen_address = argv[i] + 7;
        else if (!strncmp(argv[i], "host=", 5) && host_count < HOSTS_MAX)
            hosts[host_count++] = address_of(argv[i] + 5);
        else
            die("%s: expected listen=ADDRESS or one of at most %d host=ADDRESS", argv[i], HOSTS_MAX);
    }
    if (!listen_address || !host_count)
        die("usage: relay listen=ADDRESS host=ADDRESS ...");
    listen_at(listen_address);
    run();
}
