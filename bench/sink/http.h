/* HTTP/1.1 as these servers need it: parsing requests with Content-Length bodies, and rendering responses. No I/O. */
#ifndef HTTP_H
#define HTTP_H

#include "buffer.h"

enum { MAX_HEAD_BYTES = 16 * 1024 };

struct request {
    struct slice method, path, body;
    struct slice target; /* X-Amz-Target, empty without one */
    bool keep_alive;
    size_t length; /* of head and body together, known as soon as the head is complete */
    int rejected;   /* the status to reject it with */
};

enum parsed { REQUEST_INCOMPLETE, REQUEST_COMPLETE, REQUEST_REJECTED };

/* Parse the start of `input`. The first `searched` bytes are known not to contain the end of the head. */
enum parsed http_parse(struct slice input, size_t searched, size_t max_body_bytes, struct request *request);

struct response {
    int status;
    const char *content_type; /* NULL: none */
    struct slice headers;     /* further ones, each with its line end */
    struct slice body;
    bool undelayed;   /* ignore the delay options: for /stats and /reset */
    double delay_ms;  /* otherwise an additional delay */
    int64_t *sent_at; /* NULL, or where to store the monotonic nanoseconds when it is sent */
};

void http_render(struct buffer *out, const struct response *response, bool keep_alive);

uint64_t random_bits(void);
void buffer_uuid(struct buffer *buffer);                           /* a random one, as request ids are */
void buffer_random(struct buffer *buffer, const char *alphabet64, size_t length); /* the alphabet has 64 characters */

#endif
