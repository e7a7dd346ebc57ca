// The load generator's command line.
#include "loadgen.h"

struct options options = {.path = "/v1/chat/completions", .model = "mock-model", .connections = 1, .tokens = 32,
    .prompt_bytes = 1000, .stagger = 1, .duration_s = 3, .warm_s = 0.5, .drain_s = 3, .timeout_s = 20, .rate = 100};

static void add_header(const char *header)
{
    size_t used = strlen(options.headers);
    int length = snprintf(options.headers + used, sizeof options.headers - used, "%s\r\n", header);
    if ((size_t)length >= sizeof options.headers - used)
        die("hdr=%s: headers have at most %zu bytes", header, sizeof options.headers);
}

static enum mode mode_of(const char *name)
{
    if (!strcmp(name, "stream"))
        return MODE_STREAM;
    if (!strcmp(name, "closed"))
        return MODE_CLOSED;
    if (!strcmp(name, "rate"))
        return MODE_RATE;
    die("mode=%s: expected stream, closed or rate", name);
}

static int set_text(const char *name, const char *value)
{
    struct {
        const char *name;
        char *text;
        size_t capacity;
    } texts[] = {{"target", options.target, sizeof options.target}, {"path", options.path, sizeof options.path},
        {"model", options.model, sizeof options.model}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(name, texts[i].name)) {
            snprintf(texts[i].text, texts[i].capacity, "%s", value);
            return 1;
        }
    return 0;
}

static int set_number(const char *name, const char *value)
{
    struct {
        const char *name;
        int64_t *number;
    } numbers[] = {{"conc", &options.connections}, {"n", &options.tokens}, {"ttft", &options.ttft_us},
        {"itl", &options.itl_us}, {"sync", &options.in_sync}, {"prompt", &options.prompt_bytes},
        {"embed", &options.embeddings}, {"quickack", &options.quickack}, {"stagger", &options.stagger},
        {"gap", &options.gap_us}, {"maxreq", &options.requests_max}, {"buckets", &options.buckets}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) {
            *numbers[i].number = atoll(value);
            return 1;
        }
    return 0;
}

static int set_seconds_or_rate(const char *name, const char *value)
{
    struct {
        const char *name;
        double *number;
    } numbers[] = {{"dur", &options.duration_s}, {"warm", &options.warm_s}, {"rate", &options.rate},
        {"drain", &options.drain_s}, {"timeout", &options.timeout_s}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) {
            *numbers[i].number = atof(value);
            return 1;
        }
    return 0;
}

static void read_argument(char *argument)
{
    char *value = strchr(argument, '=');
    if (!value)
        die("%s: expected NAME=VALUE", argument);
    *value++ = 0;
    if (!strcmp(argument, "hdr"))
        add_header(value);
    else if (!strcmp(argument, "mode"))
        options.mode = mode_of(value);
    else if (!set_text(argument, value) && !set_number(argument, value) && !set_seconds_or_rate(argument, value))
        die("%s: not an option of the load generator", argument);
}

void read_options(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        read_argument(argv[i]);
    if (!options.target[0])
        die("target=HOST:PORT or target=unix:/path is needed");
    if (options.connections < 1 || options.rate <= 0 || options.prompt_bytes < 0)
        die("conc must be at least 1, rate above 0, prompt at least 0");
    if (options.embeddings && !strcmp(options.path, "/v1/chat/completions"))
        strcpy(options.path, "/v1/embeddings");
}
