/* A single-threaded HTTP/1.1 server on 127.0.0.1, plain or TLS 1.3, on which both stand-ins are built.
 *
 * One epoll set, level-triggered. A peer (a TCP connection) has at most one request under way: what it sends meanwhile
 * waits in its buffer. Answers can be kept back (the delay options), and requests can be held until something happens
 * (a long poll); one heap of due times serves both, so that a delay costs no thread and no timer of the kernel's.
 */
#ifndef SERVER_H
#define SERVER_H

#include <getopt.h>

#include "http.h"

struct peer;

struct server {
    const char *name;
    size_t max_body_bytes;
    /* Answers the request, or holds it. The request's slices are gone once this returns. */
    void (*handle)(struct peer *peer, const struct request *request);
    /* The time of a held request has come: answers it. `note` is what was given to server_hold. */
    void (*due)(struct peer *peer, long note);
};

struct server_counts {
    uint64_t open, open_peak, accepted, handshakes, handshakes_resumed;
    uint64_t waiting, waiting_peak; /* answers kept back and requests held */
};

extern struct server_counts server_counts;

/* The options that every server has: put them into the table for getopt_long, and give it what comes back. */
#define SERVER_OPTIONS                                                                                                 \
    {"port", required_argument, NULL, 'p'}, {"certificate", required_argument, NULL, 'c'},                             \
        {"key", required_argument, NULL, 'k'}, {"delay-min-ms", required_argument, NULL, 'd'},                         \
        {"delay-max-ms", required_argument, NULL, 'D'}
#define SERVER_USAGE "[--port N] [--certificate FILE --key FILE] [--delay-min-ms X] [--delay-max-ms X]"
bool server_option(int option, const char *value);

int server_run(const struct server *server); /* until SIGTERM or SIGINT; returns the exit status */

void server_answer(struct peer *peer, const struct answer *answer);
void server_hold(struct peer *peer, double seconds, long note);
void server_release_held(void); /* the time of every held request comes now */

int64_t server_now(void);     /* monotonic nanoseconds, as of this turn of the loop */
double server_cpu(void);      /* seconds of CPU that the process has used */
void server_reset_peaks(void); /* and the counts that only grow */

#endif
