// Requests: reading them, taking their settings, answering them or starting to generate.
#include "mockhost.h"

enum { TOKENS_MAX = 1000000 };

typedef struct {
    const char *bytes;
    size_t length;
} text;

typedef struct {
    char method[16], path[256];
    char *query; // inside path, NULL without one
    text head, body;
} request;

// Copies a header's value; 0 when the head does not have it.
static int header_value(text head, const char *name, char *value, size_t capacity)
{
    size_t name_length = strlen(name);
    const char *end = head.bytes + head.length;
    for (const char *line = head.bytes; line < end;) {
        const char *line_end = memmem(line, end - line, "\r\n", 2);
        if (!line_end)
            line_end = end;
        size_t line_length = line_end - line;
        if (line_length > name_length && line[name_length] == ':' && !strncasecmp(line, name, name_length)) {
            const char *from = line + name_length + 1;
            while (from < line_end && *from == ' ')
                from++;
            size_t length = line_end - from < (ptrdiff_t)capacity ? (size_t)(line_end - from) : capacity - 1;
            memcpy(value, from, length);
            value[length] = 0;
            return 1;
        }
        line = line_end + 2;
    }
    return 0;
}

static int64_t header_number(text head, const char *name)
{
    char value[64];
    return header_value(head, name, value, sizeof value) ? atoll(value) : -1;
}

// What follows `"key":` in a JSON text, NULL when the key is not there. Input buffers end in a NUL.
static const char *json_value(text body, const char *quoted_key)
{
    const char *p = memmem(body.bytes, body.length, quoted_key, strlen(quoted_key)), *end = body.bytes + body.length;
    if (!p)
        return NULL;
    p += strlen(quoted_key);
    while (p < end && (*p == ' ' || *p == ':'))
        p++;
    return p < end ? p : NULL;
}

static int64_t json_number(text body, const char *quoted_key)
{
    const char *p = json_value(body, quoted_key);
    return p && *p >= '0' && *p <= '9' ? strtoll(p, NULL, 10) : -1;
}

static int json_true(text body, const char *quoted_key)
{
    const char *p = json_value(body, quoted_key);
    return p && !strncmp(p, "true", 4);
}

static void copy_model(connection *c, text body)
{
    const char *p = json_value(body, "\"model\""), *end = body.bytes + body.length;
    size_t length = 0;
    if (!p || *p++ != '"') {
        snprintf(c->model, sizeof c->model, "%s", options.model);
        return;
    }
    while (p < end && *p != '"' && length < sizeof c->model - 1)
        c->model[length++] = *p++;
    c->model[length] = 0;
}

// The value of " name=" inside the [[mock ]] text, -1 when it is not there.
static int64_t directive(text mock, const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 1; i + length < mock.length; i++)
        if (mock.bytes[i - 1] == ' ' && !memcmp(mock.bytes + i, name, length))
            return strtoll(mock.bytes + i + length, NULL, 10);
    return -1;
}

static text find_directives(text body)
{
    const char *start = memmem(body.bytes, body.length, "[[mock ", 7);
    if (!start)
        return (text){"", 0};
    const char *body_end = body.bytes + body.length, *end = memmem(start, body_end - start, "]]", 2);
    return (text){start, (end ? end : body_end) - start};
}

// The id of a request: "id=" in its directives, or the digits just before them (the load generator writes ten).
static uint64_t request_id_of(text body, text mock)
{
    int64_t given = directive(mock, "id=");
    if (given >= 0 || !mock.length)
        return given >= 0 ? (uint64_t)given : 0;
    const char *digits = mock.bytes;
    while (digits > body.bytes && digits[-1] == ' ')
        digits--;
    while (digits > body.bytes && digits[-1] >= '0' && digits[-1] <= '9')
        digits--;
    return strtoull(digits, NULL, 10);
}

// The first setting that was given (not below 0).
static int64_t first_given(int64_t a, int64_t b, int64_t c, int64_t d, int64_t otherwise)
{
    return a >= 0 ? a : b >= 0 ? b : c >= 0 ? c : d >= 0 ? d : otherwise;
}

