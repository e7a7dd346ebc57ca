// Makes a processor's caches forget: every line of four megabytes is written, so that what runs next finds its code and
// its data in memory only. Under callgrind's cache simulation (one megabyte) exactly that is counted.
static char lines[4 << 20];

__attribute__((noinline)) void forget_all(void)
{
    for (volatile unsigned long i = 0; i < sizeof lines; i += 64)
        lines[i]++;
}
