/* Finds fields in JSON without building a tree, with any white space and order of fields, because the measured clients
 * and the SDKs write it. It does not validate: for malformed JSON it only guarantees that nothing outside the slice is
 * read. A missing value is a slice whose start is NULL. */
#ifndef JSON_H
#define JSON_H

#include "buffer.h"

struct slice json_member(struct slice object, const char *name);
struct slice json_member_named(struct slice object, struct slice name);

/* Walk an object or an array: `rest` starts as the whole of it. Names come without their quotes. */
bool json_next_member(struct slice *rest, struct slice *name, struct slice *value);
bool json_next_element(struct slice *rest, struct slice *value);

struct slice json_text(struct slice value);                  /* the text between a string's quotes, still escaped */
void json_decode(struct slice value, struct buffer *decoded); /* a string, as UTF-8, is added to `decoded` */
long long json_integer(struct slice value, long long otherwise);

#endif
