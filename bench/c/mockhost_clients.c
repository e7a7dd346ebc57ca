// What became of each request's client: it got its answer, or it left. Tests tell when it left (/left).
#include "mockhost.h"

enum {
    CANCELS_KEPT = 4096,   // latest cancellations that /stats?cancels=1 lists
    FINISHED_KEPT = 4096,  // latest finished ids, for a /left that comes after the answer's end
    LEFT_EARLY_MAX = 1024, // ids told by /left before their request came
    ID_TABLE_SIZE = 16384, // a request that shares its place with a later one is forgotten
};

static const char *const CANCEL_PHASE_NAMES[] = {"waiting", "before_first_token", "streaming"};

typedef struct {
    uint64_t request_id;
    int64_t seen_ns, dropped_ns, recent_ns[RECENT_TOKENS];
    enum cancel_phase phase;
    int tokens;
} cancel;

static cancel cancels[CANCELS_KEPT];
static unsigned long cancel_count;
static uint64_t finished_ids[FINISHED_KEPT];
static unsigned long finished_count;
static struct {
    uint64_t request_id;
    int64_t left_ns;
} left_early[LEFT_EARLY_MAX];
static int left_early_count;
static connection *by_id[ID_TABLE_SIZE];

static void forget_id(connection *c)
{
    connection **place = &by_id[c->request_id % ID_TABLE_SIZE];
    if (*place == c)
        *place = NULL;
}

// An answer went out whole.
void note_finished(connection *c)
{
    stats.finished++;
    finished_ids[finished_count++ % FINISHED_KEPT] = c->request_id;
    if (c->left_ns)
        stats.left_but_finished++;
    forget_id(c);
}

// The kept cancellation of a request, the latest if several; NULL when there is none.
static cancel *find_cancel(uint64_t request_id)
{
    for (unsigned long i = cancel_count; i && i + CANCELS_KEPT > cancel_count; i--)
        if (cancels[(i - 1) % CANCELS_KEPT].request_id == request_id)
            return &cancels[(i - 1) % CANCELS_KEPT];
    return NULL;
}

void note_cancelled(connection *c, enum cancel_phase phase)
{
    c->cancel_seen_ns = now_ns();
    stats.cancelled[phase]++;
    if (c->left_ns)
        add_sample(&stats.noticed, c->cancel_seen_ns - c->left_ns);
    forget_id(c);
    cancel *kept = &cancels[cancel_count++ % CANCELS_KEPT];
    *kept = (cancel){c->request_id, c->cancel_seen_ns, 0, {0}, phase, c->tokens_written};
    memcpy(kept->recent_ns, c->recent_ns, sizeof c->recent_ns);
}

void note_dropped(connection *c)
{
    int64_t now = now_ns();
    add_sample(&stats.dropped, now - c->cancel_seen_ns);
    cancel *kept = find_cancel(c->request_id);
    if (kept)
        kept->dropped_ns = now;
}

static int has_finished(uint64_t request_id)
{
    for (int i = 0; i < FINISHED_KEPT; i++)
        if (finished_ids[i] == request_id)
            return 1;
    return 0;
}

static void count_tokens_after(const int64_t *recent_ns, int64_t left_ns)
{
    for (int i = 0; i < RECENT_TOKENS; i++)
        if (recent_ns[i] > left_ns)
            stats.tokens_after_left++;
}

// A test says when a client left. Its request may be running, cancelled, finished, or not here yet.
void note_left(uint64_t request_id, int64_t left_ns)
{
    connection *c = by_id[request_id % ID_TABLE_SIZE];
    cancel *kept;
    stats.told_left++;
    if (c && c->request_id == request_id && !c->left_ns) {
        c->left_ns = left_ns;
        count_tokens_after(c->recent_ns, left_ns);
    } else if ((kept = find_cancel(request_id))) {
        add_sample(&stats.noticed, kept->seen_ns - left_ns);
        count_tokens_after(kept->recent_ns, left_ns);
    } else if (has_finished(request_id)) {
        stats.left_but_finished++;
    } else if (left_early_count < LEFT_EARLY_MAX) {
        left_early[left_early_count].request_id = request_id;
        left_early[left_early_count++].left_ns = left_ns;
    }
}

static int64_t take_left_early(uint64_t request_id)
{
    for (int i = 0; i < left_early_count; i++) {
        if (left_early[i].request_id != request_id)
            continue;
        int64_t left_ns = left_early[i].left_ns;
        left_early[i] = left_early[--left_early_count];
        return left_ns;
    }
    return 0;
}

// A request has come; a test may have told already that its client left.
void note_received(connection *c)
{
    stats.received++;
    by_id[c->request_id % ID_TABLE_SIZE] = c;
    c->left_ns = take_left_early(c->request_id);
}

int left_early_total(void)
{
    return left_early_count;
}

void forget_clients(void)
{
    cancel_count = 0;
    left_early_count = 0;
}

void print_cancels(FILE *out)
{
    unsigned long first = cancel_count > CANCELS_KEPT ? cancel_count - CANCELS_KEPT : 0;
    fprintf(out, ",\"cancels\":[");
    for (unsigned long i = first; i < cancel_count; i++) {
        const cancel *x = &cancels[i % CANCELS_KEPT];
        fprintf(out, "%s{\"id\":%lu,\"phase\":\"%s\",\"detected_ns\":%lld,\"dropped_ns\":%lld,\"tokens\":%d}",
            i > first ? "," : "", (unsigned long)x->request_id, CANCEL_PHASE_NAMES[x->phase], (long long)x->seen_ns,
            (long long)x->dropped_ns, x->tokens);
    }
    fprintf(out, "]");
}
