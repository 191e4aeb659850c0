/* SQS: generated broadcasts, each received once, and the number of those that were deleted.
 *
 * A message is only its index until it is received. Its receipt handle contains the run and the index, so a deletion is
 * one bit, and a deletion from an earlier run is ignored.
 */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#include "aws.h"

enum { MAX_RECEIVE = 10, MAX_RECEIVE_BYTES = 1024 * 1024, SECOND = 1000000000 };

static struct {
    long long received, deleted; /* received: also the index of the next message */
    uint8_t *deleted_bits;
    uint64_t deleted_again, sent, sent_bytes;
    int64_t first_received, last_deleted;
    int64_t received_at; /* when the latest messages were sent */
    struct buffer data; /* the same in every broadcast of a run */
} queue;

static const EVP_MD *md5;

void sqs_arm(void)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .";
    free(queue.deleted_bits);
    buffer_free(&queue.data);
    memset(&queue, 0, sizeof queue);
    if (md5 == NULL)
        md5 = EVP_md5();
    if (workload.broadcasts > 0) {
        queue.deleted_bits = allocate((size_t)workload.broadcasts / 8 + 1);
        buffer_random(&queue.data, letters, (size_t)workload.data_bytes); /* no characters that JSON escapes */
    }
    server_release_held(); /* wakes the long polls */
}

static void respond_recording(struct peer *peer, struct slice body, int64_t *sent_at)
{
    static struct buffer headers;
    headers.length = 0;
    buffer_text(&headers, "x-amzn-RequestId: ");
    buffer_uuid(&headers);
    buffer_text(&headers, "\r\n");
    server_respond(peer, &(struct response){
                            .status = 200,
                            .content_type = "application/x-amz-json-1.0",
                            .headers = buffer_as_slice(&headers),
                            .body = body,
                            .delay_ms = sqs_delay_ms,
                            .sent_at = sent_at,
                        });
}

static void respond(struct peer *peer, struct slice body)
{
    respond_recording(peer, body, NULL);
}

static void add_md5(struct buffer *out, struct slice of)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char hex[32];
    EVP_Digest(of.start, of.length, digest, NULL, md5, NULL);
    for (int i = 0; i < 32; i++)
        hex[i] = "0123456789abcdef"[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
    buffer_bytes(out, hex, sizeof hex);
}

/* Append the text, escaped for a JSON string; it contains no control characters. */
static void add_escaped(struct buffer *out, struct slice text)
{
    while (text.length > 0) {
        const char *quote = memchr(text.start, '"', text.length);
        size_t plain = quote ? (size_t)(quote - text.start) : text.length;
        buffer_bytes(out, text.start, plain);
        if (quote == NULL)
            return;
        buffer_text(out, "\\\"");
        text = (struct slice){quote + 1, text.length - plain - 1};
    }
}

static void add_message(struct buffer *out, long long index)
{
    static struct buffer body;
    unsigned run = workload.run, low = (unsigned)index;
    body.length = 0;
    buffer_format(&body, "{\"v\":1,\"id\":\"b%08x-%lld\",\"room\":\"r%lld\",\"data\":\"", run, index,
                  workload.first_room + index % workload.rooms);
    buffer_slice(&body, buffer_as_slice(&queue.data));
    buffer_text(&body, "\"}");

    /* Real handles are opaque and long; here only their first 16 digits matter. */
    buffer_format(out, "{\"MessageId\":\"%08x-5ca1-4b1e-8000-%012llx\",\"ReceiptHandle\":\"AQEB%08x%08x", run, index, run,
                  low);
    for (int i = 0; i < 20; i++)
        buffer_text(out, "wJnEw/9f+");
    buffer_text(out, "==\",\"MD5OfBody\":\"");
    add_md5(out, buffer_as_slice(&body));
    buffer_text(out, "\",\"Body\":\"");
    add_escaped(out, buffer_as_slice(&body));
    buffer_format(out,
                  "\",\"Attributes\":{\"SentTimestamp\":\"%lld\",\"ApproximateReceiveCount\":\"1\","
                  "\"MessageGroupId\":\"r%lld\"}}",
                  (long long)workload.armed_ms, workload.first_room + index % workload.rooms);
}

static void respond_with_messages(struct peer *peer, long max_messages)
{
    static struct buffer out;
    out.length = 0;
    if (queue.received == workload.broadcasts) {
        respond(peer, text_slice("{}")); /* as SQS does: no list at all */
        return;
    }
    if (queue.received == 0)
        queue.first_received = server_now();
    buffer_text(&out, "{\"Messages\":[");
    for (long i = 0; i < max_messages && queue.received < workload.broadcasts; i++) {
        if (out.length + (size_t)workload.data_bytes > MAX_RECEIVE_BYTES)
            break; /* the limit of one receive */
        if (i > 0)
            buffer_text(&out, ",");
        add_message(&out, queue.received++);
    }
    buffer_text(&out, "]}");
    respond_recording(peer, buffer_as_slice(&out), &queue.received_at);
}

void sqs_receive_message(struct peer *peer, struct slice input)
{
    long max_messages = (long)json_integer(json_member(input, "MaxNumberOfMessages"), 1);
    long long wait = json_integer(json_member(input, "WaitTimeSeconds"), 0);
    if (max_messages < 1 || max_messages > MAX_RECEIVE)
        max_messages = MAX_RECEIVE;
    if (queue.received == workload.broadcasts && wait > 0)
        server_hold(peer, (double)(wait < 20 ? wait : 20), max_messages);
    else
        respond_with_messages(peer, max_messages);
}

