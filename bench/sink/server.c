#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 8 * 1024, EVENTS = 256, NANOSECONDS = 1000000000 };

struct peer {
    int fd; /* -1 once closed */
    SSL *tls;
    bool greeted;     /* the handshake is done */
    bool held;        /* its request waits for an event */
    bool closing;     /* the current response is the last one */
    bool wants_write; /* the socket buffer is full: epoll reports when it is writable */
    bool keep_alive;  /* requested by the current request */
    struct buffer in, out;
    size_t searched, needed; /* of `in`: bytes without the end of a head, bytes of the incomplete request */
    size_t sent;             /* of `out` */
    int64_t due;
    int64_t *sent_at; /* where to store the time when the response is sent, or NULL */
    size_t place; /* in the heap, from 1; 0: not in it */
    long note;
    struct peer *previous, *next;
};

struct server_counts server_counts;

static struct {
    const struct server *server;
    int port;
    const char *certificate, *key;
    double delay_min_ms, delay_max_ms;
    SSL_CTX *tls;
    int epoll, listener;
    int64_t now;
    struct peer *peers;  /* all open peers */
    struct peer *closed; /* freed at the end of the turn: an event of this turn may still point to them */
    struct peer **heap;  /* from 1, the earliest due time first */
    size_t heap_length, heap_capacity;
} loop = {.port = 8080};

static volatile sig_atomic_t stopped;