static void read_settings(connection *c, const request *r)
{
    text mock = find_directives(r->body);
    int64_t count = first_given(directive(mock, "n="), header_number(r->head, "x-mock-tokens"),
        json_number(r->body, "\"max_tokens\""), json_number(r->body, "\"max_completion_tokens\""), options.token_count);
    c->token_count = count < 1 ? 1 : count > TOKENS_MAX ? TOKENS_MAX : count;
    c->ttft_ns = NS_PER_US
        * first_given(directive(mock, "ttft="), header_number(r->head, "x-mock-ttft-us"), -1, -1, options.ttft_us);
    c->itl_ns = NS_PER_US
        * first_given(directive(mock, "itl="), header_number(r->head, "x-mock-itl-us"), -1, -1, options.itl_us);
    c->in_sync = first_given(directive(mock, "sync="), header_number(r->head, "x-mock-sync"), -1, -1, 0) > 0;
    c->wants_usage = json_true(r->body, "\"include_usage\"");
    c->answer = json_true(r->body, "\"stream\"") && !c->is_embedding ? STREAM : WHOLE;
    if (c->answer == STREAM && first_given(directive(mock, "close="), -1, -1, -1, options.close_streams))
        c->close_after = c->promise_keep_alive = 1;
    c->request_id = request_id_of(r->body, mock);
}

static void generate(connection *c, const request *r)
{
    instance *host = &instances[c->instance];
    c->is_chat = strstr(r->path, "/chat/") != NULL;
    c->is_embedding = strstr(r->path, "/embeddings") != NULL;
    c->tokens_written = 0;
    memset(c->recent_ns, 0, sizeof c->recent_ns);
    copy_model(c, r->body);
    read_settings(c, r);
    host->received++;
    note_received(c);
    if (host->queue_head || !has_free_slot(host))
        wait_for_slot(c);
    else
        start_answer(c, c->received_ns);
}

// The value of a whole number in a query string, -1 when it is not there.
int64_t query_number(const char *query, const char *name)
{
    size_t length = strlen(name);
    while (query && *query) {
        if (!strncmp(query, name, length) && query[length] == '=')
            return strtoll(query + length + 1, NULL, 10);
        query = strchr(query, '&');
        if (query)
            query++;
    }
    return -1;
}

static void answer_models(connection *c)
{
    char body[1024];
    int length = snprintf(body, sizeof body,
        "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1700000000,"
        "\"owned_by\":\"mock\",\"root\":\"%s\",\"parent\":null,\"max_model_len\":32768}]}",
        options.model, options.model);
    answer_json(c, "200 OK", body, length);
}

static void answer_metrics(connection *c)
{
    char body[1024];
    int waiting = instances[c->instance].waiting;
    int length = snprintf(body, sizeof body,
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"%s\"} %ld\n"
        "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"%s\"} %d\n"
        "mock_requests_total %lu\nmock_tokens_total %lu\n",
        options.model, busy_count - 1 - waiting, options.model, waiting, request_count, token_total);
    answer_json(c, "200 OK", body, length);
}

// Any other GET is taken for a question about the model, which some routers ask before they send requests.
static void answer_model_info(connection *c)
{
    char body[512];
    int length = snprintf(body, sizeof body,
        "{\"model_path\":\"%s\",\"served_model_name\":\"%s\",\"tokenizer_path\":\"\",\"is_generation\":true,"
        "\"version\":\"0.0\"}",
        options.model, options.model);
    answer_json(c, "200 OK", body, length);
}

static void answer_get(connection *c, const request *r)
{
    if (!strcmp(r->path, "/stats")) {
        answer_stats(c, r->query);
    } else if (!strcmp(r->path, "/left")) {
        note_left(query_number(r->query, "id"), query_number(r->query, "t"));
        answer_json(c, "200 OK", "{}", 2);
    } else if (!strcmp(r->path, "/set")) {
        if (r->query)
            set_options(r->query);
        answer_json(c, "200 OK", "{}", 2);
    } else if (strstr(r->path, "/models")) {
        answer_models(c);
    } else if (!strcmp(r->path, "/metrics")) {
        answer_metrics(c);
    } else if (!strcmp(r->path, "/health") || !strcmp(r->path, "/ping")) {
        answer_json(c, "200 OK", "", 0);
    } else {
        answer_model_info(c);
    }
}

