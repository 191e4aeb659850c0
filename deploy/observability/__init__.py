"""What is seen of the worker: dashboards, rules and alerts, and the configuration of what shows and sends them."""
