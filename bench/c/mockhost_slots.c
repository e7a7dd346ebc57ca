// Slots: who has one, who waits for one, what happens when a client leaves.
#include "mockhost.h"

// --------------------------------------------------------------------------- slots, ends and cancellations

static int slots_were_freed;

void free_slot(connection *c)
{
    instances[c->instance].running--;
    c->phase = NO_PHASE;
    slots_were_freed = 1;
}

// Closed connections are freed at the end of a turn: events of the same turn may still point to them.
static connection **graveyard;
static int grave_count, grave_capacity;

static void bury(connection *c)
{
    if (grave_count == grave_capacity)
        graveyard = resized(graveyard, sizeof *graveyard * (grave_capacity = grave_capacity ? grave_capacity * 2 : 64));
    graveyard[grave_count++] = c;
}

void empty_graveyard(void)
{
    while (grave_count) {
        connection *c = graveyard[--grave_count];
        free(c->in.bytes);
        free(c->out.bytes);
        free(c->token_chunk.bytes);
        free(c);
    }
}

// A client that closed is gone, but its slot is held until its prefill would have ended.
static void hold_slot_as_ghost(connection *c, int64_t from_ns, int64_t until_ns)
{
    c->is_ghost = 1;
    c->due_ns = until_ns;
    timer_start(c);
    stats.ghosts++;
    stats.ghost_slot_ns += until_ns - from_ns;
}

void close_connection(connection *c)
{
    if (c->dead)
        return;
    c->dead = 1;
    if (c->busy)
        busy_count--;
    timer_stop(c);
    ready_remove(c);
    idle_remove(c);
    close(c->fd);
    instances[c->instance].open--;
    if (c->phase == WAITING_FOR_SLOT) {
        note_cancelled(c, CANCELLED_WAITING);
        c->is_ghost = 1; // stays in the queue
        return;
    }
    if (c->phase == HAS_SLOT) {
        note_cancelled(c, c->tokens_written ? CANCELLED_STREAMING : CANCELLED_BEFORE_FIRST_TOKEN);
        int64_t prefilled_ns = c->started_ns + options.prefill_us * NS_PER_US;
        if (!c->tokens_written && options.slots && prefilled_ns > c->cancel_seen_ns) {
            hold_slot_as_ghost(c, c->cancel_seen_ns, prefilled_ns);
            return;
        }
        note_dropped(c);
        free_slot(c);
    }
    bury(c);
}

void drop_ghost(connection *c)
{
    note_dropped(c);
    free_slot(c);
    bury(c);
}

// -------------------------------------------------------------------------------------- starting what has a slot

static void start_stream(connection *c, int64_t now)
{
    if (c->in_sync && c->itl_ns)
        c->due_ns = (c->due_ns / c->itl_ns + 1) * c->itl_ns;
    if (c->due_ns <= now)
        step_stream(c);
    else
        timer_start(c);
}

static void start_whole(connection *c, int64_t now)
{
    if (!c->is_embedding)
        c->due_ns += c->itl_ns * (c->token_count - 1);
    if (c->due_ns <= now)
        answer_whole(c);
    else
        timer_start(c);
}

void start_answer(connection *c, int64_t now)
{
    instance *host = &instances[c->instance];
    if (++host->running > host->running_max)
        host->running_max = host->running;
    c->phase = HAS_SLOT;
    c->started_ns = now;
    if (c->is_ghost) {
        hold_slot_as_ghost(c, now, now + options.prefill_us * NS_PER_US);
        return;
    }
    stats.started++;
    c->due_ns = now + c->ttft_ns;
    if (c->answer == STREAM)
        start_stream(c, now);
    else
        start_whole(c, now);
}

void wait_for_slot(connection *c)
{
    instance *host = &instances[c->instance];
    c->phase = WAITING_FOR_SLOT;
    *(host->queue_tail ? &host->queue_tail->queue_next : &host->queue_head) = c;
    host->queue_tail = c;
    if (++host->waiting > host->waiting_max)
        host->waiting_max = host->waiting;
}

static connection *take_waiting(instance *host)
{
    connection *c = host->queue_head;
    host->queue_head = c->queue_next;
    if (!host->queue_head)
        host->queue_tail = NULL;
    c->queue_next = NULL;
    host->waiting--;
    return c;
}

int has_free_slot(const instance *host)
{
    return !options.slots || host->running < options.slots;
}

// More slots than before may let waiting requests start.
void note_slots_changed(void)
{
    slots_were_freed = 1;
}

void fill_free_slots(void)
{
    while (slots_were_freed) { // an answer that ends at once frees its slot again
        slots_were_freed = 0;
        for (int i = 0; i < instance_count; i++)
            while (instances[i].queue_head && has_free_slot(&instances[i]))
                start_answer(take_waiting(&instances[i]), now_ns());
    }
}
