/* A single-threaded HTTP/1.1 server on 127.0.0.1, plain or TLS 1.3, on which both mock servers are built.
 *
 * One epoll set, level-triggered. A peer (a TCP connection) has at most one request in progress; further input waits in
 * its buffer. Responses can be delayed (the delay options), and requests can be held until an event (a long poll); one
 * heap of due times serves both, so that a delay needs no thread and no kernel timer.
 */
#ifndef SERVER_H
#define SERVER_H

#include <getopt.h>

#include "http.h"

struct peer;

struct server {
    const char *name;
    size_t max_body_bytes;
    /* Responds to the request, or holds it. The request's slices are invalid once this returns. */
    void (*handle)(struct peer *peer, const struct request *request);
    /* Responds to a held request that is due. `note` is the one given to server_hold. */
    void (*due)(struct peer *peer, long note);
};

struct server_counts {
    uint64_t open, open_peak, accepted, handshakes, handshakes_resumed;
    uint64_t waiting, waiting_peak; /* delayed responses and held requests */
};

extern struct server_counts server_counts;

/* The options of every server: include them in the table for getopt_long, and pass each to server_option. */
#define SERVER_OPTIONS                                                                                                 \
    {"port", required_argument, NULL, 'p'}, {"certificate", required_argument, NULL, 'c'},                             \
        {"key", required_argument, NULL, 'k'}, {"delay-min-ms", required_argument, NULL, 'd'},                         \
        {"delay-max-ms", required_argument, NULL, 'D'}
#define SERVER_USAGE "[--port N] [--certificate FILE --key FILE] [--delay-min-ms X] [--delay-max-ms X]"
bool server_option(int option, const char *value);

int server_run(const struct server *server); /* until SIGTERM or SIGINT; returns the exit status */

void server_respond(struct peer *peer, const struct response *response);
void server_hold(struct peer *peer, double seconds, long note);
void server_release_held(void); /* makes every held request due now */

int64_t server_now(void);     /* monotonic nanoseconds, as of this turn of the loop */
double server_cpu(void);      /* seconds of CPU that the process has used */
void server_reset_peaks(void); /* and the counts that only grow */

#endif