void sqs_due(struct peer *peer, long max_messages)
{
    respond_with_messages(peer, max_messages);
}

static void delete_message(struct slice handle)
{
    struct slice text = json_text(handle);
    char digits[17] = {0};
    unsigned run, index;
    if (text.length < 20 || !slice_starts(text, "AQEB"))
        return;
    memcpy(digits, text.start + 4, 16);
    if (sscanf(digits, "%8x%8x", &run, &index) != 2 || run != workload.run || index >= queue.received)
        return;
    if (queue.deleted_bits[index / 8] & 1 << index % 8) {
        queue.deleted_again++;
        return;
    }
    queue.deleted_bits[index / 8] |= (uint8_t)(1 << index % 8);
    queue.deleted++;
    queue.last_deleted = server_now();
}

void sqs_delete_message(struct peer *peer, struct slice input)
{
    delete_message(json_member(input, "ReceiptHandle"));
    respond(peer, (struct slice){0}); /* SQS responds to these without a body */
}

void sqs_change_message_visibility(struct peer *peer, struct slice input)
{
    (void)input;
    respond(peer, (struct slice){0});
}

/* Respond to a batch: every entry has succeeded. `each` appends the other fields of an entry's result after its id. */
static void respond_to_batch(struct peer *peer, struct slice input,
                             void (*each)(struct buffer *out, struct slice entry))
{
    static struct buffer out;
    struct slice rest = json_member(input, "Entries"), entry;
    bool first = true;
    out.length = 0;
    buffer_text(&out, "{\"Successful\":[");
    while (json_next_element(&rest, &entry)) {
        buffer_text(&out, first ? "{\"Id\":" : ",{\"Id\":");
        buffer_slice(&out, json_member(entry, "Id")); /* with its quotes */
        if (each)
            each(&out, entry);
        buffer_text(&out, "}");
        first = false;
    }
    buffer_text(&out, "],\"Failed\":[]}");
    respond(peer, buffer_as_slice(&out));
}

static void delete_entry(struct buffer *out, struct slice entry)
{
    (void)out;
    delete_message(json_member(entry, "ReceiptHandle"));
}

void sqs_delete_message_batch(struct peer *peer, struct slice input)
{
    respond_to_batch(peer, input, delete_entry);
}

void sqs_change_message_visibility_batch(struct peer *peer, struct slice input)
{
    respond_to_batch(peer, input, NULL);
}

/* Counted and dropped: the worker sends only parts, remainders and dead letters, and here no room is split. */
static void add_sent(struct buffer *out, struct slice entry)
{
    static struct buffer body;
    body.length = 0;
    json_decode(json_member(entry, "MessageBody"), &body);
    buffer_text(out, "\"MessageId\":\"");
    buffer_uuid(out);
    buffer_text(out, "\",\"MD5OfMessageBody\":\"");
    add_md5(out, buffer_as_slice(&body));
    buffer_text(out, "\"");
    queue.sent++;
    queue.sent_bytes += body.length;
}

static void send_entry(struct buffer *out, struct slice entry)
{
    buffer_text(out, ",");
    add_sent(out, entry);
}

void sqs_send_message(struct peer *peer, struct slice input)
{
    static struct buffer out;
    out.length = 0;
    buffer_text(&out, "{");
    add_sent(&out, input);
    buffer_text(&out, "}");
    respond(peer, buffer_as_slice(&out));
}

void sqs_send_message_batch(struct peer *peer, struct slice input)
{
    respond_to_batch(peer, input, send_entry);
}

void sqs_get_queue_attributes(struct peer *peer, struct slice input)
{
    struct buffer out = {0};
    (void)input;
    buffer_format(&out,
                  "{\"Attributes\":{\"QueueArn\":\"arn:aws:sqs:eu-central-1:000000000000:mock\","
                  "\"ApproximateNumberOfMessages\":\"%lld\",\"ApproximateNumberOfMessagesNotVisible\":\"%lld\","
                  "\"ApproximateNumberOfMessagesDelayed\":\"0\",\"VisibilityTimeout\":\"30\","
                  "\"MessageRetentionPeriod\":\"345600\",\"DelaySeconds\":\"0\",\"MaximumMessageSize\":\"1048576\"}}",
                  workload.broadcasts - queue.received, queue.received - queue.deleted);
    respond(peer, buffer_as_slice(&out));
    buffer_free(&out);
}

void sqs_get_queue_url(struct peer *peer, struct slice input)
{
    struct buffer out = {0};
    buffer_text(&out, "{\"QueueUrl\":\"https://sqs.eu-central-1.amazonaws.com/000000000000/");
    buffer_slice(&out, json_text(json_member(input, "QueueName")));
    buffer_text(&out, "\"}");
    respond(peer, buffer_as_slice(&out));
    buffer_free(&out);
}

void sqs_stats(struct buffer *body)
{
    double seconds = queue.deleted ? (double)(queue.last_deleted - queue.first_received) / SECOND : 0;
    buffer_format(body,
                  "\"received\":%lld,\"deleted\":%lld,\"deleted_again\":%lu,\"sent\":%lu,\"sent_bytes\":%lu,"
                  "\"seconds\":%.6f,\"received_at\":%.6f,",
                  queue.received, queue.deleted, queue.deleted_again, queue.sent, queue.sent_bytes, seconds,
                  (double)queue.received_at / SECOND);
}
