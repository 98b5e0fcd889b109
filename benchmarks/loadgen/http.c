/* HTTP/1.1 with chunked server-sent events: one connection for each stream, used again for its next request. */
#include "loadgen.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_LINE = 8192, MAX_EVENT = 1 << 16, READ_BYTES = 1 << 16 };

typedef enum { HEAD, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, LAST_LINE } State;

typedef struct {
    int socket;
    Stream *stream;
    State state;
    char line[MAX_LINE]; /* of the head or of a chunk's size */
    size_t line_length;
    size_t chunk_left;
    uint8_t event[MAX_EVENT];
    size_t event_length;
} Connection;

static bool send_request(Run *run, Connection *connection) {
    const Body *body = begin_request(run, connection->stream);
    if (!body) return false;
    char head[512];
    int length = snprintf(head, sizeof head,
                          "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                          run->options.path, run->options.host, body->length);
    char *request = malloc((size_t)length + body->length); /* in one piece, or the body waits for an ACK */
    if (!request) fail("out of memory");
    memcpy(request, head, (size_t)length);
    memcpy(request + length, body->bytes, body->length);
    send_all(connection->socket, request, (size_t)length + body->length);
    free(request);
    connection->state = HEAD;
    connection->line_length = 0;
    connection->event_length = 0;
    return true;
}

static void take_body(Run *run, Connection *connection, const uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (connection->event_length == MAX_EVENT) fail("an event is longer than %d bytes", MAX_EVENT);
        connection->event[connection->event_length++] = bytes[i];
        size_t end = connection->event_length;
        if (end >= 2 && bytes[i] == '\n' && connection->event[end - 2] == '\n') {
            count_unit(run, connection->stream, connection->event, end);
            connection->event_length = 0;
        }
    }
}

/* A whole line of the head or between chunks, without its end. */
static void take_line(Run *run, Connection *connection) {
    connection->line[connection->line_length] = 0;
    bool empty = connection->line_length == 0;
    switch (connection->state) {
    case HEAD:
        if (strncmp(connection->line, "HTTP/1.1 ", 9) == 0 && strncmp(connection->line + 9, "200", 3) != 0)
            fail("the server answered %s", connection->line);
        if (empty) connection->state = CHUNK_SIZE;
        break;
    case CHUNK_SIZE:
        connection->chunk_left = strtoul(connection->line, NULL, 16);
        connection->state = connection->chunk_left ? CHUNK_DATA : LAST_LINE;
        break;
    case CHUNK_END:
        connection->state = CHUNK_SIZE;
        break;
    default: /* LAST_LINE */
        end_request(run, connection->stream);
    }
    connection->line_length = 0;
}

static void take(Run *run, Connection *connection, const uint8_t *bytes, size_t length) {
    while (length > 0 && connection->stream->busy) {
        if (connection->state == CHUNK_DATA) {
            size_t part = length < connection->chunk_left ? length : connection->chunk_left;
            take_body(run, connection, bytes, part);
            bytes += part;
            length -= part;
            connection->chunk_left -= part;
            if (connection->chunk_left == 0) connection->state = CHUNK_END;
            continue;
        }
        char byte = (char)*bytes++;
        length--;
        if (byte == '\n')
            take_line(run, connection);
        else if (byte != '\r') {
            if (connection->line_length == MAX_LINE - 1) fail("a line is longer than %d bytes", MAX_LINE);
            connection->line[connection->line_length++] = byte;
        }
    }
}

static void receive(Run *run, Connection *connection) {
    static uint8_t buffer[READ_BYTES];
    ssize_t length = recv(connection->socket, buffer, sizeof buffer, MSG_DONTWAIT);
    if (length == 0) fail("the server closed a connection");
    if (length < 0) {
        if (errno == EAGAIN) return;
        fail("cannot receive: %s", strerror(errno));
    }
    take(run, connection, buffer, (size_t)length);
    if (!connection->stream->busy) send_request(run, connection);
}

void run_http(Run *run) {
    int num_streams = run->options.num_streams;
    Connection *connections = calloc((size_t)num_streams, sizeof *connections);
    int poll = epoll_create1(0);
    if (!connections || poll < 0) fail("cannot begin: %s", strerror(errno));
    for (int i = 0; i < num_streams; i++) {
        connections[i].socket = connect_to(&run->options);
        connections[i].stream = &run->streams[i];
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &connections[i]};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].socket, &wanted) != 0) fail("epoll: %s", strerror(errno));
    }
    for (int i = 0; i < num_streams; i++)
        if (!send_request(run, &connections[i])) break;
    while (run->num_ended < run->options.num_requests) {
        struct epoll_event events[64];
        int num_events = epoll_wait(poll, events, 64, 30000);
        if (num_events == 0) fail("nothing came for 30 s");
        for (int i = 0; i < num_events; i++) receive(run, events[i].data.ptr);
    }
    for (int i = 0; i < num_streams; i++) close(connections[i].socket);
    close(poll);
    free(connections);
}
