"""What operators see: metrics, health, logs and the server that serves them."""
