/* Bytes: a slice does not own its memory, a buffer owns it and grows. Running out of memory ends the process. */
#ifndef BUFFER_H
#define BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct slice {
    const char *start; /* not terminated by a zero */
    size_t length;
};

struct buffer {
    char *start;
    size_t length, capacity;
};

void *allocate(size_t bytes); /* zeroed */
void buffer_reserve(struct buffer *buffer, size_t more);
void buffer_free(struct buffer *buffer);
void buffer_number(struct buffer *buffer, uint64_t number); /* decimal; snprintf is too slow to call per response */
void buffer_format(struct buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));

static inline void buffer_bytes(struct buffer *buffer, const void *bytes, size_t length)
{
    if (length == 0)
        return; /* the bytes may then be NULL, which memcpy must not see */
    if (buffer->capacity - buffer->length < length)
        buffer_reserve(buffer, length);
    memcpy(buffer->start + buffer->length, bytes, length);
    buffer->length += length;
}

static inline void buffer_text(struct buffer *buffer, const char *text)
{
    buffer_bytes(buffer, text, strlen(text));
}

static inline void buffer_slice(struct buffer *buffer, struct slice slice)
{
    buffer_bytes(buffer, slice.start, slice.length);
}

static inline struct slice buffer_as_slice(const struct buffer *buffer)
{
    return (struct slice){buffer->start, buffer->length};
}

static inline struct slice text_slice(const char *text)
{
    return (struct slice){text, strlen(text)};
}

static inline bool slice_is(struct slice slice, const char *text)
{
    size_t length = strlen(text);
    return slice.length == length && memcmp(slice.start, text, length) == 0;
}

static inline bool slice_starts(struct slice slice, const char *text)
{
    size_t length = strlen(text);
    return slice.length >= length && memcmp(slice.start, text, length) == 0;
}

#endif
