// /stats: what has been counted, as JSON.
#include "mockhost.h"

void add_sample(samples *s, int64_t value_ns)
{
    if (s->length == s->capacity)
        s->values_ns = resized(s->values_ns, sizeof(int64_t) * (s->capacity = s->capacity ? s->capacity * 2 : 1024));
    s->values_ns[s->length++] = value_ns < 0 ? 0 : value_ns;
}

static int compare_int64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double sample_us(const samples *s, double quantile)
{
    if (!s->length)
        return 0;
    int i = quantile * s->length;
    return s->values_ns[i < s->length ? i : s->length - 1] / 1e3;
}

static void print_samples(FILE *out, const char *name, samples *s)
{
    if (s->length)
        qsort(s->values_ns, s->length, sizeof *s->values_ns, compare_int64);
    fprintf(out, "\"%s\":{\"n\":%d,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, s->length,
        sample_us(s, 0.5), sample_us(s, 0.9), sample_us(s, 0.99), sample_us(s, 1));
}

static void print_instances(FILE *out)
{
    fprintf(out, "\"addresses\":[");
    for (int i = 0; i < instance_count; i++) {
        const instance *h = &instances[i];
        fprintf(out,
            "%s{\"listen\":\"%s\",\"received\":%lu,\"running\":%d,\"waiting\":%d,\"max_running\":%d,\"max_waiting\":%d,"
            "\"connections\":%lu,\"open\":%d,\"closed_idle\":%lu}",
            i ? "," : "", h->name, h->received, h->running, h->waiting, h->running_max, h->waiting_max, h->connections,
            h->open, h->closed_idle);
    }
    fprintf(out, "]");
}

static void print_stats(FILE *out, const char *query)
{
    const unsigned long *cancelled = stats.cancelled;
    int running = 0, waiting = 0;
    for (int i = 0; i < instance_count; i++) {
        running += instances[i].running;
        waiting += instances[i].waiting;
    }
    fprintf(out,
        "{\"options\":{\"close\":%d,\"idle\":%lld,\"slots\":%d,\"prefill_us\":%lld},\"received\":%lu,\"started\":%lu,"
        "\"finished\":%lu,\"running\":%d,\"waiting\":%d,",
        options.close_streams, (long long)(idle_limit_ns() / NS_PER_MS), options.slots, (long long)options.prefill_us,
        stats.received, stats.started, stats.finished, running, waiting);
    fprintf(out, "\"cancelled\":{\"all\":%lu,\"waiting\":%lu,\"before_first_token\":%lu,\"streaming\":%lu,",
        cancelled[CANCELLED_WAITING] + cancelled[CANCELLED_BEFORE_FIRST_TOKEN] + cancelled[CANCELLED_STREAMING],
        cancelled[CANCELLED_WAITING], cancelled[CANCELLED_BEFORE_FIRST_TOKEN], cancelled[CANCELLED_STREAMING]);
    print_samples(out, "detect_to_drop_us", &stats.dropped);
    fprintf(out, "},\"left\":{\"told\":%lu,\"finished_all_the_same\":%lu,\"never_came\":%d,", stats.told_left,
        stats.left_but_finished, left_early_total());
    print_samples(out, "noticed_us", &stats.noticed);
    fprintf(out, "},\"tokens\":%lu,\"tokens_after_left\":%lu,\"ghosts\":%lu,\"ghost_slot_ms\":%.1f,",
        token_total - stats.tokens_at_reset, stats.tokens_after_left, stats.ghosts, stats.ghost_slot_ns / 1e6);
    print_instances(out);
    if (query_number(query, "cancels") > 0)
        print_cancels(out);
    fprintf(out, "}");
}

static void reset_stats(void)
{
    int64_t *noticed_ns = stats.noticed.values_ns, *dropped_ns = stats.dropped.values_ns;
    int noticed_capacity = stats.noticed.capacity, dropped_capacity = stats.dropped.capacity;
    memset(&stats, 0, sizeof stats);
    stats.noticed = (samples){noticed_ns, 0, noticed_capacity};
    stats.dropped = (samples){dropped_ns, 0, dropped_capacity};
    stats.tokens_at_reset = token_total;
    forget_clients();
    for (int i = 0; i < instance_count; i++) {
        instance *h = &instances[i];
        h->running_max = h->running;
        h->waiting_max = h->waiting;
        h->received = h->connections = h->closed_idle = 0;
    }
}

void answer_stats(connection *c, const char *query)
{
    char *body;
    size_t length;
    FILE *out = open_memstream(&body, &length);
    if (!out)
        die("out of memory for /stats");
    print_stats(out, query);
    fclose(out);
    if (query_number(query, "reset") > 0)
        reset_stats();
    answer_json(c, "200 OK", body, length);
    free(body);
}
