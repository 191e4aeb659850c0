/* Declarations shared by the parts of the mock SQS and DynamoDB. */
#ifndef AWS_H
#define AWS_H

#include "json.h"
#include "server.h"

/* The workload: set by the options, and by POST /reset. */
struct workload {
    long long broadcasts, rooms, first_room, members, page_members, data_bytes, joined_rooms,
        history_seconds;
    int64_t armed_ms; /* since the epoch: when all of the broadcasts were "sent" */
    uint32_t run;     /* random, to tell runs apart */
};

extern struct workload workload;

/* Each service's latency per call, in addition to the server's delay options. */
extern double sqs_delay_ms, dynamodb_delay_ms;

typedef void operation(struct peer *peer, struct slice input);

operation sqs_receive_message, sqs_delete_message, sqs_delete_message_batch, sqs_change_message_visibility,
    sqs_change_message_visibility_batch, sqs_send_message, sqs_send_message_batch, sqs_get_queue_attributes,
    sqs_get_queue_url;
void sqs_arm(void); /* the workload has changed */
void sqs_due(struct peer *peer, long max_messages);
void sqs_stats(struct buffer *body);

operation dynamodb_query, dynamodb_get_item, dynamodb_batch_get_item, dynamodb_write_item,
    dynamodb_batch_execute_statement, dynamodb_batch_write_item, dynamodb_transact_write_items,
    dynamodb_describe_table;
void dynamodb_arm(void);
void dynamodb_stats(struct buffer *body);
void dynamodb_error(struct peer *peer, const char *type, const char *message);

int64_t milliseconds_since_epoch(void);

#endif
