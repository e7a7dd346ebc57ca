// awake: keep one core from going to sleep.
//
//   awake SECONDS
//
// A core without work halts, and on a virtual machine waking it takes longer than all that a proxy does for a token.
// This loop runs at SCHED_IDLE: it has the core only while nobody else wants it, and whoever does takes it at once.
#include "common.h"
#include <sched.h>

enum { PAUSES_PER_LOOK = 1000 };

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int main(int argc, char **argv)
{
    struct sched_param lowest = {0};
    start_measuring_process();
    if (argc != 2 || atof(argv[1]) <= 0)
        die("usage: awake SECONDS");
    if (sched_setscheduler(0, SCHED_IDLE, &lowest))
        die("SCHED_IDLE: %s", strerror(errno));
    int64_t end_ns = now_ns() + (int64_t)(atof(argv[1]) * NS_PER_S);
    while (now_ns() < end_ns)
        for (int i = 0; i < PAUSES_PER_LOOK; i++)
            pause_briefly();
    return 0;
}
