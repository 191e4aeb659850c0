/* DynamoDB: queries of rooms, whose members are generated, and writes that always succeed.
 *
 * A member's id is derived from its index, and vice versa: the space of ids is divided into as many equal parts as
 * there are members, and each id lies at a random position in the part of its index. So the ids are in ascending order,
 * look random, and a query continues after any id without a search or a list of members in memory.
 */
#include <stdlib.h>
#include <zlib.h>

#include "aws.h"

enum {
    ID_LENGTH = 16,      /* as those of API Gateway: 11 bytes in base64 */
    ORDERED_DIGITS = 10, /* the digits of an id that determine the order: 60 bits */
    CACHED_FROM = 100,   /* smaller pages are rendered each time: there are many of them, and they are cheap */
    CACHE_SLOTS = 4096,
    CACHE_MS = 10 * 60 * 1000, /* a page contains its members' expiry times, one hour after rendering */
    HOUR_MS = 3600 * 1000,
};
#define CACHE_BYTES ((size_t)1 << 30)

/* The digits of URL-safe base64, in the order in which DynamoDB sorts them. */
static const char ordered[65] = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
/* The last digit has only four bits; these are the digits whose other bits are zero. */
static const char last_digits[17] = "AEIMQUYcgkosw048";

static struct page {
    uint64_t room;
    long long first, count;
    bool projected, limited;
    int64_t rendered_ms;
    struct buffer pk, body;
    uint32_t crc32;
} cache[CACHE_SLOTS];
static size_t cached_bytes;
static uint64_t pages_rendered, items, connections_queried;

void dynamodb_arm(void)
{
    for (size_t i = 0; i < CACHE_SLOTS; i++) {
        buffer_free(&cache[i].pk);
        buffer_free(&cache[i].body);
    }
    cached_bytes = 0;
    pages_rendered = items = connections_queried = 0;
}

static void respond_with_crc(struct peer *peer, int status, struct slice body, uint32_t crc)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
    static struct buffer headers;
    headers.length = 0;
    buffer_text(&headers, "Server: Server\r\nx-amzn-RequestId: ");
    buffer_random(&headers, alphabet, 52);
    buffer_text(&headers, "\r\nx-amz-crc32: ");
    buffer_number(&headers, crc);
    buffer_text(&headers, "\r\n");
    server_respond(peer, &(struct response){
                            .status = status,
                            .content_type = "application/x-amz-json-1.0",
                            .headers = buffer_as_slice(&headers),
                            .body = body,
                            .delay_ms = dynamodb_delay_ms,
                        });
}

static void respond(struct peer *peer, int status, struct slice body)
{
    respond_with_crc(peer, status, body, (uint32_t)crc32_z(0, (const Bytef *)body.start, body.length));
}

void dynamodb_error(struct peer *peer, const char *type, const char *message)
{
    struct buffer body = {0};
    buffer_format(&body, "{\"__type\":\"com.amazonaws.dynamodb.v20120810#%s\",\"message\":\"%s\"}", type, message);
    respond(peer, 400, buffer_as_slice(&body));
    buffer_free(&body);
}

/* --- Members --- */

