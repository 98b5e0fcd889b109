/* Arguments, bookkeeping and the report; the doors are in http.c and grpc.c. */
#define _GNU_SOURCE
#include "loadgen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "loadgen: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int connect_to(const Options *options) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    if (inet_pton(AF_INET, options->host, &address.sin_addr) != 1) fail("%s is no IPv4 address", options->host);
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) != 0)
        fail("cannot connect to %s:%d: %s", options->host, options->port, strerror(errno));
    int on = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return connection;
}

void send_all(int connection, const void *bytes, size_t length) {
    const char *rest = bytes;
    while (length > 0) {
        ssize_t sent = send(connection, rest, length, MSG_NOSIGNAL);
        if (sent < 0) fail("cannot send: %s", strerror(errno));
        rest += sent;
        length -= (size_t)sent;
    }
}

const Body *begin_request(Run *run, Stream *stream) {
    if (run->num_sent == run->options.num_requests) return NULL;
    stream->request = run->num_sent++;
    stream->num_units = 0;
    stream->busy = true;
    stream->sent_s = now_s();
    return &run->bodies[stream->request % run->num_bodies];
}

static uint64_t hash(const uint8_t *bytes, size_t length) { /* FNV-1a */
    uint64_t value = 14695981039346656037u;
    for (size_t i = 0; i < length; i++) value = (value ^ bytes[i]) * 1099511628211u;
    return value;
}

void count_unit(Run *run, Stream *stream, const uint8_t *bytes, size_t length) {
    if (stream->num_units == 0) run->first_s[stream->request] = now_s() - stream->sent_s;
    if (stream->num_units < run->options.units_per_stream) stream->hashes[stream->num_units] = hash(bytes, length);
    stream->num_units++;
    run->num_units++;
}

static int by_value(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

void end_request(Run *run, Stream *stream) {
    run->whole_s[stream->request] = now_s() - stream->sent_s;
    if (stream->num_units != run->options.units_per_stream) {
        run->num_wrong++;
    } else {
        qsort(stream->hashes, (size_t)stream->num_units, sizeof *stream->hashes, by_value);
        for (int i = 1; i < stream->num_units; i++) run->num_repeated += stream->hashes[i] == stream->hashes[i - 1];
    }
    stream->busy = false;
    run->num_ended++;
}

/* Each body is a length in 4 bytes, least significant first, and so many bytes. */
static void read_bodies(Run *run, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot read %s: %s", path, strerror(errno));
    uint8_t prefix[4];
    while (fread(prefix, 1, 4, file) == 4) {
        size_t length = prefix[0] | (size_t)prefix[1] << 8 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 24;
        uint8_t *bytes = malloc(length ? length : 1);
        if (!bytes || fread(bytes, 1, length, file) != length) fail("%s is cut off", path);
        run->bodies = realloc(run->bodies, (size_t)(run->num_bodies + 1) * sizeof *run->bodies);
        if (!run->bodies) fail("out of memory");
        run->bodies[run->num_bodies++] = (Body){bytes, length};
    }
    fclose(file);
    if (run->num_bodies == 0) fail("%s holds no body", path);
}

static void prepare(Run *run) {
    const Options *options = &run->options;
    if (options->core >= 0) {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET((size_t)options->core, &cores);
        if (sched_setaffinity(0, sizeof cores, &cores) != 0) fail("cannot run on core %d", options->core);
    }
    run->streams = calloc((size_t)options->num_streams, sizeof *run->streams);
    run->first_s = malloc((size_t)options->num_requests * sizeof *run->first_s);
    run->whole_s = calloc((size_t)options->num_requests, sizeof *run->whole_s);
    if (!run->streams || !run->first_s || !run->whole_s) fail("out of memory");
    for (int i = 0; i < options->num_requests; i++) run->first_s[i] = -1;
    for (int i = 0; i < options->num_streams; i++) {
        run->streams[i].hashes = calloc((size_t)options->units_per_stream, sizeof(uint64_t));
        if (!run->streams[i].hashes) fail("out of memory");
    }
}

static void print_list(const char *name, const double *values, int length) {
    printf(", \"%s\": [", name);
    for (int i = 0; i < length; i++) printf("%s%.6f", i ? ", " : "", values[i]);
    printf("]");
}

static void report(const Run *run, double seconds) {
    printf("{\"seconds\": %.6f, \"requests\": %d, \"units\": %ld, \"wrong_streams\": %d, \"repeated_units\": %ld",
           seconds, run->num_ended, run->num_units, run->num_wrong, run->num_repeated);
    print_list("first_s", run->first_s, run->options.num_requests);
    print_list("whole_s", run->whole_s, run->options.num_requests);
    printf("}\n");
}

int main(int argc, char **argv) {
    if (argc != 10)
        fail("usage: loadgen http|grpc HOST PORT PATH BODIES STREAMS REQUESTS UNITS_PER_STREAM CORE");
    Run run = {.options = {.host = argv[2],
                           .port = atoi(argv[3]),
                           .path = argv[4],
                           .num_streams = atoi(argv[6]),
                           .num_requests = atoi(argv[7]),
                           .units_per_stream = atoi(argv[8]),
                           .core = atoi(argv[9])}};
    if (run.options.num_streams < 1 || run.options.num_requests < 1 || run.options.units_per_stream < 1)
        fail("STREAMS, REQUESTS and UNITS_PER_STREAM are at least 1");
    read_bodies(&run, argv[5]);
    prepare(&run);
    double started_s = now_s();
    if (strcmp(argv[1], "http") == 0)
        run_http(&run);
    else if (strcmp(argv[1], "grpc") == 0)
        run_grpc(&run);
    else
        fail("no door %s: http or grpc", argv[1]);
    report(&run, now_s() - started_s);
    return 0;
}
