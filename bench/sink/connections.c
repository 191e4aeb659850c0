/* A mock server for API Gateway's @connections: it responds to posts as fast as one core allows, and counts them.
 *
 * It does little per post, so that a benchmark measures the client: it reads the whole request, and responds with the
 * headers of the real service, including new ids, so that no client can recognise responses by comparing bytes. It
 * checks no signature.
 */
#include <stdio.h>
#include <stdlib.h>

#include "server.h"

enum { MAX_POST_BYTES = 128 * 1024, MAX_SHARES = 8, SECOND = 1000000000 };

static struct {
    int status;
    double share;
    uint64_t responses;
} shares[MAX_SHARES];
static int share_count;

static struct {
    uint64_t posts, bytes, gets, deletes, others, too_large;
    uint64_t this_second, peak_per_second;
    int64_t second;
    int64_t first, last; /* when the first and the last post arrived */
    double cpu;          /* of the process, when the counts were zeroed */
} counts;

static void count_post(size_t body_bytes)
{
    int64_t now = server_now();
    if (now / SECOND != counts.second) {
        counts.second = now / SECOND;
        counts.this_second = 0;
    }
    if (++counts.this_second > counts.peak_per_second)
        counts.peak_per_second = counts.this_second;
    if (counts.posts++ == 0)
        counts.first = now;
    counts.last = now;
    counts.bytes += body_bytes;
}

/* Return 200, or one of the other statuses, each for its share of the posts. */
static int choose_status(void)
{
    double drawn = share_count ? (double)(random_bits() >> 11) * 0x1p-53 : 1;
    for (int i = 0; i < share_count; drawn -= shares[i++].share)
        if (drawn < shares[i].share) {
            shares[i].responses++;
            return shares[i].status;
        }
    return 200;
}

static const char *error_type(int status)
{
    switch (status) {
    case 200:
    case 204: return NULL;
    case 403: return "ForbiddenException";
    case 410: return "GoneException";
    case 413: return "PayloadTooLargeException";
    case 429: return "LimitExceededException";
    default: return status < 500 ? "BadRequestException" : "InternalServerErrorException";
    }
}

static void respond(struct peer *peer, int status, const char *body)
{
    static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    static struct buffer headers; /* static: its memory is kept */
    const char *error = error_type(status);
    headers.length = 0;
    buffer_text(&headers, "x-amzn-RequestId: ");
    buffer_uuid(&headers);
    buffer_text(&headers, "\r\nx-amz-apigw-id: ");
    buffer_random(&headers, base64, 15);
    buffer_text(&headers, "=\r\n");
    if (error) {
        buffer_text(&headers, "x-amzn-ErrorType: ");
        buffer_text(&headers, error);
        buffer_text(&headers, "\r\n");
        body = "{\"message\":null}";
    }
    server_respond(peer, &(struct response){
                            .status = status,
                            .content_type = "application/json",
                            .headers = buffer_as_slice(&headers),
                            .body = text_slice(body),
                        });
}

static void respond_with_stats(struct peer *peer)
{
    struct buffer body = {0};
    buffer_format(&body, "{\"posts\":%lu,\"bytes\":%lu,\"gets\":%lu,\"deletes\":%lu,\"others\":%lu", counts.posts,
                  counts.bytes, counts.gets, counts.deletes, counts.others);
    buffer_text(&body, ",\"statuses\":{");
    uint64_t successes = counts.posts - counts.too_large;
    for (int i = 0; i < share_count; i++)
        successes -= shares[i].responses;
    buffer_format(&body, "\"200\":%lu", successes);
    for (int i = 0; i < share_count; i++)
        buffer_format(&body, ",\"%d\":%lu", shares[i].status, shares[i].responses);
    buffer_format(&body, "},\"too_large\":%lu,\"peak_per_second\":%lu,\"first_at\":%.6f,\"seconds\":%.6f", counts.too_large,
                  counts.peak_per_second, (double)counts.first / SECOND, (double)(counts.last - counts.first) / SECOND);
    buffer_format(&body, ",\"cpu_seconds\":%.6f", server_cpu() - counts.cpu);
    buffer_format(&body, ",\"open\":%lu,\"open_peak\":%lu,\"accepted\":%lu,\"handshakes\":%lu,\"handshakes_resumed\":%lu",
                  server_counts.open, server_counts.open_peak, server_counts.accepted, server_counts.handshakes,
                  server_counts.handshakes_resumed);
    buffer_format(&body, ",\"in_flight\":%lu,\"in_flight_peak\":%lu}\n", server_counts.waiting,
                  server_counts.waiting_peak);
    server_respond(peer, &(struct response){
                            .status = 200,
                            .content_type = "application/json",
                            .body = buffer_as_slice(&body),
                            .undelayed = true,
                        });
    buffer_free(&body);
}

static void reset(void)
{
    memset(&counts, 0, sizeof counts);
    for (int i = 0; i < share_count; i++)
        shares[i].responses = 0;
    counts.cpu = server_cpu();
    server_reset_peaks();
}

/* With a stage before it or, on a custom domain, without; clients may or may not encode the @. */
static bool is_connection(struct slice path)
{
    return memmem(path.start, path.length, "/@connections/", 14) ||
           memmem(path.start, path.length, "/%40connections/", 16);
}

static void handle(struct peer *peer, const struct request *request)
{
    if (is_connection(request->path)) {
        if (slice_is(request->method, "POST")) {
            count_post(request->body.length);
            bool too_large = request->body.length > MAX_POST_BYTES;
            counts.too_large += too_large;
            respond(peer, too_large ? 413 : choose_status(), "");
        } else if (slice_is(request->method, "DELETE")) {
            counts.deletes++;
            respond(peer, 204, "");
        } else if (slice_is(request->method, "GET")) {
            counts.gets++;
            respond(peer, 200,
                   "{\"connectedAt\":\"2026-01-01T00:00:00.000Z\",\"identity\":{\"sourceIp\":\"127.0.0.1\","
                   "\"userAgent\":\"mock\"},\"lastActiveAt\":\"2026-01-01T00:00:01.000Z\"}");
        } else {
            counts.others++;
            respond(peer, 403, "");
        }
    } else if (slice_is(request->path, "/stats") && slice_is(request->method, "GET")) {
        respond_with_stats(peer);
    } else if (slice_is(request->path, "/reset") && slice_is(request->method, "POST")) {
        reset();
        server_respond(peer, &(struct response){.status = 204, .undelayed = true});
    } else {
        counts.others++;
        respond(peer, 403, ""); /* as API Gateway does for a wrong stage or path */
    }
}

static bool add_share(const char *text)
{
    if (share_count == MAX_SHARES ||
        sscanf(text, "%3d:%lf", &shares[share_count].status, &shares[share_count].share) != 2 ||
        shares[share_count].status < 201 || shares[share_count].status > 599)
        return false;
    share_count++;
    return true;
}

int main(int argc, char **argv)
{
    static const struct server server = {
        .name = "connections",
        .max_body_bytes = 1024 * 1024, /* read as a whole, so that a 413 comes in order */
        .handle = handle,
    };
    static const struct option options[] = {SERVER_OPTIONS, {"status", required_argument, NULL, 's'}, {0}};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (!(option == 's' ? add_share(optarg) : server_option(option, optarg))) {
            fputs("usage: connections " SERVER_USAGE " [--status STATUS:SHARE]...\n", stderr);
            return 2;
        }
    return server_run(&server);
}
