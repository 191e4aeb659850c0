/* The workload of the mock SQS and DynamoDB, and when it began. */
#include <time.h>

#include "aws.h"

double sqs_delay_ms, dynamodb_delay_ms;

struct workload workload = {.broadcasts = 1000, .rooms = 1000, .members = 5, .page_members = 7400, .data_bytes = 256};

int64_t milliseconds_since_epoch(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}
