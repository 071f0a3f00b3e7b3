"""Asks a Superset, from inside its own environment, for the data of each chart of a dashboard; prints them as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from superset.app import create_app


def query_of(form: dict[str, Any], filters: list[dict[str, Any]]) -> dict[str, Any]:
    """The query that the browser makes of a chart's settings."""
    found = [
        {"col": given["subject"], "op": given["operator"], "val": given["comparator"]}
        for given in form.get("adhoc_filters", [])
    ]
    groups = form.get("groupby") or []
    columns = form.get("all_columns") or ([groups] if isinstance(groups, str) else [*groups])
    if axis := form.get("x_axis"):
        base = {"columnType": "BASE_AXIS", "sqlExpression": axis, "label": axis, "expressionType": "SQL"}
        columns = [base | {"timeGrain": form.get("time_grain_sqla")}, *columns]
    query = {
        "columns": columns,
        "filters": [*found, *filters],
        "orderby": [json.loads(order) for order in form.get("order_by_cols", [])],
        "row_limit": form.get("row_limit", 100),
    }
    if "all_columns" not in form:
        query["metrics"] = form["metrics"] if "metrics" in form else [form["metric"]]
    return query


def main(slug: str, filters: list[dict[str, Any]]) -> None:
    """Prints the answer of each chart, by its name.

    Args:
      slug: of the dashboard.
      filters: of the dashboard, put on every chart.
    """
    app = create_app()
    with app.app_context():
        from superset import db
        from superset.models.dashboard import Dashboard

        [dashboard] = db.session.query(Dashboard).filter_by(slug=slug)
        charts = [(chart.slice_name, chart.form_data, chart.datasource_id) for chart in dashboard.slices]
    answers = {}
    for name, form, dataset in charts:
        asked = {
            "datasource": {"id": dataset, "type": "table"},
            "queries": [query_of(form, filters)],
            "result_format": "json",
            "result_type": "full",
        }
        answer = app.test_client().post("/api/v1/chart/data", json=asked)
        assert answer.status_code == 200, f"{name}: {answer.get_data(as_text=True)}"
        answers[name] = answer.get_json()["result"][0]["data"]
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
