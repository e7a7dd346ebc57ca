// Runs a program and counts the system calls of all its threads and children.
//
//     syscalls COMMAND ARGUMENTS...
//
// SIGUSR1 makes it write one line of JSON to its standard output, [{"recvfrom":12,...},{...}]: all calls begun until
// then, those of the program's first thread and those of all others. The program's own standard output goes to the standard error. SIGTERM is passed on to the program; if this process dies
// the program dies with it. As `strace -c -f` counts, but it can be read while the program runs, and a parent may
// always trace its children, where strace -p may need rights.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NUMBERS_MAX = 1024 }; // the tables of system calls end at about 470
enum { CANNOT_TRACE = 125 };

#define CALL(name) [SYS_##name] = #name
// What a process of ours calls on its path, so that a table can be read; others are shown by their number.
static const char *const names[NUMBERS_MAX] = {
    CALL(read), CALL(write), CALL(readv), CALL(writev), CALL(sendto), CALL(sendmsg), CALL(recvfrom), CALL(recvmsg),
    CALL(socket), CALL(connect), CALL(accept4), CALL(shutdown), CALL(close), CALL(bind), CALL(getsockname),
    CALL(getpeername), CALL(setsockopt), CALL(getsockopt), CALL(ioctl), CALL(fcntl), CALL(epoll_ctl),
    CALL(epoll_pwait), CALL(eventfd2), CALL(timerfd_settime), CALL(futex), CALL(clock_gettime), CALL(getpid),
    CALL(getppid), CALL(mmap), CALL(munmap), CALL(madvise), CALL(brk), CALL(openat), CALL(sched_yield),
#ifdef SYS_epoll_wait
    CALL(epoll_wait),
#endif
#ifdef SYS_poll
    CALL(poll),
#endif
    CALL(ppoll),
};

static unsigned long first_counts[NUMBERS_MAX], other_counts[NUMBERS_MAX];
static volatile sig_atomic_t snapshot_asked, stop_asked;

static void note_signal(int number)
{
    if (number == SIGUSR1)
        snapshot_asked = 1;
    else
        stop_asked = 1;
}

static void write_counts(const unsigned long *counts)
{
    const char *separator = "";
    putchar('{');
    for (int number = 0; number < NUMBERS_MAX; number++) {
        if (!counts[number])
            continue;
        if (names[number])
            printf("%s\"%s\":%lu", separator, names[number], counts[number]);
        else
            printf("%s\"call %d\":%lu", separator, number, counts[number]);
        separator = ",";
    }
    putchar('}');
}

static void write_snapshot(void)
{
    putchar('[');
    write_counts(first_counts);
    putchar(',');
    write_counts(other_counts);
    puts("]");
    fflush(stdout);
}

static void count_entry(pid_t thread, unsigned long *counts)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY &&
        info.entry.nr < NUMBERS_MAX)
        counts[info.entry.nr]++;
}

// Lets a stopped thread go on to its next stop.
static void go_on(pid_t thread, int status, unsigned long *counts)
{
    int signal_number = WSTOPSIG(status), event = status >> 16;
    if (signal_number == (SIGTRAP | 0x80)) {
        count_entry(thread, counts);
        ptrace(PTRACE_SYSCALL, thread, 0, 0);
    } else if (event == PTRACE_EVENT_STOP && signal_number != SIGTRAP) {
        ptrace(PTRACE_LISTEN, thread, 0, 0); // the whole process is stopped, and stays so until SIGCONT
    } else {
        ptrace(PTRACE_SYSCALL, thread, 0, event ? 0 : signal_number);
    }
}

static pid_t start(char **command)
{
    pid_t child = fork();
    if (child == 0) {
        dup2(STDERR_FILENO, STDOUT_FILENO);
        raise(SIGSTOP); // until it is traced
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
    return child;
}

static int trace(pid_t child)
{
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_EXITKILL;
    waitpid(child, NULL, WUNTRACED);
    if (ptrace(PTRACE_SEIZE, child, 0, options) < 0) {
        perror("syscalls: this system does not let a process trace its child");
        kill(child, SIGKILL);
        return 0;
    }
    kill(child, SIGCONT);
    return 1;
}

static int follow(pid_t child)
{
    for (;;) {
        int status;
        if (snapshot_asked) {
            snapshot_asked = 0;
            write_snapshot();
        }
        if (stop_asked) {
            stop_asked = 0;
            kill(child, SIGTERM);
        }
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0 && errno != EINTR)
            return 1;
        if (thread > 0 && WIFSTOPPED(status))
            go_on(thread, status, thread == child ? first_counts : other_counts);
        else if (thread == child)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fputs("usage: syscalls COMMAND ARGUMENTS...\n", stderr);
        return 2;
    }
    pid_t child = start(argv + 1);
    if (child < 0 || !trace(child))
        return CANNOT_TRACE;
    // Without SA_RESTART: a signal ends waitpid. One that comes between the check and the wait is seen at the next stop
    // of the program, which has a timer.
    struct sigaction action = {.sa_handler = note_signal};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return follow(child);
}
