// What the measuring programs share: the clock, addresses, growing buffers, how a process starts.
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_US 1000LL
#define NS_PER_MS 1000000LL
#define NS_PER_S 1000000000LL

// Digits of a time stamp inside an answer: CLOCK_MONOTONIC nanoseconds, with zeros in front.
#define STAMP_DIGITS 19

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

// realloc that does not return without memory.
static inline void *resized(void *block, size_t bytes)
{
    void *p = realloc(block, bytes);
    if (!p)
        die("out of memory (%zu bytes)", bytes);
    return p;
}

static inline void *zeroed(size_t count, size_t bytes)
{
    void *p = calloc(count, bytes);
    if (!p)
        die("out of memory (%zu bytes)", count * bytes);
    return p;
}

typedef struct {
    struct sockaddr_storage socket;
    socklen_t length;
} address;

// "HOST:PORT" with a numeric IPv4 host, or "unix:/path"; ends the program on anything else.
static inline address address_of(const char *text)
{
    address a = {0};
    if (!strncmp(text, "unix:", 5)) {
        struct sockaddr_un *local = (struct sockaddr_un *)&a.socket;
        local->sun_family = AF_UNIX;
        if (strlen(text + 5) >= sizeof local->sun_path)
            die("%s: a socket's path has at most %zu bytes", text, sizeof local->sun_path - 1);
        strcpy(local->sun_path, text + 5);
        a.length = sizeof *local;
        return a;
    }
    const char *colon = strrchr(text, ':');
    char host[64];
    struct sockaddr_in *internet = (struct sockaddr_in *)&a.socket;
    if (!colon || (size_t)(colon - text) >= sizeof host)
        die("%s: expected HOST:PORT or unix:/path", text);
    memcpy(host, text, colon - text);
    host[colon - text] = 0;
    internet->sin_family = AF_INET;
    internet->sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, host, &internet->sin_addr) != 1)
        die("%s: expected a numeric IPv4 address", text);
    a.length = sizeof *internet;
    return a;
}

static inline void set_nodelay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); // fails, harmlessly, on unix sockets
}

// Timers to the nanosecond, all the descriptors there are, and an end together with the process that started this one.
static inline void start_measuring_process(void)
{
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

#endif
