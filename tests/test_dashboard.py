"""docs/superset: the files hold together, the metrics are the KPIs, and a real Superset shows the right numbers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from environments import environment

from pipelines.cli import main
from transforms.definitions import KPIS, Kpi

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "superset"
SAMPLE = ROOT / "fixtures" / "sample"
Content = dict[str, Any]


def contents(folder: str) -> dict[str, Content]:
    """The files of a folder, by their stem."""
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted((FOLDER / folder).rglob("*.yaml"))}


DATASETS, CHARTS = contents("datasets"), contents("charts")
[DATABASE], [DASHBOARD] = contents("databases").values(), contents("dashboards").values()
DAYS = DATASETS["care_days"]


def dataset_of(chart: Content) -> Content:
    """What a chart is drawn from."""
    [found] = [dataset for dataset in DATASETS.values() if dataset["uuid"] == chart["dataset_uuid"]]
    return found


def names_in(parameters: Content) -> tuple[set[str], set[str]]:
    """The columns and the metrics that a chart names."""
    groups = parameters.get("groupby") or []
    columns = {groups} if isinstance(groups, str) else set(groups)
    columns |= set(parameters.get("all_columns", ())) | {parameters[n] for n in ("x_axis",) if n in parameters}
    columns |= {given["subject"] for given in parameters.get("adhoc_filters", ())}
    return columns, set(parameters.get("metrics", ())) | {parameters[n] for n in ("metric",) if n in parameters}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_name_what_is_there(name: str) -> None:
    """Each column and each metric is one of its dataset, and the dashboard has the chart."""
    chart, dataset = CHARTS[name], dataset_of(CHARTS[name])
    columns, metrics = names_in(chart["params"])
    assert columns <= {column["column_name"] for column in dataset["columns"]}
    assert metrics <= {metric["metric_name"] for metric in dataset["metrics"]}
    assert chart["params"]["viz_type"] == chart["viz_type"]
    places = [place["meta"] for place in DASHBOARD["position"].values() if isinstance(place, dict) and "meta" in place]
    assert [place["sliceName"] for place in places if place.get("uuid") == chart["uuid"]] == [chart["slice_name"]]


def test_the_files_belong_together() -> None:
    """One database, read only; each dataset is of it; the filters are on columns that all datasets have."""
    assert DATABASE["extra"]["engine_params"] == {"connect_args": {"read_only": True}}
    assert DATABASE["sqlalchemy_uri"] == "duckdb:///output/care.duckdb" and not DATABASE["allow_dml"]
    assert {dataset["database_uuid"] for dataset in DATASETS.values()} == {DATABASE["uuid"]}
    targets = [given["targets"][0] for given in DASHBOARD["metadata"]["native_filter_configuration"]]
    filtered = {target["column"]["name"] for target in targets if target}
    assert filtered == {"account_id", "channel"}
    assert all(filtered <= {column["column_name"] for column in d["columns"]} for d in DATASETS.values())
    uuids = [content["uuid"] for content in (DATABASE, DASHBOARD, *DATASETS.values(), *CHARTS.values())]
    assert len(set(uuids)) == len(uuids) == 2 + len(DATASETS) + len(CHARTS)


def metric_of(kpi: Kpi) -> str:
    """A KPI over any rows of kpi_statistics: added up first, divided last."""
    if kpi.kind == "percentile":
        buckets = kpi.numerator.replace("_histogram", "_buckets")
        return f"bucket_seconds(list_aggregate(flatten(list({buckets})), 'quantile_disc', {kpi.quantile}))"
    if kpi.kind == "change":
        return f"SUM({kpi.numerator}) - SUM({kpi.denominator})"
    if kpi.denominator is None:
        return f"SUM({kpi.numerator})"
    return f"SUM({kpi.numerator}) / nullif(SUM({kpi.denominator}), 0)"


def test_the_metrics_are_the_kpis() -> None:
    """Every KPI but the running sums, as its definition says; durations once more as Superset can write them."""
    kpis = [kpi for kpi in KPIS if kpi.kind != "running"]
    expected = {kpi.name: (kpi.label, metric_of(kpi)) for kpi in kpis}
    for kpi in kpis:
        if kpi.unit == "seconds":
            name = kpi.name.replace("_seconds", "_milliseconds")
            expected[name] = (kpi.label, f"1000 * ({metric_of(kpi)})")
    assert {m["metric_name"]: (m["verbose_name"], m["expression"]) for m in DAYS["metrics"]} == expected
    sentences = {kpi.name: kpi.sentence for kpi in kpis}
    assert all(
        m["description"] == sentences[m["metric_name"]] for m in DAYS["metrics"] if m["metric_name"] in sentences
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the sample."""
    output = tmp_path_factory.mktemp("dashboard") / "output"
    files = ["--input", str(SAMPLE / "events.ndjson"), "--config", str(SAMPLE / "care.toml")]
    assert main(["batch", *files, "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def warehouse(output: Path) -> duckdb.DuckDBPyConnection:
    """The warehouse of the sample."""
    return duckdb.connect(str(output / "care.duckdb"), read_only=True)


def rows(warehouse: duckdb.DuckDBPyConnection, query: str) -> list[Content]:
    """The answer to a query, a dict each row."""
    answer = warehouse.sql(query)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_have_their_columns(warehouse: duckdb.DuckDBPyConnection, name: str) -> None:
    """The query gives rows, every column and every metric can be had of it."""
    dataset = DATASETS[name]
    columns = ", ".join(column["column_name"] for column in dataset["columns"])
    assert rows(warehouse, f"SELECT {columns} FROM ({dataset['sql']})")
    metrics = ", ".join(f"{m['expression']} AS {m['metric_name']}" for m in dataset["metrics"])
    [total] = rows(warehouse, f"SELECT {metrics} FROM ({dataset['sql']})")
    assert all(value is not None for value in total.values())


def test_metrics_give_what_the_warehouse_gives(warehouse: duckdb.DuckDBPyConnection) -> None:
    """Each KPI of each channel over a fortnight, as the macro has it."""
    names = [kpi.name for kpi in KPIS if kpi.kind != "running"]
    expressions = {m["metric_name"]: m["expression"] for m in DAYS["metrics"]}
    chosen = ", ".join(f"{expressions[name]} AS {name}" for name in names)
    period = "day >= '2026-01-01' AND day < '2026-01-14'"
    ours = rows(warehouse, f"SELECT channel, {chosen} FROM ({DAYS['sql']}) WHERE {period} GROUP BY channel")
    theirs = rows(warehouse, f"SELECT channel, {', '.join(names)} FROM kpis_by_channel('2026-01-01', '2026-01-14')")
    assert len(ours) == 8
    for one, other in zip(
        *(sorted(found, key=lambda row: str(row["channel"])) for found in (ours, theirs)), strict=True
    ):
        assert one == pytest.approx(other, nan_ok=True)


@pytest.fixture(scope="module")
def superset(output: Path) -> Path:
    """A real Superset, beside the result, into which the dashboard was imported as docs/dashboard.md says."""
    programs, home = environment("superset", FOLDER / "requirements.txt"), output.parent
    config = f"SQLALCHEMY_DATABASE_URI = 'sqlite:///{home}/superset.db'\nAUTH_ROLE_PUBLIC = 'Admin'\n"
    (home / "superset_config.py").write_text(config + "WTF_CSRF_ENABLED = False\n", encoding="utf-8")
    for arguments in (["db", "upgrade"], ["init"], ["import-directory", "--overwrite", str(FOLDER)]):
        run_superset([str(programs / "superset"), *arguments], home)
    return programs


def run_superset(command: list[str], home: Path) -> str:
    """What a command prints that runs in Superset's environment, in the folder of the result."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    settings |= {"SUPERSET_CONFIG_PATH": str(home / "superset_config.py"), "SUPERSET_SECRET_KEY": "of this test alone"}
    done = subprocess.run(command, cwd=home, env=settings, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(superset: Path, home: Path, filters: list[Content]) -> dict[str, list[Content]]:
    """The data of each chart, by its name."""
    script = [str(ROOT / "tests" / "ask_superset.py"), str(DASHBOARD["slug"]), json.dumps(filters)]
    printed = run_superset([str(superset / "python"), *script], home)
    found: dict[str, list[Content]] = json.loads(printed.splitlines()[-1])
    return found


@pytest.mark.slow
def test_superset_shows_the_numbers(superset: Path, output: Path, warehouse: duckdb.DuckDBPyConnection) -> None:
    """Every chart of the imported dashboard has data, and they are the warehouse's."""
    shown = answers(superset, output.parent, [])
    assert sorted(shown) == sorted(chart["slice_name"] for chart in CHARTS.values()) and all(shown.values())
    [all_time] = rows(warehouse, "FROM kpis_between('2025-12-01', '2026-02-01')")
    assert shown["Conversations"] == [{"conversation_count": all_time["conversation_count"]}]
    [frt] = shown["FRT, p90"]
    assert frt["p90_first_response_milliseconds"] == pytest.approx(1000 * all_time["p90_first_response_seconds"])
    by_channel = {row["channel"]: row for row in rows(warehouse, "FROM kpis_by_channel('2025-12-01', '2026-02-01')")}
    assert {row["channel"] for row in shown["KPIs by channel"]} == set(by_channel)
    for row in shown["KPIs by channel"]:
        for name, value in row.items():
            if name != "channel":
                want = by_channel[row["channel"]][name.replace("_milliseconds", "_seconds")]
                want = want * 1000 if want is not None and "_milliseconds" in name else want
                assert value == (want if want is None else pytest.approx(want)), (row["channel"], name)
    [waiting] = rows(warehouse, "SELECT count(*) AS count FROM waiting_now")
    assert len(shown["Who waits now"]) == waiting["count"]
    last = max(row["day"] for row in shown["Backlog by day and channel"])
    backlog = sum(row["backlog_count"] for row in shown["Backlog by day and channel"] if row["day"] == last)
    assert backlog == all_time["backlog_count"]


@pytest.mark.slow
def test_superset_filters_every_chart(superset: Path, output: Path) -> None:
    """The dashboard's filter on channels reaches all of them."""
    shown = answers(superset, output.parent, [{"col": "channel", "op": "IN", "val": ["email"]}])
    seen = {row["channel"] for data in shown.values() for row in data if "channel" in row}
    assert seen == {"email"} and all(shown.values())
