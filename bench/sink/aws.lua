-- One operation of the mock AWS server, repeatedly:
--
--   wrk -t1 -c16 -d3s -s aws.lua http://127.0.0.1:8081 -- query|receive|update

local calls = {
    query = { "DynamoDB_20120810.Query", [[{"TableName":"gatecast","KeyConditionExpression":"pk = :pk",]]
        .. [["ProjectionExpression":"sk, joined_at_ms, expires_at",]]
        .. [["ExpressionAttributeValues":{":pk":{"S":"room#r1#0"}}}]] },
    receive = { "AmazonSQS.ReceiveMessage", [[{"QueueUrl":"https://sqs.eu-central-1.amazonaws.com/000000000000/q",]]
        .. [["MaxNumberOfMessages":10,"WaitTimeSeconds":0}]] },
    update = { "DynamoDB_20120810.UpdateItem", [[{"TableName":"gatecast","Key":{"pk":{"S":"a"},"sk":{"S":"b"}},]]
        .. [["UpdateExpression":"SET a = :a","ExpressionAttributeValues":{":a":{"N":"1"}}}]] },
}

function init(args)
    local call = calls[args[1] or "query"]
    wrk.method = "POST"
    wrk.headers["X-Amz-Target"] = call[1]
    wrk.headers["Content-Type"] = "application/x-amz-json-1.0"
    wrk.body = call[2]
end