static uint64_t mix(uint64_t bits)
{
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

static uint64_t hash(struct slice text)
{
    uint64_t sum = 0xCBF29CE484222325u;
    for (size_t i = 0; i < text.length; i++)
        sum = (sum ^ (unsigned char)text.start[i]) * 0x100000001B3u;
    return mix(sum);
}

static uint64_t part_of_ids(void)
{
    return ((uint64_t)1 << 60) / (uint64_t)workload.members;
}

static void make_id(uint64_t room, long long index, char id[ID_LENGTH])
{
    uint64_t bits = mix(room + (uint64_t)index * 0x9E3779B97F4A7C15u), part = part_of_ids();
    uint64_t place = (uint64_t)index * part + bits % part;
    for (int i = ORDERED_DIGITS - 1; i >= 0; i--, place >>= 6)
        id[i] = ordered[place & 63];
    bits = mix(bits + 1);
    for (int i = ORDERED_DIGITS; i < ID_LENGTH - 2; i++, bits >>= 6)
        id[i] = ordered[bits & 63];
    id[ID_LENGTH - 2] = last_digits[bits & 15];
    id[ID_LENGTH - 1] = '=';
}

/* The index of the first member after this sort key, which need not be a member's. */
static long long index_behind(uint64_t room, struct slice sk)
{
    uint64_t place = 0, digit, rest = 0; /* rest: the digit after which the key differs from an id */
    bool like_an_id = true;
    char id[ID_LENGTH];
    for (size_t i = 0; i < ORDERED_DIGITS; i++, place = place << 6 | digit) {
        digit = rest;
        if (!like_an_id)
            continue;
        unsigned char wanted = i < sk.length ? (unsigned char)sk.start[i] : 0;
        while (digit < 63 && (unsigned char)ordered[digit] < wanted)
            digit++;
        like_an_id = (unsigned char)ordered[digit] == wanted;
        rest = (unsigned char)ordered[digit] < wanted ? 63 : 0;
    }
    uint64_t index = place / part_of_ids();
    if (index >= (uint64_t)workload.members)
        return workload.members;
    make_id(room, (long long)index, id);
    int order = sk.length ? memcmp(id, sk.start, sk.length < ID_LENGTH ? sk.length : ID_LENGTH) : 1;
    bool behind = order > 0 || (order == 0 && sk.length < ID_LENGTH);
    return (long long)index + !behind;
}

/* --- Pages --- */

static void add_key(struct buffer *out, struct slice pk, const char id[ID_LENGTH])
{
    buffer_text(out, "\"pk\":{\"S\":\"");
    buffer_slice(out, pk);
    buffer_text(out, "\"},\"sk\":{\"S\":\"");
    buffer_bytes(out, id, ID_LENGTH);
    buffer_text(out, "\"}");
}

static void render(struct page *page, struct slice pk, int64_t now_ms)
{
    struct buffer *out = &page->body;
    char id[ID_LENGTH];
    out->length = 0;
    buffer_text(out, "{\"Count\":");
    buffer_number(out, (uint64_t)page->count);
    buffer_text(out, ",\"Items\":[");
    for (long long i = page->first; i < page->first + page->count; i++) {
        make_id(page->room, i, id);
        buffer_text(out, i > page->first ? ",{" : "{");
        if (page->projected) {
            buffer_text(out, "\"sk\":{\"S\":\"");
            buffer_bytes(out, id, ID_LENGTH);
            buffer_text(out, "\"}");
        } else {
            add_key(out, pk, id);
        }
        buffer_text(out, ",\"joined_at_ms\":{\"N\":\"");
        buffer_number(out, (uint64_t)(now_ms - HOUR_MS));
        buffer_text(out, "\"},\"expires_at\":{\"N\":\"");
        buffer_number(out, (uint64_t)(now_ms + HOUR_MS) / 1000);
        buffer_text(out, "\"}}");
    }
    buffer_text(out, "]");
    /* As DynamoDB does, also after a page that Limit has ended, whether or not more items follow. */
    if (page->count > 0 && (page->limited || page->first + page->count < workload.members)) {
        buffer_text(out, ",\"LastEvaluatedKey\":{");
        add_key(out, pk, id);
        buffer_text(out, "}");
    }
    buffer_text(out, ",\"ScannedCount\":");
    buffer_number(out, (uint64_t)page->count);
    buffer_text(out, "}");
    page->crc32 = (uint32_t)crc32_z(0, (const Bytef *)out->start, out->length);
    page->rendered_ms = now_ms;
    pages_rendered++;
}

static void respond_with_page(struct peer *peer, struct page wanted, struct slice pk)
{
    static struct page scratch; /* for pages that are not cached; its memory is reused */
    int64_t now_ms = milliseconds_since_epoch();
    uint64_t sum = mix(wanted.room ^ mix((uint64_t)wanted.first * 4 + wanted.projected * 2 + wanted.limited));
    struct page *page = &cache[mix(sum + (uint64_t)wanted.count) % CACHE_SLOTS];
    bool cacheable = wanted.count >= CACHED_FROM;
    items += (uint64_t)wanted.count;
    if (cacheable && page->body.start && page->room == wanted.room && page->first == wanted.first &&
        page->count == wanted.count && page->projected == wanted.projected && page->limited == wanted.limited &&
        pk.length == page->pk.length && memcmp(pk.start, page->pk.start, pk.length) == 0 &&
        now_ms - page->rendered_ms < CACHE_MS) {
        respond_with_crc(peer, 200, buffer_as_slice(&page->body), page->crc32);
        return;
    }
    if (!cacheable || cached_bytes - page->body.capacity > CACHE_BYTES)
        page = &scratch;
    else
        cached_bytes -= page->body.capacity;
    wanted.pk = page->pk;
    wanted.body = page->body;
    *page = wanted;
    page->pk.length = 0;
    buffer_slice(&page->pk, pk);
    render(page, pk, now_ms);
    if (page != &scratch)
        cached_bytes += page->body.capacity;
    respond_with_crc(peer, 200, buffer_as_slice(&page->body), page->crc32);
}

/* --- Queries --- */

static bool is_word(char letter)
{
    return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') || (letter >= '0' && letter <= '9') ||
           letter == '_' || letter == '#' || letter == ':' || letter == '-' || letter == '.';
}

/* The word that ends before, or begins after, a position in an expression; blanks between are skipped. */
static struct slice word_at(struct slice text, size_t at, bool before)
{
    size_t from = at, to = at;
    if (before) {
        while (to > 0 && !is_word(text.start[to - 1]))
            to--;
        for (from = to; from > 0 && is_word(text.start[from - 1]);)
            from--;
    } else {
        while (from < text.length && !is_word(text.start[from]))
            from++;
        for (to = from; to < text.length && is_word(text.start[to]);)
            to++;
    }
    return (struct slice){text.start + from, to - from};
}

/* The value that `pk` must equal by the key condition, still escaped. `also` is set if there is another condition (on
 * sk). */
static struct slice wanted_pk(struct slice input, bool *also)
{
    struct slice condition = json_text(json_member(input, "KeyConditionExpression"));
    struct slice names = json_member(input, "ExpressionAttributeNames");
    struct slice values = json_member(input, "ExpressionAttributeValues");
    for (size_t i = 0; i < condition.length; i++) {
        if (condition.start[i] != '=')
            continue;
        struct slice name = word_at(condition, i, true), value = word_at(condition, i + 1, false);
        if (slice_starts(name, "#"))
            name = json_text(json_member_named(names, name));
        if (!slice_is(name, "pk"))
            continue;
        *also = memmem(condition.start, condition.length, " AND ", 5) ||
                memmem(condition.start, condition.length, " and ", 5);
        return json_text(json_member(json_member_named(values, value), "S"));
    }
    return (struct slice){0};
}

/* The rooms of a connection, the same for all of them. */
static void respond_with_joined_rooms(struct peer *peer, struct slice pk, bool projected)
{
    static struct buffer out;
    connections_queried++;
    out.length = 0;
    buffer_text(&out, "{\"Count\":");
    buffer_number(&out, (uint64_t)workload.joined_rooms);
    buffer_text(&out, ",\"Items\":[");
    for (long long i = 0; i < workload.joined_rooms; i++) {
        buffer_text(&out, i ? ",{\"sk\":{\"S\":\"room#r" : "{\"sk\":{\"S\":\"room#r");
        buffer_number(&out, (uint64_t)i);
        buffer_text(&out, "\"},\"shard\":{\"N\":\"0\"}");
        if (!projected) {
            buffer_text(&out, ",\"pk\":{\"S\":\"");
            buffer_slice(&out, pk);
            buffer_text(&out, "\"},\"expires_at\":{\"N\":\"");
            buffer_number(&out, (uint64_t)(milliseconds_since_epoch() + HOUR_MS) / 1000);
            buffer_text(&out, "\"}");
        }
        buffer_text(&out, "}");
    }
    buffer_text(&out, "],\"ScannedCount\":");
    buffer_number(&out, (uint64_t)workload.joined_rooms);
    buffer_text(&out, "}");
    respond(peer, 200, buffer_as_slice(&out));
}

void dynamodb_query(struct peer *peer, struct slice input)
{
    bool also = false;
    struct slice pk = wanted_pk(input, &also);
    if (pk.start == NULL) {
        dynamodb_error(peer, "ValidationException", "no pk in KeyConditionExpression");
        return;
    }
    if (slice_starts(pk, "connection#")) {
        respond_with_joined_rooms(peer, pk, json_member(input, "ProjectionExpression").start != NULL);
        return;
    }
    if (!slice_starts(pk, "room#") || workload.members == 0) {
        respond(peer, 200, text_slice("{\"Count\":0,\"Items\":[],\"ScannedCount\":0}"));
        return;
    }
    if (also) { /* better than returning members that were not requested */
        dynamodb_error(peer, "ValidationException", "conditions on the sk of a member are not supported");
        return;
    }
    struct page page = {.room = hash(pk), .projected = json_member(input, "ProjectionExpression").start != NULL};
    struct slice start = json_member(input, "ExclusiveStartKey");
    struct slice start_sk = json_member(json_member(start, "sk"), "S");
    long long limit = json_integer(json_member(input, "Limit"), workload.page_members + 1);
    if (start.start && !json_text(start_sk).start) {
        dynamodb_error(peer, "ValidationException", "no sk in ExclusiveStartKey");
        return;
    }
    if (start.start) {
        static struct buffer sk;
        sk.length = 0;
        json_decode(start_sk, &sk);
        page.first = index_behind(page.room, buffer_as_slice(&sk));
    }
    page.limited = limit <= workload.page_members && limit <= workload.members - page.first;
    page.count = workload.members - page.first;
    if (page.count > workload.page_members)
        page.count = workload.page_members;
    if (page.count > limit)
        page.count = limit;
    if (page.count < 0)
        page.count = 0;
    respond_with_page(peer, page, pk);
}

/* --- Everything else --- */

void dynamodb_get_item(struct peer *peer, struct slice input)
{
    (void)input;
    respond(peer, 200, text_slice("{}"));
}

void dynamodb_write_item(struct peer *peer, struct slice input)
{
    struct slice wanted = json_text(json_member(input, "ReturnValues"));
    bool new = slice_is(wanted, "ALL_NEW") || slice_is(wanted, "UPDATED_NEW");
    respond(peer, 200, text_slice(new ? "{\"Attributes\":{}}" : "{}"));
}

/* The settings items of those keys that are a generated room's: `settings#r…`, but not a namespace's, `settings#r…/…`. */
static void add_settings(struct buffer *out, struct slice keys)
{
    struct slice key;
    for (bool first = true; json_next_element(&keys, &key);) {
        struct slice pk = json_text(json_member(json_member(key, "pk"), "S"));
        if (!slice_starts(pk, "settings#r") || memchr(pk.start, '/', pk.length))
            continue;
        buffer_text(out, first ? "{\"pk\":{\"S\":\"" : ",{\"pk\":{\"S\":\"");
        buffer_slice(out, pk);
        buffer_text(out, "\"},\"sk\":{\"S\":\"room\"},\"history_seconds\":{\"N\":\"");
        buffer_number(out, (uint64_t)workload.history_seconds);
        buffer_text(out, "\"}}");
        first = false;
    }
}

void dynamodb_batch_get_item(struct peer *peer, struct slice input)
{
    static struct buffer out;
    struct slice rest = json_member(input, "RequestItems"), table, keys;
    out.length = 0;
    buffer_text(&out, "{\"Responses\":{");
    for (bool first = true; json_next_member(&rest, &table, &keys); first = false) {
        buffer_text(&out, first ? "\"" : ",\"");
        buffer_slice(&out, table);
        buffer_text(&out, "\":[");
        if (workload.history_seconds > 0)
            add_settings(&out, json_member(keys, "Keys"));
        buffer_text(&out, "]");
    }
    buffer_text(&out, "},\"UnprocessedKeys\":{}}");
    respond(peer, 200, buffer_as_slice(&out));
}

void dynamodb_batch_execute_statement(struct peer *peer, struct slice input)
{
    static struct buffer out;
    struct slice rest = json_member(input, "Statements"), statement;
    out.length = 0;
    buffer_text(&out, "{\"Responses\":[");
    for (bool first = true; json_next_element(&rest, &statement); first = false)
        buffer_text(&out, first ? "{\"TableName\":\"t\"}" : ",{\"TableName\":\"t\"}");
    buffer_text(&out, "]}");
    respond(peer, 200, buffer_as_slice(&out));
}

void dynamodb_batch_write_item(struct peer *peer, struct slice input)
{
    (void)input;
    respond(peer, 200, text_slice("{\"UnprocessedItems\":{}}"));
}

void dynamodb_transact_write_items(struct peer *peer, struct slice input)
{
    (void)input;
    respond(peer, 200, text_slice("{}"));
}

void dynamodb_describe_table(struct peer *peer, struct slice input)
{
    struct buffer out = {0};
    buffer_text(&out, "{\"Table\":{\"TableName\":\"");
    buffer_slice(&out, json_text(json_member(input, "TableName")));
    buffer_text(&out,
                "\",\"TableStatus\":\"ACTIVE\",\"AttributeDefinitions\":[{\"AttributeName\":\"pk\",\"AttributeType\":\"S\"},"
                "{\"AttributeName\":\"sk\",\"AttributeType\":\"S\"}],\"KeySchema\":[{\"AttributeName\":\"pk\",\"KeyType\":"
                "\"HASH\"},{\"AttributeName\":\"sk\",\"KeyType\":\"RANGE\"}],\"ItemCount\":0,\"TableSizeBytes\":0}}");
    respond(peer, 200, buffer_as_slice(&out));
    buffer_free(&out);
}

void dynamodb_stats(struct buffer *body)
{
    buffer_format(body, "\"items\":%lu,\"pages_rendered\":%lu,\"connections_queried\":%lu,", items, pages_rendered,
                  connections_queried);
}
