/* A load generator that costs little beside what it measures: one thread, no allocation per token.
 *
 * It keeps a number of streams open against one door, sends the next request as soon as a stream has ended, and
 * counts what comes back in units: server-sent events over HTTP, messages over gRPC. Each stream must bring
 * exactly as many units as it should, no two of them alike; anything else is counted as a fault.
 */
#ifndef LOADGEN_H
#define LOADGEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *host;
    int port;
    const char *path;
    int num_streams;
    int num_requests; /* in all */
    int units_per_stream;
    int core; /* to run on; -1: any */
} Options;

typedef struct {
    const uint8_t *bytes;
    size_t length;
} Body;

/* One place for a request under way. */
typedef struct {
    double sent_s;
    int num_units;
    uint64_t *hashes; /* of the units, to find two alike */
    int request;      /* its number, from 0 */
    bool busy;
} Stream;

typedef struct {
    Options options;
    Body *bodies;
    int num_bodies;
    Stream *streams;
    int num_sent;
    int num_ended;
    long num_units;
    long num_repeated; /* units like an earlier one of their stream */
    int num_wrong;     /* streams with another number of units than they should have */
    double *first_s;   /* of each request: seconds to its first unit; negative if none came */
    double *whole_s;   /* and to its end */
} Run;

/* main.c */
double now_s(void);
int connect_to(const Options *options);
void send_all(int socket, const void *bytes, size_t length);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The next request on this stream; NULL when all have been sent. */
const Body *begin_request(Run *run, Stream *stream);
void count_unit(Run *run, Stream *stream, const uint8_t *bytes, size_t length);
void end_request(Run *run, Stream *stream);

/* The doors: each runs until every request has ended. */
void run_http(Run *run);
void run_grpc(Run *run);

#endif
