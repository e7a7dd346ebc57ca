// A log-linear histogram: 128 steps per power of two, so that a quantile is off by less than 0.8 %.
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include "common.h"

enum { STEP_BITS = 7, STEPS = 1 << STEP_BITS, BUCKETS = 64 * STEPS };

typedef struct {
    uint64_t buckets[BUCKETS], count;
    double sum_ns;
    int64_t max_ns;
} histogram;

static inline void record(histogram *h, int64_t value_ns)
{
    if (value_ns < 0)
        value_ns = 0;
    if (value_ns > h->max_ns)
        h->max_ns = value_ns;
    h->count++;
    h->sum_ns += value_ns;
    if (value_ns < STEPS) {
        h->buckets[value_ns]++;
        return;
    }
    int shift = 63 - __builtin_clzll(value_ns) - STEP_BITS;
    h->buckets[((shift + 1) << STEP_BITS) + ((value_ns >> shift) & (STEPS - 1))]++;
}

static inline int64_t bucket_middle_ns(int bucket)
{
    int shift = (bucket >> STEP_BITS) - 1;
    int64_t mantissa = bucket & (STEPS - 1);
    if (shift < 0)
        return mantissa;
    return ((mantissa | STEPS) << shift) + ((1LL << shift) >> 1);
}

static inline double quantile_us(const histogram *h, double quantile)
{
    uint64_t rank = quantile * h->count, passed = 0;
    if (!h->count)
        return 0;
    if (rank >= h->count)
        rank = h->count - 1;
    for (int i = 0; i < BUCKETS; i++) {
        passed += h->buckets[i];
        if (passed > rank) {
            int64_t value_ns = bucket_middle_ns(i);
            return (value_ns > h->max_ns ? h->max_ns : value_ns) / 1e3;
        }
    }
    return h->max_ns / 1e3;
}

static inline void print_histogram(const char *name, const histogram *h)
{
    printf("\"%s\":{\"n\":%lu,\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f},", name,
        (unsigned long)h->count, h->count ? h->sum_ns / h->count / 1e3 : 0, quantile_us(h, .5), quantile_us(h, .9),
        quantile_us(h, .99), quantile_us(h, .999), h->max_ns / 1e3);
}

// Every bucket that is not empty: its middle in us, but nothing above the largest value, and its count.
static inline void print_buckets(const char *name, const histogram *h, const char *after)
{
    const char *separator = "";
    printf("\"%s\":[", name);
    for (int i = 0; i < BUCKETS; i++) {
        if (!h->buckets[i])
            continue;
        int64_t value_ns = bucket_middle_ns(i);
        printf("%s%.3f,%lu", separator, (value_ns > h->max_ns ? h->max_ns : value_ns) / 1e3,
            (unsigned long)h->buckets[i]);
        separator = ",";
    }
    printf("]%s", after);
}

#endif
