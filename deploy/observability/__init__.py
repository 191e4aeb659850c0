"""Observability of the worker: dashboards, rules and alerts, and the configuration of Prometheus and Grafana."""
