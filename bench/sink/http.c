#include "http.h"

#include <strings.h>
#include <time.h>

static bool header_is(struct slice line, const char *name, struct slice *value)
{
    size_t length = strlen(name);
    if (line.length <= length || line.start[length] != ':' || strncasecmp(line.start, name, length) != 0)
        return false;
    const char *at = line.start + length + 1, *end = line.start + line.length;
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *value = (struct slice){at, (size_t)(end - at)};
    return true;
}

static enum parsed reject(struct request *request, int status)
{
    request->rejected = status;
    return REQUEST_REJECTED;
}

/* Digits only; saturates instead of overflowing. */
static bool content_length(struct slice text, size_t *length)
{
    *length = 0;
    for (size_t i = 0; i < text.length; i++) {
        if (text.start[i] < '0' || text.start[i] > '9')
            return false;
        if (*length < SIZE_MAX / 16)
            *length = *length * 10 + (size_t)(text.start[i] - '0');
    }
    return text.length > 0;
}

enum parsed http_parse(struct slice input, size_t searched, size_t max_body_bytes, struct request *request)
{
    *request = (struct request){.keep_alive = true};
    size_t from = searched > 3 ? searched - 3 : 0; /* the four bytes may have been split */
    const char *blank = from < input.length ? memmem(input.start + from, input.length - from, "\r\n\r\n", 4) : NULL;
    if (blank == NULL)
        return input.length > MAX_HEAD_BYTES ? reject(request, 431) : REQUEST_INCOMPLETE;

    const char *line = input.start, *end = memchr(line, '\r', (size_t)(blank + 1 - line));
    const char *method_end = memchr(line, ' ', (size_t)(end - line));
    const char *path_end = method_end ? memchr(method_end + 1, ' ', (size_t)(end - method_end - 1)) : NULL;
    if (path_end == NULL)
        return reject(request, 400);
    request->method = (struct slice){line, (size_t)(method_end - line)};
    request->path = (struct slice){method_end + 1, (size_t)(path_end - method_end - 1)};
    if (!slice_is((struct slice){path_end + 1, (size_t)(end - path_end - 1)}, "HTTP/1.1"))
        return reject(request, 505);

    size_t body_length = 0;
    while (end < blank) {
        if (end[1] != '\n')
            return reject(request, 400);
        line = end + 2;
        end = memchr(line, '\r', (size_t)(blank + 1 - line));
        struct slice header = {line, (size_t)(end - line)}, value;
        if (header_is(header, "Content-Length", &value)) {
            if (!content_length(value, &body_length))
                return reject(request, 400);
        } else if (header_is(header, "X-Amz-Target", &value)) {
            request->target = value;
        } else if (header_is(header, "Connection", &value)) {
            request->keep_alive = !(value.length == 5 && strncasecmp(value.start, "close", 5) == 0);
        } else if (header_is(header, "Transfer-Encoding", &value)) {
            return reject(request, 501); /* the measured clients send Content-Length */
        }
    }
    if (body_length > max_body_bytes)
        return reject(request, 413);
    size_t head_length = (size_t)(blank + 4 - input.start);
    request->length = head_length + body_length;
    if (input.length < request->length)
        return REQUEST_INCOMPLETE;
    request->body = (struct slice){input.start + head_length, body_length};
    return REQUEST_COMPLETE;
}

static const char *reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 410: return "Gone";
    case 413: return "Payload Too Large";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "Other";
    }
}

/* The Date header, rendered once per second. */
static const char *date_header(void)
{
    static char text[64];
    static time_t made;
    time_t now = time(NULL);
    if (now != made) {
        struct tm parts;
        gmtime_r(&now, &parts);
        strftime(text, sizeof text, "\r\nDate: %a, %d %b %Y %H:%M:%S GMT", &parts);
        made = now;
    }
    return text;
}

void http_render(struct buffer *out, const struct response *response, bool keep_alive)
{
    buffer_text(out, "HTTP/1.1 ");
    buffer_number(out, (uint64_t)response->status);
    buffer_text(out, " ");
    buffer_text(out, reason(response->status));
    buffer_text(out, date_header());
    if (response->content_type) {
        buffer_text(out, "\r\nContent-Type: ");
        buffer_text(out, response->content_type);
    }
    if (response->status != 204) {
        buffer_text(out, "\r\nContent-Length: ");
        buffer_number(out, response->body.length);
    }
    buffer_text(out, keep_alive ? "\r\nConnection: keep-alive\r\n" : "\r\nConnection: close\r\n");
    buffer_slice(out, response->headers);
    buffer_text(out, "\r\n");
    buffer_slice(out, response->body);
}

/* splitmix64: a few instructions; nothing here needs to be unpredictable. */
uint64_t random_bits(void)
{
    static uint64_t state;
    if (state == 0) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        state = (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    }
    uint64_t bits = state += 0x9E3779B97F4A7C15u;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

void buffer_uuid(struct buffer *buffer)
{
    static const char hex[] = "0123456789abcdef";
    char text[36];
    uint64_t bits[2] = {random_bits(), random_bits()};
    for (int i = 0, digit = 0; i < 36; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            text[i] = '-';
            continue;
        }
        text[i] = hex[bits[digit / 16] >> (digit % 16 * 4) & 15];
        digit++;
    }
    text[14] = '4'; /* version 4 */
    text[19] = hex[8 | (bits[1] & 3)];
    buffer_bytes(buffer, text, sizeof text);
}

void buffer_random(struct buffer *buffer, const char *alphabet64, size_t length)
{
    uint64_t bits = 0;
    buffer_reserve(buffer, length);
    for (size_t i = 0; i < length; i++) {
        if (i % 10 == 0)
            bits = random_bits();
        buffer->start[buffer->length++] = alphabet64[bits & 63];
        bits >>= 6;
    }
}
