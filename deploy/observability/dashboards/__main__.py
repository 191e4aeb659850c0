"""Writes the dashboards' JSON files, which are committed so that Grafana can be provisioned from files alone."""

from deploy.observability.dashboards import BOARDS

if __name__ == "__main__":
    for board in BOARDS:
        board.path.write_text(board.to_json(), encoding="utf-8")
