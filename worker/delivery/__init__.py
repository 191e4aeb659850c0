"""The delivery engine: signed posts to `@connections`. Its theory of operation opens `worker.delivery.engine`."""
