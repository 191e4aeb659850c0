"""Deployment: AWS (`ecs`), container images (`image`), dashboards and alerts (`observability`)."""
