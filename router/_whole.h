// A whole answer of OpenAI's shape → what records tell of it. The judge is plain_report_of() in router/hosts/whole.py.

#ifndef RINGROUTER_WHOLE_H
#define RINGROUTER_WHOLE_H

#include "_json_cursor.h"

typedef struct {
    span usage, timings, metrics;
    long choice_count;
    bool calls_tools;
} whole_facts;

// Take an object with a finish_reason, as each choice is.
static inline bool take_finished(cursor *c, whole_facts *whole)
{
    bool is_twice = false;
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        span reason;
        bool escaped = false;
        if (!is(all.name, "finish_reason") || next_is(c, 'n')) {
            if (!take_value(c, all.name))
                return false;
        } else if (is_twice || !take_string(c, &reason, &escaped) || escaped) {
            return false;
        } else {
            whole->calls_tools |= is(reason, "tool_calls");
        }
        is_twice |= is(all.name, "finish_reason");
    }
    return all.is_whole;
}

static inline bool take_all_finished(cursor *c, whole_facts *whole)
{
    if (!take(c, '['))
        return false;
    if (take(c, ']'))
        return true;
    do {
        whole->choice_count++;
        if (!take_finished(c, whole))
            return false;
    } while (take(c, ','));
    return take(c, ']');
}

// A value as it stands, null included.
static inline bool take_as_it_stands(cursor *c, span name, span *value)
{
    skip_blanks(c);
    value->begin = c->at;
    bool is_taken = take_value(c, name);
    value->end = c->at;
    return is_taken;
}

// Take all of an answer.
static inline bool take_whole(cursor *c, whole_facts *whole)
{
    enum { CHOICES = 1, USAGE = 2, TIMINGS = 4, METRICS = 8 };
    unsigned keys = 0;
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        bool ok;
        if (is(all.name, "choices"))
            ok = !seen(&keys, CHOICES) && take_all_finished(c, whole);
        else if (is(all.name, "usage"))
            ok = !seen(&keys, USAGE) && take_as_it_stands(c, all.name, &whole->usage);
        else if (is(all.name, "timings"))
            ok = !seen(&keys, TIMINGS) && take_as_it_stands(c, all.name, &whole->timings);
        else if (is(all.name, "metrics"))
            ok = !seen(&keys, METRICS) && take_as_it_stands(c, all.name, &whole->metrics);
        else
            ok = take_value(c, all.name);
        if (!ok)
            return false;
    }
    skip_blanks(c);
    return all.is_whole && c->at == c->end;
}

#endif
