#include "json.h"

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

/* From an opening quote to after the closing one. */
static const char *skip_string(const char *at, const char *end)
{
    for (at++; at < end; at++) {
        if (*at == '\\' && at + 1 < end)
            at++;
        else if (*at == '"')
            return at + 1;
    }
    return end;
}

static const char *skip_value(const char *at, const char *end)
{
    int depth = 0;
    while (at < end) {
        switch (*at) {
        case '"':
            at = skip_string(at, end);
            break;
        case '{':
        case '[':
            depth++;
            at++;
            break;
        case '}':
        case ']':
            if (depth == 0)
                return at; /* the end of the object or array that contains the scalar */
            depth--;
            at++;
            break;
        case ',':
        case ' ':
        case '\t':
        case '\n':
        case '\r':
            if (depth == 0)
                return at;
            at++;
            continue; /* inside a nested value, ignore separators */
        default:
            at++;
            continue; /* a scalar continues */
        }
        if (depth == 0)
            return at;
    }
    return end;
}

/* After the opening bracket or the comma before the next entry; NULL if there is none. */
static const char *next_entry(struct slice *rest)
{
    if (rest->start == NULL)
        return NULL;
    const char *end = rest->start + rest->length, *at = skip_space(rest->start, end);
    if (at < end && (*at == '{' || *at == '[' || *at == ','))
        at = skip_space(at + 1, end);
    else
        return NULL;
    return at < end && *at != '}' && *at != ']' ? at : NULL;
}

static struct slice take_value(struct slice *rest, const char *at)
{
    const char *end = rest->start + rest->length, *after = skip_value(at, end);
    *rest = (struct slice){after, (size_t)(end - after)};
    return (struct slice){at, (size_t)(after - at)};
}

bool json_next_member(struct slice *rest, struct slice *name, struct slice *value)
{
    const char *at = next_entry(rest);
    if (at == NULL || *at != '"')
        return false;
    const char *end = rest->start + rest->length, *after = skip_string(at, end);
    *name = json_text((struct slice){at, (size_t)(after - at)});
    at = skip_space(after, end);
    if (at == end || *at != ':')
        return false;
    *value = take_value(rest, skip_space(at + 1, end));
    return true;
}

bool json_next_element(struct slice *rest, struct slice *value)
{
    const char *at = next_entry(rest);
    if (at == NULL)
        return false;
    *value = take_value(rest, at);
    return value->length > 0;
}

struct slice json_member_named(struct slice object, struct slice wanted)
{
    struct slice name, value;
    while (json_next_member(&object, &name, &value))
        if (name.length == wanted.length && memcmp(name.start, wanted.start, wanted.length) == 0)
            return value;
    return (struct slice){0};
}

struct slice json_member(struct slice object, const char *name)
{
    return json_member_named(object, text_slice(name));
}

struct slice json_text(struct slice value)
{
    if (value.length < 2 || value.start[0] != '"' || value.start[value.length - 1] != '"')
        return (struct slice){0};
    return (struct slice){value.start + 1, value.length - 2};
}

/* Four hexadecimal digits, or -1. */
static long code_unit(const char *at, const char *end)
{
    long unit = 0;
    if (end - at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char digit = at[i];
        int digit_value = digit >= '0' && digit <= '9'   ? digit - '0'
                          : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                          : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                                         : -1;
        if (digit_value < 0)
            return -1;
        unit = unit * 16 + digit_value;
    }
    return unit;
}

static void add_utf8(struct buffer *decoded, long code)
{
    char bytes[4];
    size_t length;
    if (code < 0x80) {
        bytes[0] = (char)code;
        length = 1;
    } else if (code < 0x800) {
        bytes[0] = (char)(0xC0 | code >> 6);
        bytes[1] = (char)(0x80 | (code & 0x3F));
        length = 2;
    } else if (code < 0x10000) {
        bytes[0] = (char)(0xE0 | code >> 12);
        bytes[1] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[2] = (char)(0x80 | (code & 0x3F));
        length = 3;
    } else {
        bytes[0] = (char)(0xF0 | code >> 18);
        bytes[1] = (char)(0x80 | (code >> 12 & 0x3F));
        bytes[2] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[3] = (char)(0x80 | (code & 0x3F));
        length = 4;
    }
    buffer_bytes(decoded, bytes, length);
}

void json_decode(struct slice value, struct buffer *decoded)
{
    static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t"; /* pairs: the letter, and its character */
    struct slice text = json_text(value);
    const char *at = text.start, *end = text.start + text.length;
    while (at < end) {
        const char *escape = memchr(at, '\\', (size_t)(end - at));
        if (escape == NULL || escape + 1 == end) {
            buffer_bytes(decoded, at, (size_t)(end - at));
            return;
        }
        buffer_bytes(decoded, at, (size_t)(escape - at));
        at = escape + 2;
        if (escape[1] == 'u') {
            long code = code_unit(at, end), low = -1;
            if (code < 0)
                return;
            at += 4;
            if (code >= 0xD800 && code < 0xDC00 && end - at >= 6 && at[0] == '\\' && at[1] == 'u')
                low = code_unit(at + 2, end);
            if (low >= 0xDC00 && low < 0xE000) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                at += 6;
            }
            add_utf8(decoded, code);
            continue;
        }
        for (const char *pair = escapes; *pair != '\0'; pair += 2)
            if (*pair == escape[1])
                buffer_bytes(decoded, pair + 1, 1);
    }
}

long long json_integer(struct slice value, long long otherwise)
{
    size_t at = 0;
    bool negative = value.length > 0 && value.start[0] == '-';
    long long number = 0;
    if (negative)
        at++;
    if (at == value.length || value.length > 18) /* 18 digits cannot overflow */
        return otherwise;
    for (; at < value.length; at++) {
        if (value.start[at] < '0' || value.start[at] > '9')
            return otherwise;
        number = number * 10 + (value.start[at] - '0');
    }
    return negative ? -number : number;
}
