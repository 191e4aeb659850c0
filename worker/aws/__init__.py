"""Adapters: what the worker needs of SQS and DynamoDB, in its own words, over the SDK."""
