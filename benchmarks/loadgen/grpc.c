/* gRPC over one cleartext HTTP/2 connection (RFC 9113), as far as a client needs it that sends small requests.
 *
 * Header blocks that come are not read: a call that failed shows by its missing messages. Flow control towards us
 * is opened as wide as it goes; towards the server it is left to the windows it begins with, which hold many of
 * our requests.
 */
#include "loadgen.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8 };
enum { FRAME_HEAD = 9, MESSAGE_HEAD = 5, MAX_MESSAGE = 1 << 16, READ_BYTES = 1 << 18, OPEN_AGAIN = 1 << 24 };

typedef struct {
    Stream *stream;
    uint8_t message[MAX_MESSAGE]; /* as far as it has come */
    size_t message_length;
} Call;

typedef struct {
    int socket;
    Call *calls;
    Call **call_of; /* by half the stream's id: ids of ours are odd */
    uint32_t next_id;
    size_t unopened_bytes; /* received, and not yet given back to the connection's window */
} Connection;

static void put32(uint8_t *place, uint32_t value) {
    for (int i = 0; i < 4; i++) place[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t get32(const uint8_t *place) {
    return (uint32_t)place[0] << 24 | (uint32_t)place[1] << 16 | (uint32_t)place[2] << 8 | place[3];
}

static uint8_t *put_frame_head(uint8_t *place, size_t length, uint8_t type, uint8_t flags, uint32_t id) {
    put32(place, (uint32_t)length << 8 | type);
    place[4] = flags;
    put32(place + 5, id);
    return place + FRAME_HEAD;
}

static void send_frame(Connection *connection, uint8_t type, uint8_t flags, const void *payload, size_t length) {
    uint8_t frame[FRAME_HEAD + 64];
    if (length > 64) fail("a control frame of %zu bytes", length);
    memcpy(put_frame_head(frame, length, type, flags, 0), payload, length);
    send_all(connection->socket, frame, FRAME_HEAD + length);
}

/* A literal header field that enters no table (RFC 7541, 6.2.2); both lengths must be below 127. */
static uint8_t *put_field(uint8_t *place, const char *name, const char *value) {
    size_t name_length = strlen(name), value_length = strlen(value);
    if (name_length > 126 || value_length > 126) fail("the header field %s is too long", name);
    *place++ = 0;
    *place++ = (uint8_t)name_length;
    memcpy(place, name, name_length);
    place += name_length;
    *place++ = (uint8_t)value_length;
    memcpy(place, value, value_length);
    return place + value_length;
}

static void send_request(Run *run, Connection *connection, Call *call) {
    const Body *body = begin_request(run, call->stream);
    if (!body) return;
    uint32_t id = connection->next_id;
    connection->next_id += 2;
    connection->call_of[id / 2] = call;
    call->message_length = 0;
    uint8_t *request = malloc(1024 + body->length);
    if (!request) fail("out of memory");
    uint8_t *end = request + FRAME_HEAD;
    end = put_field(end, ":method", "POST");
    end = put_field(end, ":scheme", "http");
    end = put_field(end, ":path", run->options.path);
    end = put_field(end, ":authority", run->options.host);
    end = put_field(end, "content-type", "application/grpc");
    end = put_field(end, "te", "trailers");
    put_frame_head(request, (size_t)(end - request) - FRAME_HEAD, HEADERS, END_HEADERS, id);
    end = put_frame_head(end, MESSAGE_HEAD + body->length, DATA, END_STREAM, id);
    *end++ = 0; /* not compressed */
    put32(end, (uint32_t)body->length);
    memcpy(end + 4, body->bytes, body->length);
    send_all(connection->socket, request, (size_t)(end + 4 - request) + body->length);
    free(request);
}

static void take_data(Run *run, Call *call, const uint8_t *bytes, size_t length) {
    if (call->message_length + length > MAX_MESSAGE) fail("a message is longer than %d bytes", MAX_MESSAGE);
    memcpy(call->message + call->message_length, bytes, length);
    call->message_length += length;
    size_t done = 0;
    while (call->message_length - done >= MESSAGE_HEAD) {
        size_t message_length = get32(call->message + done + 1);
        if (call->message_length - done < MESSAGE_HEAD + message_length) break;
        count_unit(run, call->stream, call->message + done + MESSAGE_HEAD, message_length);
        done += MESSAGE_HEAD + message_length;
    }
    memmove(call->message, call->message + done, call->message_length - done);
    call->message_length -= done;
}

static void take_stream_frame(Run *run, Connection *connection, uint8_t type, uint8_t flags, uint32_t id,
                              const uint8_t *payload, size_t length) {
    Call *call = id / 2 < (uint32_t)run->options.num_requests ? connection->call_of[id / 2] : NULL;
    if (!call || type == WINDOW_UPDATE) return;
    if (type == DATA) {
        if (flags & PADDED) fail("padded data are not read");
        take_data(run, call, payload, length);
    }
    bool ended = type == RST_STREAM || ((type == DATA || type == HEADERS) && flags & END_STREAM);
    if (ended) {
        end_request(run, call->stream);
        connection->call_of[id / 2] = NULL;
        send_request(run, connection, call);
    }
}

static void take_frame(Run *run, Connection *connection, const uint8_t *frame, size_t length) {
    uint8_t type = frame[3], flags = frame[4];
    uint32_t id = get32(frame + 5) & 0x7fffffff;
    const uint8_t *payload = frame + FRAME_HEAD;
    if (id != 0)
        take_stream_frame(run, connection, type, flags, id, payload, length);
    else if (type == SETTINGS && !(flags & ACK))
        send_frame(connection, SETTINGS, ACK, NULL, 0);
    else if (type == PING && !(flags & ACK))
        send_frame(connection, PING, ACK, payload, length);
    else if (type == GOAWAY)
        fail("the server ended the connection with error %u", get32(payload + 4));
    if (type != DATA) return;
    connection->unopened_bytes += length;
    if (connection->unopened_bytes >= OPEN_AGAIN) {
        uint8_t increment[4];
        put32(increment, (uint32_t)connection->unopened_bytes);
        send_frame(connection, WINDOW_UPDATE, 0, increment, 4);
        connection->unopened_bytes = 0;
    }
}

static void begin_connection(Connection *connection) {
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    send_all(connection->socket, preface, sizeof preface - 1);
    uint8_t settings[6] = {0, 4}; /* SETTINGS_INITIAL_WINDOW_SIZE: what each stream may send */
    put32(settings + 2, 0x7fffffff);
    send_frame(connection, SETTINGS, 0, settings, sizeof settings);
    uint8_t increment[4];
    put32(increment, 0x7fffffff - 65535);
    send_frame(connection, WINDOW_UPDATE, 0, increment, 4);
}

void run_grpc(Run *run) {
    int num_streams = run->options.num_streams;
    Connection connection = {.socket = connect_to(&run->options), .next_id = 1};
    connection.calls = calloc((size_t)num_streams, sizeof *connection.calls);
    connection.call_of = calloc((size_t)run->options.num_requests, sizeof *connection.call_of);
    uint8_t *buffer = malloc(READ_BYTES);
    if (!connection.calls || !connection.call_of || !buffer) fail("out of memory");
    begin_connection(&connection);
    for (int i = 0; i < num_streams; i++) {
        connection.calls[i].stream = &run->streams[i];
        send_request(run, &connection, &connection.calls[i]);
    }
    struct timeval patience = {.tv_sec = 30};
    setsockopt(connection.socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    size_t have = 0;
    while (run->num_ended < run->options.num_requests) {
        ssize_t length = recv(connection.socket, buffer + have, READ_BYTES - have, 0);
        if (length <= 0) fail(length ? "nothing came for 30 s" : "the server closed the connection");
        have += (size_t)length;
        size_t done = 0;
        while (have - done >= FRAME_HEAD) {
            size_t frame_length = get32(buffer + done) >> 8;
            if (have - done < FRAME_HEAD + frame_length) break;
            take_frame(run, &connection, buffer + done, frame_length);
            done += FRAME_HEAD + frame_length;
        }
        memmove(buffer, buffer + done, have - done);
        have -= done;
    }
    close(connection.socket);
    free(buffer);
    free(connection.call_of);
    free(connection.calls);
}
