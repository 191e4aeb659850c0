#include "buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void *insist(void *memory)
{
    if (memory == NULL) {
        fputs("out of memory\n", stderr);
        abort();
    }
    return memory;
}

void *allocate(size_t bytes)
{
    return insist(calloc(1, bytes));
}

void buffer_reserve(struct buffer *buffer, size_t more)
{
    if (buffer->capacity - buffer->length >= more)
        return;
    size_t capacity = buffer->capacity * 2;
    if (capacity < buffer->length + more)
        capacity = buffer->length + more;
    buffer->start = insist(realloc(buffer->start, capacity));
    buffer->capacity = capacity;
}

void buffer_free(struct buffer *buffer)
{
    free(buffer->start);
    *buffer = (struct buffer){0};
}

void buffer_number(struct buffer *buffer, uint64_t number)
{
    char digits[20];
    size_t first = sizeof digits;
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    buffer_bytes(buffer, digits + first, sizeof digits - first);
}

void buffer_format(struct buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    buffer_reserve(buffer, (size_t)length + 1);
    va_start(arguments, format);
    vsnprintf(buffer->start + buffer->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    buffer->length += (size_t)length;
}
