"""The embedded stack: an emulator of an API Gateway WebSocket API, SQS and DynamoDB by ministack, workers, the demo.

Everything here listens only on loopback addresses, unless configured otherwise (in a container), and ends with the
process that started it.
"""
