// One event of a stream in OpenAI's shape → what records tell of it. The judge is router/hosts/scanner.py.

#ifndef RINGROUTER_EVENTS_H
#define RINGROUTER_EVENTS_H

#include "_json_cursor.h"

enum { KIND_HEAD = 3, KIND_TEXT = 4, KIND_REASONING = 5, KIND_TOOL_CALL = 6, KIND_FINISH = 7, KIND_USAGE = 8, KIND_SENTINEL = 16 };
enum { FLAG_HOST_EVENT = 1, FLAG_FINISH = 2, FLAG_USAGE = 4, FLAG_REMOVED = 8 };
enum { INDEX_MAX = 0xFFFF, FINISHED_MAX = 128 };

// What was found in one event.
typedef struct {
    bool has_choices;
    int choice_count;
    int choice_max;  // largest index + 1
    int first_index;
    int kind;  // of the first choice with content, 0 if none has
    int kind_index;
    bool finished;
    span usage, timings, metrics, progress;
} event_facts;

// The indices of choices that have finished, of all events of a read.
typedef struct {
    int all[FINISHED_MAX];
    int count;
} finished_choices;

// Content of a delta, in the order in which the judge looks at its fields.
typedef struct {
    bool text, reasoning, tool_call;
} content_facts;

static inline bool take_delta(cursor *c, content_facts *content)
{
    static const struct {
        const char *name;
        enum { TEXT_FIELD, REASONING_FIELD, ARRAY_FIELD, OBJECT_FIELD } what;
    } fields[] = {
        {"content", TEXT_FIELD}, {"refusal", TEXT_FIELD}, {"reasoning", REASONING_FIELD}, {"reasoning_content", REASONING_FIELD},
        {"tool_calls", ARRAY_FIELD}, {"function_call", OBJECT_FIELD},
    };
    enum { FIELDS = sizeof fields / sizeof *fields };
    unsigned keys = 0;
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        size_t field = 0;
        while (field < FIELDS && !is(all.name, fields[field].name))
            field++;
        bool full = false;
        if (field == FIELDS) {
            if (!take_value(c, all.name))
                return false;
            continue;
        }
        if (seen(&keys, 1u << field))
            return false;
        if (fields[field].what == ARRAY_FIELD || fields[field].what == OBJECT_FIELD) {
            if (!take_container_or_null(c, fields[field].what == ARRAY_FIELD ? '[' : '{', &full))
                return false;
            content->tool_call |= full;
        } else {
            if (!take_text_or_null(c, all.name, &full))
                return false;
            *(fields[field].what == TEXT_FIELD ? &content->text : &content->reasoning) |= full;
        }
    }
    return all.is_whole;
}

static inline bool take_choice(cursor *c, event_facts *facts, finished_choices *finished)
{
    enum { INDEX = 1, DELTA = 2, TEXT = 4, FINISH = 8 };
    content_facts content = {false, false, false};
    bool has_text = false, has_finished = false;
    unsigned keys = 0;
    uint32_t number = 0;
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        bool ok;
        if (is(all.name, "delta"))
            ok = !seen(&keys, DELTA) && take_delta(c, &content);
        else if (is(all.name, "index"))
            ok = !seen(&keys, INDEX) && take_whole_number(c, INDEX_MAX, &number);
        else if (is(all.name, "text"))
            ok = !seen(&keys, TEXT) && take_text_or_null(c, all.name, &has_text);
        else if (is(all.name, "finish_reason"))
            ok = !seen(&keys, FINISH) && take_text_or_null(c, all.name, &has_finished);
        else
            ok = take_value(c, all.name);
        if (!ok)
            return false;
    }
    if (!all.is_whole)
        return false;
    int index = (int)number;
    if (facts->choice_count++ == 0)
        facts->first_index = index;
    if (index >= facts->choice_max)
        facts->choice_max = index + 1;
    if (facts->kind == 0) {
        facts->kind = has_text || content.text ? KIND_TEXT : content.reasoning ? KIND_REASONING : content.tool_call ? KIND_TOOL_CALL : 0;
        facts->kind_index = index;
    }
    if (!has_finished)
        return true;
    facts->finished = true;
    if (finished->count == FINISHED_MAX)
        return false;
    finished->all[finished->count++] = index;
    return true;
}

static inline bool take_choices(cursor *c, event_facts *facts, finished_choices *finished)
{
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    if (!take(c, '['))
        return false;
    facts->has_choices = true;
    if (take(c, ']'))
        return true;
    do {
        if (!take_choice(c, facts, finished))
            return false;
    } while (take(c, ','));
    return take(c, ']');
}

// Take all of an event's data.
static inline bool take_object(cursor *c, event_facts *facts, finished_choices *finished)
{
    enum { CHOICES = 1, USAGE = 2, TIMINGS = 4, METRICS = 8, PROGRESS = 16 };
    unsigned keys = 0;
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        bool ok;
        if (is(all.name, "error"))
            return false;
        if (is(all.name, "choices"))
            ok = !seen(&keys, CHOICES) && take_choices(c, facts, finished);
        else if (is(all.name, "usage"))
            ok = !seen(&keys, USAGE) && take_raw(c, all.name, &facts->usage);
        else if (is(all.name, "timings"))
            ok = !seen(&keys, TIMINGS) && take_raw(c, all.name, &facts->timings);
        else if (is(all.name, "metrics"))
            ok = !seen(&keys, METRICS) && take_raw(c, all.name, &facts->metrics);
        else if (is(all.name, "prompt_progress"))
            ok = !seen(&keys, PROGRESS) && take_raw(c, all.name, &facts->progress);
        else
            ok = take_value(c, all.name);
        if (!ok)
            return false;
    }
    skip_blanks(c);
    return all.is_whole && c->at == c->end;
}

// The event's code as _classify_answer of the judge makes it; `stays` tells whether the client gets it.
static inline uint64_t classify(const event_facts *facts, bool drop_usage, bool drop_progress, bool *stays)
{
    uint64_t flags = FLAG_HOST_EVENT | (facts->usage.begin != NULL ? FLAG_USAGE : 0);
    bool progress = drop_progress && facts->progress.begin != NULL;
    *stays = true;
    if (facts->choice_count == 0) {
        if (facts->usage.begin == NULL) {
            *stays = !progress;
            return KIND_HEAD | flags << 8;
        }
        *stays = !facts->has_choices || !drop_usage;
        return KIND_USAGE | flags << 8;
    }
    if (facts->finished)
        flags |= FLAG_FINISH;
    if (facts->kind != 0)
        return facts->kind | flags << 8 | (uint64_t)facts->kind_index << 32;
    *stays = !progress || facts->finished;
    return (facts->finished ? KIND_FINISH : KIND_HEAD) | flags << 8 | (uint64_t)facts->first_index << 32;
}

#endif
