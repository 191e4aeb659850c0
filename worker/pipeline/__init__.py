"""The path of a message: receive, claim, deliver, checkpoint, acknowledge."""
