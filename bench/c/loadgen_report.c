// What the load generator prints: one JSON object.
#include "loadgen.h"

void report(void)
{
    double window_s = (plan.end_ns - plan.measured_from_ns) / 1e9;
    printf("{");
    print_histogram("fwd", &times.forward);
    print_histogram("ttft_over", &times.ttft_overhead);
    print_histogram("ttft", &times.ttft);
    print_histogram("tok", &times.token);
    print_histogram("gap", &times.gap);
    print_histogram("tpot", &times.time_per_token);
    print_histogram("e2e", &times.end_to_end);
    print_histogram("over", &times.overhead);
    if (options.buckets) {
        printf("\"buckets\":{");
        print_buckets("ttft_over", &times.ttft_overhead, ",");
        print_buckets("tok", &times.token, ",");
        print_buckets("over", &times.overhead, "},");
    }
    printf("\"started\":%lu,\"ok\":%lu,\"win_s\":%.3f,\"tokens_win\":%lu,\"tokens_all\":%lu,\"req_win\":%lu,",
        counts.started, counts.ok, window_s, counts.tokens_measured, counts.tokens, counts.requests_measured);
    printf("\"tok_s\":%.1f,\"req_s\":%.1f,\"conns\":%lu,\"stall_ms\":%.1f,\"stalls\":%lu,\"reads\":%lu,\"bytes\":%lu,",
        counts.tokens_measured / window_s, counts.requests_measured / window_s, counts.connections,
        counts.stall_ns / 1e6, counts.stalls, counts.reads, counts.bytes);
    printf("\"unfinished\":%lu,\"retried\":%lu,", counts.unfinished, counts.retried);
    printf("\"errors\":{\"connect\":%lu,\"http\":%lu,\"close\":%lu,\"count\":%lu,", counts.errors.connect,
        counts.errors.http, counts.errors.close, counts.errors.count);
    printf("\"done\":%lu,\"timeout\":%lu,\"order\":%lu},", counts.errors.done, counts.errors.timeout,
        counts.errors.order);
    printf("\"last_status\":%d,\"errbody\":\"%s\"}\n", counts.last_status, counts.error_body);
}
