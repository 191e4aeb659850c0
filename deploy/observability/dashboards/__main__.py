"""Writes the dashboards' JSON, which is kept beside the code so that Grafana needs nothing but files."""

from deploy.observability.dashboards import BOARDS

if __name__ == "__main__":
    for board in BOARDS:
        board.path.write_text(board.to_json(), encoding="utf-8")
