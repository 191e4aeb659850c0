/* A mock server for SQS and DynamoDB, on one port, for benchmarks of the whole worker.
 *
 * Its only state is which broadcasts were received and deleted. Messages and members are generated, always the same for
 * the same workload; every condition holds, every write succeeds, every item is absent except the members and, where
 * rooms have history, their settings. So a call costs it microseconds, but it proves nothing about how the worker uses
 * the services: the integration tests do that.
 */
#include <stdio.h>
#include <stdlib.h>

#include "aws.h"

/* The fields of the workload, as options and in the body of POST /reset. */
static const struct {
    const char *name;
    long long *field, least, most;
} fields[] = {
    {"broadcasts", &workload.broadcasts, 0, 100000000},
    {"rooms", &workload.rooms, 1, 100000000},
    {"first_room", &workload.first_room, 0, 1000000000},
    {"members", &workload.members, 0, 1000000000},
    {"page_members", &workload.page_members, 1, 1000000},
    {"data_bytes", &workload.data_bytes, 1, 131072},
    {"joined_rooms", &workload.joined_rooms, 0, 1000},
    {"history_seconds", &workload.history_seconds, 0, 604800},
};
enum { FIELDS = sizeof fields / sizeof *fields };

static struct {
    const char *target; /* of X-Amz-Target */
    operation *run;
    uint64_t calls;
} operations[] = {
    {"AmazonSQS.ReceiveMessage", sqs_receive_message, 0},
    {"AmazonSQS.DeleteMessage", sqs_delete_message, 0},
    {"AmazonSQS.DeleteMessageBatch", sqs_delete_message_batch, 0},
    {"AmazonSQS.ChangeMessageVisibility", sqs_change_message_visibility, 0},
    {"AmazonSQS.ChangeMessageVisibilityBatch", sqs_change_message_visibility_batch, 0},
    {"AmazonSQS.SendMessage", sqs_send_message, 0},
    {"AmazonSQS.SendMessageBatch", sqs_send_message_batch, 0},
    {"AmazonSQS.GetQueueAttributes", sqs_get_queue_attributes, 0},
    {"AmazonSQS.GetQueueUrl", sqs_get_queue_url, 0},
    {"DynamoDB_20120810.Query", dynamodb_query, 0},
    {"DynamoDB_20120810.GetItem", dynamodb_get_item, 0},
    {"DynamoDB_20120810.BatchGetItem", dynamodb_batch_get_item, 0},
    {"DynamoDB_20120810.PutItem", dynamodb_write_item, 0},
    {"DynamoDB_20120810.UpdateItem", dynamodb_write_item, 0},
    {"DynamoDB_20120810.DeleteItem", dynamodb_write_item, 0},
    {"DynamoDB_20120810.BatchExecuteStatement", dynamodb_batch_execute_statement, 0},
    {"DynamoDB_20120810.BatchWriteItem", dynamodb_batch_write_item, 0},
    {"DynamoDB_20120810.TransactWriteItems", dynamodb_transact_write_items, 0},
    {"DynamoDB_20120810.DescribeTable", dynamodb_describe_table, 0},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

static uint64_t unknown_calls;
static double cpu_at_reset;

static void arm(void)
{
    workload.armed_ms = milliseconds_since_epoch();
    workload.run = (uint32_t)random_bits();
    for (size_t i = 0; i < OPERATIONS; i++)
        operations[i].calls = 0;
    unknown_calls = 0;
    cpu_at_reset = server_cpu();
    server_reset_peaks();
    sqs_arm();
    dynamodb_arm();
}

static void respond_plainly(struct peer *peer, int status, const char *content_type, struct slice body)
{
    server_respond(peer, &(struct response){
                            .status = status, .content_type = content_type, .body = body, .undelayed = true});
}

static void respond_with_stats(struct peer *peer)
{
    struct buffer body = {0};
    buffer_text(&body, "{\"operations\":{");
    for (size_t i = 0; i < OPERATIONS; i++)
        buffer_format(&body, "\"%s\":%lu,", strchr(operations[i].target, '.') + 1, operations[i].calls);
    buffer_format(&body, "\"unknown\":%lu},\"workload\":{", unknown_calls);
    for (size_t i = 0; i < FIELDS; i++)
        buffer_format(&body, "%s\"%s\":%lld", i ? "," : "", fields[i].name, *fields[i].field);
    buffer_text(&body, "},");
    sqs_stats(&body);
    dynamodb_stats(&body);
    buffer_format(&body, "\"open\":%lu,\"open_peak\":%lu,\"accepted\":%lu,\"cpu_seconds\":%.6f}\n", server_counts.open,
                  server_counts.open_peak, server_counts.accepted, server_cpu() - cpu_at_reset);
    respond_plainly(peer, 200, "application/json", buffer_as_slice(&body));
    buffer_free(&body);
}

/* All of the fields or none: otherwise a run could use a partly changed workload. */
static void reset(struct peer *peer, struct slice body)
{
    long long wanted[FIELDS];
    for (size_t i = 0; i < FIELDS; i++) {
        struct slice value = json_member(body, fields[i].name);
        wanted[i] = value.start ? json_integer(value, -1) : *fields[i].field;
        if (wanted[i] < fields[i].least || wanted[i] > fields[i].most) {
            respond_plainly(peer, 400, "text/plain", text_slice(fields[i].name));
            return;
        }
    }
    for (size_t i = 0; i < FIELDS; i++)
        *fields[i].field = wanted[i];
    arm();
    respond_plainly(peer, 204, NULL, (struct slice){0});
}

static void handle(struct peer *peer, const struct request *request)
{
    if (request->target.length > 0) {
        for (size_t i = 0; i < OPERATIONS; i++)
            if (slice_is(request->target, operations[i].target)) {
                operations[i].calls++;
                operations[i].run(peer, request->body);
                return;
            }
        unknown_calls++;
        dynamodb_error(peer, "UnknownOperationException", "the mock server does not support this operation");
    } else if (slice_is(request->path, "/stats") && slice_is(request->method, "GET")) {
        respond_with_stats(peer);
    } else if (slice_is(request->path, "/reset") && slice_is(request->method, "POST")) {
        reset(peer, request->body);
    } else {
        respond_plainly(peer, 404, NULL, (struct slice){0});
    }
}

static bool set_field(int option, const char *value)
{
    size_t i = (size_t)option - 1000;
    long long number = json_integer(text_slice(value), -1);
    if (option < 1000 || i >= FIELDS || number < fields[i].least || number > fields[i].most)
        return false;
    *fields[i].field = number;
    return true;
}

static bool set_delay(int option, const char *value)
{
    double *delay_ms = option == 'q' ? &sqs_delay_ms : option == 't' ? &dynamodb_delay_ms : NULL;
    if (delay_ms == NULL)
        return false;
    *delay_ms = atof(value);
    return true;
}

int main(int argc, char **argv)
{
    static const struct server server = {
        .name = "aws",
        .max_body_bytes = 2 * 1024 * 1024, /* SQS accepts 1 MiB, and JSON's escapes make it longer */
        .handle = handle,
        .due = sqs_due,
    };
    static const struct option options[] = {
        SERVER_OPTIONS,
        {"broadcasts", required_argument, NULL, 1000},
        {"rooms", required_argument, NULL, 1001},
        {"first-room", required_argument, NULL, 1002},
        {"members", required_argument, NULL, 1003},
        {"page-members", required_argument, NULL, 1004},
        {"data-bytes", required_argument, NULL, 1005},
        {"joined-rooms", required_argument, NULL, 1006},
        {"history-seconds", required_argument, NULL, 1007},
        {"sqs-delay-ms", required_argument, NULL, 'q'},
        {"dynamodb-delay-ms", required_argument, NULL, 't'},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (!set_field(option, optarg) && !set_delay(option, optarg) && !server_option(option, optarg)) {
            fputs("usage: aws " SERVER_USAGE
                  " [--broadcasts N] [--rooms N] [--first-room N] [--members N] [--page-members N]"
                  " [--data-bytes N] [--joined-rooms N] [--history-seconds N] [--sqs-delay-ms X]"
                  " [--dynamodb-delay-ms X]\n",
                  stderr);
            return 2;
        }
    arm();
    int status = server_run(&server);
    workload.broadcasts = 0;
    arm(); /* frees the memory of the parts */
    return status;
}
