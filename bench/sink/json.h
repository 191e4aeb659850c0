/* Finds fields in JSON without building a tree: what comes in is written by our own clients and the SDKs, any white
 * space and any order of fields included. It does not validate: of malformed JSON it promises only that nothing outside
 * the slice is read. A value that is not there is a slice with no start. */
#ifndef JSON_H
#define JSON_H

#include "buffer.h"

struct slice json_member(struct slice object, const char *name);
struct slice json_member_named(struct slice object, struct slice name);

/* Walk an object or an array: `rest` starts as the whole of it. Names come without their quotes. */
bool json_next_member(struct slice *rest, struct slice *name, struct slice *value);
bool json_next_element(struct slice *rest, struct slice *value);

struct slice json_text(struct slice value);                  /* what stands between a string's quotes, still escaped */
void json_decode(struct slice value, struct buffer *decoded); /* a string, as UTF-8, is added to `decoded` */
long long json_integer(struct slice value, long long otherwise);

#endif