static void die(const char *what)
{
    if (ERR_peek_error())
        ERR_print_errors_fp(stderr);
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* --- Due times: a binary heap; each entry stores its position, so that a peer that disconnects can be removed --- */

static void put(struct peer *peer, size_t place)
{
    loop.heap[place] = peer;
    peer->place = place;
}

static void sift(struct peer *peer, size_t place)
{
    for (; place > 1 && loop.heap[place / 2]->due > peer->due; place /= 2)
        put(loop.heap[place / 2], place);
    for (;;) {
        size_t child = place * 2;
        if (child < loop.heap_length && loop.heap[child + 1]->due < loop.heap[child]->due)
            child++;
        if (child > loop.heap_length || loop.heap[child]->due >= peer->due)
            break;
        put(loop.heap[child], place);
        place = child;
    }
    put(peer, place);
}

static void schedule(struct peer *peer, int64_t due)
{
    if (loop.heap_length + 1 >= loop.heap_capacity) {
        loop.heap_capacity = loop.heap_capacity ? loop.heap_capacity * 2 : 1024;
        loop.heap = realloc(loop.heap, loop.heap_capacity * sizeof *loop.heap);
        if (loop.heap == NULL)
            die("heap");
    }
    peer->due = due;
    sift(peer, ++loop.heap_length);
    server_counts.waiting = loop.heap_length;
    if (server_counts.waiting > server_counts.waiting_peak)
        server_counts.waiting_peak = server_counts.waiting;
}

static void unschedule(struct peer *peer)
{
    size_t place = peer->place;
    if (place == 0)
        return;
    peer->place = 0;
    struct peer *last = loop.heap[loop.heap_length--];
    if (last != peer)
        sift(last, place);
    server_counts.waiting = loop.heap_length;
}

/* --- Peers --- */

static void watch(struct peer *peer, int operation)
{
    struct epoll_event event = {.events = EPOLLIN | (peer->wants_write ? EPOLLOUT : 0), .data.ptr = peer};
    if (epoll_ctl(loop.epoll, operation, peer->fd, &event) < 0)
        die("epoll_ctl");
}

static void close_peer(struct peer *peer)
{
    if (peer->fd < 0)
        return;
    unschedule(peer);
    SSL_free(peer->tls);
    ERR_clear_error(); /* errors left by a failed peer must not be attributed to the next one */
    close(peer->fd);
    peer->fd = -1;
    server_counts.open--;
    if (peer->previous)
        peer->previous->next = peer->next;
    else
        loop.peers = peer->next;
    if (peer->next)
        peer->next->previous = peer->previous;
    peer->next = loop.closed;
    loop.closed = peer;
}

static void free_closed(void)
{
    while (loop.closed) {
        struct peer *peer = loop.closed;
        loop.closed = peer->next;
        buffer_free(&peer->in);
        buffer_free(&peer->out);
        free(peer);
    }
}

static void accept_peers(void)
{
    int fd;
    while ((fd = accept4(loop.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct peer *peer = allocate(sizeof *peer);
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        peer->fd = fd;
        peer->greeted = loop.tls == NULL;
        if (loop.tls) {
            peer->tls = SSL_new(loop.tls);
            if (peer->tls == NULL || !SSL_set_fd(peer->tls, fd))
                die("TLS");
            SSL_set_accept_state(peer->tls);
        }
        peer->next = loop.peers;
        if (loop.peers)
            loop.peers->previous = peer;
        loop.peers = peer;
        server_counts.accepted++;
        if (++server_counts.open > server_counts.open_peak)
            server_counts.open_peak = server_counts.open;
        watch(peer, EPOLL_CTL_ADD);
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        die("accept");
}

/* --- Bytes in and out. These return what read and write return, and 0 for "not now" (the peer may be closed then) --- */

static size_t failed(struct peer *peer, bool not_now)
{
    if (!not_now)
        close_peer(peer);
    return 0;
}

static bool tls_not_now(struct peer *peer, int result)
{
    int error = SSL_get_error(peer->tls, result);
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
}

static size_t receive(struct peer *peer, char *into, size_t length)
{
    if (peer->tls) {
        int got = SSL_read(peer->tls, into, (int)length);
        return got > 0 ? (size_t)got : failed(peer, tls_not_now(peer, got));
    }
    ssize_t got = recv(peer->fd, into, length, 0);
    return got > 0 ? (size_t)got : failed(peer, got < 0 && (errno == EAGAIN || errno == EINTR));
}

static size_t transmit(struct peer *peer, const char *from, size_t length)
{
    if (peer->tls) {
        int put = SSL_write(peer->tls, from, length < INT32_MAX ? (int)length : INT32_MAX);
        return put > 0 ? (size_t)put : failed(peer, tls_not_now(peer, put));
    }
    ssize_t put = send(peer->fd, from, length, MSG_NOSIGNAL);
    return put > 0 ? (size_t)put : failed(peer, put < 0 && (errno == EAGAIN || errno == EINTR));
}

static void want_write(struct peer *peer, bool wanted)
{
    if (peer->fd >= 0 && peer->wants_write != wanted) {
        peer->wants_write = wanted;
        watch(peer, EPOLL_CTL_MOD);
    }
}

static void read_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    loop.now = (int64_t)now.tv_sec * NANOSECONDS + now.tv_nsec;
}

static void flush(struct peer *peer)
{
    if (peer->sent_at) {
        read_clock();
        *peer->sent_at = loop.now;
        peer->sent_at = NULL;
    }
    while (peer->sent < peer->out.length) {
        size_t put = transmit(peer, peer->out.start + peer->sent, peer->out.length - peer->sent);
        if (put == 0) {
            want_write(peer, true);
            return;
        }
        peer->sent += put;
    }
    peer->sent = peer->out.length = 0;
    want_write(peer, false);
    if (peer->closing) {
        /* Not close(): with input unread that would send a reset, which can overtake the response. */
        if (peer->tls) {
            SSL_shutdown(peer->tls);
            ERR_clear_error();
        }
        shutdown(peer->fd, SHUT_WR);
    }
}

/* Handle the complete requests in the peer's input, until a response has to wait. */
static void serve(struct peer *peer)
{
    size_t at = 0;
    while (peer->fd >= 0 && !peer->held && !peer->closing && peer->out.length == 0 && at < peer->in.length &&
           peer->in.length - at >= peer->needed) {
        struct slice input = {peer->in.start + at, peer->in.length - at};
        struct request request;
        enum parsed parsed = http_parse(input, peer->searched, loop.server->max_body_bytes, &request);
        if (parsed == REQUEST_INCOMPLETE) {
            /* Once the head is complete, wait for the whole request, then parse the head again. */
            peer->searched = request.length ? 0 : input.length;
            peer->needed = request.length;
            break;
        }
        peer->searched = peer->needed = 0;
        if (parsed == REQUEST_REJECTED) {
            peer->keep_alive = false;
            server_respond(peer, &(struct response){.status = request.rejected, .undelayed = true});
            return;
        }
        peer->keep_alive = request.keep_alive;
        loop.server->handle(peer, &request);
        at += request.length;
    }
    if (at > 0 && peer->in.length > at)
        memmove(peer->in.start, peer->in.start + at, peer->in.length - at);
    peer->in.length -= at;
}

static bool greet(struct peer *peer)
{
    int result = SSL_do_handshake(peer->tls);
    if (result != 1)
        return failed(peer, tls_not_now(peer, result));
    peer->greeted = true;
    server_counts.handshakes++;
    server_counts.handshakes_resumed += (uint64_t)SSL_session_reused(peer->tls);
    return true;
}

static void readable(struct peer *peer)
{
    if (!peer->greeted && !greet(peer))
        return;
    do {
        if (peer->closing)
            peer->in.length = 0; /* it will not be read */
        if (peer->in.length > MAX_HEAD_BYTES + loop.server->max_body_bytes + READ_BYTES) {
            close_peer(peer); /* it sends without end while its request is in progress */
            return;
        }
        size_t missing = peer->needed > peer->in.length ? peer->needed - peer->in.length : 0;
        buffer_reserve(&peer->in, missing > READ_BYTES ? missing : READ_BYTES);
        size_t got = receive(peer, peer->in.start + peer->in.length, peer->in.capacity - peer->in.length);
        if (got == 0)
            return;
        peer->in.length += got;
        serve(peer);
        /* OpenSSL may have read bytes ahead, which epoll cannot report. Bytes in the kernel it does report: another read
         * would nearly always be a wasted system call. */
    } while (peer->fd >= 0 && peer->tls && SSL_has_pending(peer->tls));
}

/* --- Functions for the servers --- */

void server_respond(struct peer *peer, const struct response *response)
{
    peer->held = false;
    peer->closing = !peer->keep_alive;
    peer->sent_at = response->sent_at;
    http_render(&peer->out, response, peer->keep_alive);
    if ((loop.delay_max_ms > 0 || response->delay_ms > 0) && !response->undelayed) {
        double share = (double)(random_bits() >> 11) * 0x1p-53;
        double delay_ms = response->delay_ms + loop.delay_min_ms + share * (loop.delay_max_ms - loop.delay_min_ms);
        schedule(peer, loop.now + (int64_t)(delay_ms * 1e6));
    } else {
        flush(peer);
    }
}

void server_hold(struct peer *peer, double seconds, long note)
{
    peer->held = true;
    peer->note = note;
    schedule(peer, loop.now + (int64_t)(seconds * NANOSECONDS));
}

void server_release_held(void)
{
    for (struct peer *peer = loop.peers; peer; peer = peer->next)
        if (peer->held) {
            unschedule(peer);
            schedule(peer, loop.now);
        }
}

int64_t server_now(void)
{
    return loop.now;
}

double server_cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

void server_reset_peaks(void)
{
    server_counts.open_peak = server_counts.open;
    server_counts.waiting_peak = server_counts.waiting;
    server_counts.accepted = server_counts.handshakes = server_counts.handshakes_resumed = 0;
}

bool server_option(int option, const char *value)
{
    switch (option) {
    case 'p': loop.port = atoi(value); return true;
    case 'c': loop.certificate = value; return true;
    case 'k': loop.key = value; return true;
    case 'd': loop.delay_min_ms = atof(value); return true;
    case 'D': loop.delay_max_ms = atof(value); return true;
    default: return false;
    }
}

/* --- Start, run, stop --- */

static void open_tls(void)
{
    loop.tls = SSL_CTX_new(TLS_server_method());
    if (loop.tls == NULL || !SSL_CTX_set_min_proto_version(loop.tls, TLS1_3_VERSION) ||
        /* The suite that AWS's endpoints choose; by the client's preference it would often be AES-256. */
        !SSL_CTX_set_ciphersuites(loop.tls, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384") ||
        SSL_CTX_use_certificate_chain_file(loop.tls, loop.certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(loop.tls, loop.key, SSL_FILETYPE_PEM) != 1)
        die(loop.certificate);
    SSL_CTX_set_options(loop.tls, SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(loop.tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(loop.tls, 1); /* a record costs one read instead of two */
}

static void open_listener(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)loop.port)};
    socklen_t length = sizeof address;
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    loop.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    loop.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (loop.listener < 0 || loop.epoll < 0)
        die("socket");
    setsockopt(loop.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(loop.listener, (struct sockaddr *)&address, length) < 0 || listen(loop.listener, 4096) < 0 ||
        getsockname(loop.listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}; /* NULL: the listener */
    if (epoll_ctl(loop.epoll, EPOLL_CTL_ADD, loop.listener, &event) < 0)
        die("epoll_ctl");
    /* Printed once it is ready, so that a script can wait for the line and read the port that --port 0 chose. */
    printf("%s: %s://127.0.0.1:%d\n", loop.server->name, loop.tls ? "https" : "http", ntohs(address.sin_port));
    fflush(stdout);
}

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

static void turn(const sigset_t *while_waiting)
{
    struct epoll_event events[EVENTS];
    struct timespec pause = {0};
    if (loop.heap_length > 0 && loop.heap[1]->due > loop.now) {
        int64_t left = loop.heap[1]->due - loop.now;
        pause = (struct timespec){.tv_sec = left / NANOSECONDS, .tv_nsec = left % NANOSECONDS};
    }
    int count = epoll_pwait2(loop.epoll, events, EVENTS, loop.heap_length > 0 ? &pause : NULL, while_waiting);
    if (count < 0 && errno != EINTR)
        die("epoll_pwait2");
    read_clock();
    for (int i = 0; i < count; i++) {
        struct peer *peer = events[i].data.ptr;
        if (peer == NULL) {
            accept_peers();
            continue;
        }
        if (peer->fd >= 0 && events[i].events & EPOLLOUT) {
            flush(peer);
            serve(peer);
        }
        if (peer->fd >= 0 && events[i].events & ~(uint32_t)EPOLLOUT)
            readable(peer);
    }
    while (loop.heap_length > 0 && loop.heap[1]->due <= loop.now) {
        struct peer *peer = loop.heap[1];
        unschedule(peer);
        if (peer->held)
            loop.server->due(peer, peer->note);
        else
            flush(peer);
        serve(peer);
    }
    free_closed();
}

int server_run(const struct server *server)
{
    struct rlimit files;
    struct sigaction action = {.sa_handler = stop};
    sigset_t stops, while_waiting;
    loop.server = server;
    if (loop.delay_max_ms < loop.delay_min_ms)
        loop.delay_max_ms = loop.delay_min_ms;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max; /* thousands of peers */
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    /* Blocked except while waiting: otherwise a signal between the test of `stopped` and the wait would be missed. */
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    sigprocmask(SIG_BLOCK, &stops, &while_waiting);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    if (loop.certificate || loop.key) {
        if (!loop.certificate || !loop.key) {
            fputs("--certificate and --key go together\n", stderr);
            return 2;
        }
        open_tls();
    }
    read_clock();
    open_listener();
    while (!stopped)
        turn(&while_waiting);
    while (loop.peers)
        close_peer(loop.peers);
    free_closed();
    free(loop.heap);
    SSL_CTX_free(loop.tls);
    close(loop.listener);
    close(loop.epoll);
    return 0;
}
