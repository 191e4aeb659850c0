/* HTTP/1.1 as these servers need it: requests with Content-Length bodies, and how an answer is written. No I/O. */
#ifndef HTTP_H
#define HTTP_H

#include "buffer.h"

enum { MAX_HEAD_BYTES = 16 * 1024 };

struct request {
    struct slice method, path, body;
    struct slice target; /* X-Amz-Target, empty without one */
    bool keep_alive;
    size_t length; /* of head and body together, known as soon as the head is complete */
    int refused;   /* the status to refuse it with */
};

enum parsed { REQUEST_INCOMPLETE, REQUEST_COMPLETE, REQUEST_REFUSED };

/* What `input` starts with. The end of the head is not looked for in its first `searched` bytes. */
enum parsed http_parse(struct slice input, size_t searched, size_t max_body_bytes, struct request *request);

struct answer {
    int status;
    const char *content_type; /* NULL: none */
    struct slice headers;     /* further ones, each with its line end */
    struct slice body;
    bool undelayed;   /* do not keep it back as the options say: for /stats and /reset */
    double delay_ms;  /* and otherwise keep it back for so much longer */
    int64_t *sent_at; /* NULL, or where to note the monotonic nanoseconds when it goes out */
};

void http_render(struct buffer *out, const struct answer *answer, bool keep_alive);

uint64_t random_bits(void);
void buffer_uuid(struct buffer *buffer);                           /* a random one, as request ids are */
void buffer_random(struct buffer *buffer, const char *alphabet64, size_t length); /* the alphabet has 64 characters */

#endif