static int ends_with(const char *s, const char *suffix)
{
    size_t length = strlen(s), suffix_length = strlen(suffix);
    return length >= suffix_length && !strcmp(s + length - suffix_length, suffix);
}

static void answer_request(connection *c, request *r)
{
    if (!strcmp(r->method, "GET") || !strcmp(r->method, "HEAD"))
        answer_get(c, r);
    else if (ends_with(r->path, "/completions") || ends_with(r->path, "/embeddings"))
        generate(c, r);
    else
        answer_json(c, "404 Not Found", "{\"detail\":\"Not Found\"}", 22);
}

static void begin_request(connection *c, const request *r, int64_t received_ns)
{
    char value[64];
    idle_remove(c);
    request_count++;
    busy_count++;
    c->busy = 1;
    c->received_ns = received_ns;
    c->answer = FLUSHING;
    c->phase = NO_PHASE;
    c->request_id = 0;
    c->left_ns = 0;
    c->promise_keep_alive = 0;
    c->is_chat = c->is_embedding = 0;
    c->close_after = header_value(r->head, "connection", value, sizeof value) && !strcasecmp(value, "close");
    snprintf(c->id, sizeof c->id, "chatcmpl-%08lx%016llx", request_count, (unsigned long long)received_ns);
}

// Joins a chunked body in place, from `start` of the input on. Returns the input's bytes it took, 0 while incomplete.
static size_t join_chunks(buffer *in, size_t start, size_t *body_length)
{
    size_t from = start;
    for (int pass = 0; pass < 2; pass++) { // first see whether it is all there: an incomplete body stays as it came
        size_t to = from = start;
        for (;;) {
            char *line_end = memmem(in->bytes + from, in->length - from, "\r\n", 2);
            if (!line_end)
                return 0;
            size_t size = strtoul(in->bytes + from, NULL, 16), data = line_end + 2 - in->bytes;
            if (size > in->length || data + size + 2 > in->length)
                return 0;
            if (pass)
                memmove(in->bytes + to, in->bytes + data, size);
            to += size;
            from = data + size + 2;
            if (!size)
                break;
        }
        *body_length = to - start;
    }
    return from - start;
}

// Reads one request from the input; 0 while it is incomplete, else the bytes that it takes.
static size_t parse_request(connection *c, request *r)
{
    char value[64];
    const char *head_end = memmem(c->in.bytes, c->in.length, "\r\n\r\n", 4);
    if (!head_end)
        return 0;
    size_t head_bytes = head_end + 4 - c->in.bytes, body_bytes = 0;
    r->head = (text){c->in.bytes, head_bytes - 4};
    r->body = (text){c->in.bytes + head_bytes, 0};
    if (header_value(r->head, "transfer-encoding", value, sizeof value) && strcasestr(value, "chunked")) {
        body_bytes = join_chunks(&c->in, head_bytes, &r->body.length);
        if (!body_bytes)
            return 0;
    } else {
        if (header_value(r->head, "content-length", value, sizeof value))
            r->body.length = body_bytes = strtoul(value, NULL, 10);
        if (c->in.length - head_bytes < body_bytes)
            return 0;
    }
    r->method[0] = r->path[0] = 0;
    sscanf(c->in.bytes, "%15s %255s", r->method, r->path);
    r->query = strchr(r->path, '?');
    if (r->query)
        *r->query++ = 0;
    return head_bytes + body_bytes;
}

// Answers what is complete in the input, one request after the other.
void take_requests(connection *c)
{
    c->parsing = 1;
    while (!c->dead && !c->busy && c->in.length) {
        int64_t received_ns = now_ns();
        request r;
        size_t used = parse_request(c, &r);
        if (!used)
            break;
        begin_request(c, &r, received_ns);
        answer_request(c, &r); // reads the request where it lies: the input is moved only afterwards
        memmove(c->in.bytes, c->in.bytes + used, c->in.length - used);
        c->in.length -= used;
        c->in.bytes[c->in.length] = 0;
    }
    c->parsing = 0;
}
