"""Watching a stream: its status, the terminal, metrics and health, the log; each against what was published."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from results import copy_of_result, parts_of_sample
from rich.console import Console

from pipelines.cli import main
from pipelines.options import quieten_beam
from pipelines.queries import open_warehouse
from pipelines.settings import load_settings
from pipelines.stream import run as stream_run
from pipelines.stream.figures import SECONDS_WITHOUT_LOOK, SENTENCES, Figures, iso
from pipelines.stream.logs import FIELDS, KEYS, Log
from pipelines.stream.metrics import MetricsServer
from pipelines.stream.run import StreamOptions
from pipelines.stream.sources import Range
from pipelines.stream.status import STATUS, is_running, process_identity, read_status
from pipelines.stream.store import LiveStore
from pipelines.stream.today import today
from pipelines.stream.watcher import Watcher
from pipelines.stream.watchers import Watchers, watchers
from pipelines.watch.screen import screen
from pipelines.watch.view import View, Watched
from transforms.definitions import KPIS
from transforms.errors import UserError
from transforms.stream_settings import StreamSettings
from transforms.tables import DEAD_LETTERS

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample"
PAGE = ROOT / "docs" / "watching.md"
FOR_EVER = 50 * 365 * 86_400_000_000
Row = dict[str, Any]


class Asking(Watcher):
    """Asks for /metrics and /healthz of a stream while it goes."""

    def __init__(self, port: int) -> None:
        """Takes the port."""
        self.port = port
        self.metrics, self.health = "", (0, "")

    def published(self, published: object) -> None:
        """Asks."""
        self.metrics, self.health = get(self.port, "/metrics")[1], get(self.port, "/healthz")


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Streamed:
    """A stream over the sample in two cycles, and all that was told of it."""

    def __init__(self, folder: Path, form: str) -> None:
        """Runs it."""
        quieten_beam()
        self.output, port = folder / "output", free_port()
        self.settings = replace(load_settings(SAMPLE / "care.toml", {}, {}).settings, as_of=None)
        files = tuple(map(str, parts_of_sample()))
        rules = StreamSettings(allowed_lateness=FOR_EVER, max_future=FOR_EVER)
        options = StreamOptions(
            self.output,
            self.settings,
            rules,
            inputs=files,
            rows_a_cycle=1,
            until_caught_up=True,
            seconds_between_publishes=0.0,
        )
        lines = folder / "log"
        with lines.open("w") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", file)
            # What the last cycle came to is read at the end, however little time it took.
            patch.setattr("pipelines.stream.status.SECONDS_BETWEEN_READS", 1e9)
            with watchers(self.output, self.settings.timezone, "a folder", form, True, port) as all_:  # type: ignore[arg-type]
                self.asking = Asking(port)
                stream_run.run(options, Watchers([all_, self.asking]))
        self.log = lines.read_text(encoding="utf-8").splitlines()
        status = read_status(self.output)
        assert status is not None
        self.status = status

    def rows(self, query: str) -> list[Row]:
        """Rows of the published result."""
        with open_warehouse(self.output) as warehouse:
            return warehouse.sql(query).to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Streamed:
    """One for all tests that only look."""
    return Streamed(tmp_path_factory.mktemp("streamed"), "json")


def test_the_status_counts_what_runs_count(streamed: Streamed) -> None:
    """Rows, duplicates, dead letters by reason, late events: the sums over the commits; nothing is pending."""
    status, runs = streamed.status, streamed.rows("FROM runs ORDER BY commit_id")
    for name in ("rows_read", "events_kept", "exact_duplicate", "late_event", "stray_event", "dead_letter"):
        assert status[f"{name}_count"] == sum(run[f"{name}_count"] for run in runs), name
    reasons: dict[str, int] = {}
    for run in runs:
        for reason, count in json.loads(run["dead_letters_by_reason"]).items():
            reasons[reason] = reasons.get(reason, 0) + count
    assert status["dead_letters_by_reason"] == reasons and sum(reasons.values()) > 0
    assert status["watermark"] == runs[-1]["as_of"].astimezone(UTC).isoformat(timespec="milliseconds")
    assert status["published"]["commit_id"] == runs[-1]["commit_id"] and status["pending_cycle_count"] == 0
    assert status["cycle"] == status["published"]["cycle"] == 2 and status["lag"] == 0
    [files] = status["partitions"]
    assert (files["partition"], files["next_offset"], files["lag"]) == ("files", 2, 0)
    assert status["cycle_seconds"]["last"] <= status["cycle_seconds"]["p99"] and status["rows_per_second"] > 0
    assert status["ended_at"] is not None and status["ended_by"] is None and not is_running(status, 0.0)


def test_todays_kpis_are_those_of_the_published_result(streamed: Streamed) -> None:
    """Each KPI of each channel, percentiles too, and all channels together, by the macros of the result."""
    told = streamed.status["today"]
    day = date.fromisoformat(told["date"])
    local = datetime.fromisoformat(streamed.status["watermark"])
    assert told["window_start"] <= local.isoformat() < told["window_end"]
    period = f"('{day}', '{day + timedelta(days=1)}')"
    meant = {row["channel"]: row for row in streamed.rows(f"FROM kpis_by_channel{period}")}
    meant[None] = streamed.rows(f"FROM kpis_between{period}")[0]
    assert len({row["account_id"] for row in streamed.rows("FROM kpis")}) > 1
    names = [kpi.name for kpi in KPIS]
    assert told["kpis"][-1]["channel"] is None and len(told["kpis"]) > 3
    for row in told["kpis"]:
        assert list(row) == ["channel", *names]
        expected = meant[row["channel"]]
        assert {name: row[name] for name in names} == {name: expected[name] for name in names}, row["channel"]
    left_out = {channel for channel in meant if channel not in {row["channel"] for row in told["kpis"]}}
    assert not any(meant[channel]["message_count"] or meant[channel]["backlog_count"] for channel in left_out)


def test_a_day_without_events_has_those_who_still_wait(streamed: Streamed) -> None:
    """Counts are 0, all else is null, and backlog and waiting are carried on."""
    with LiveStore(streamed.output) as store, store.cursor() as live:
        live.execute("SET TimeZone = 'UTC'")
        later = datetime.fromisoformat(streamed.status["watermark"]) + timedelta(days=3)
        rows = store.recent.all_rows(live)
        told = today(live, rows, streamed.settings.timezone, round(later.timestamp() * 1e6))
        nothing = today(live, rows, streamed.settings.timezone, 0)
    before = {row["channel"]: row for row in streamed.status["today"]["kpis"]}
    waiting = {row["channel"]: row["backlog_count"] for row in told["kpis"]}
    assert waiting == {name: row["backlog_count"] for name, row in before.items() if name in waiting}
    assert waiting[None] == before[None]["backlog_count"] > 0
    assert all(row["message_count"] == 0 and row["avg_reply_seconds"] is None for row in told["kpis"])
    assert nothing["kpis"] == [] and nothing["date"] == "1970-01-01"


def test_json_lines(streamed: Streamed) -> None:
    """Each line is an object with the same keys, and there is one for each start, cycle, publish and stop."""
    lines = [json.loads(line) for line in streamed.log]
    assert all(tuple(line) == KEYS for line in lines)
    events = [line["event"] for line in lines]
    assert events[0] == "started" and events[-1] == "stopped" and events.count("committed") == 2
    published = [line for line in lines if line["event"] == "published"]
    assert published[-1]["commit_id"] == streamed.status["published"]["commit_id"] and published[-1]["cycle"] == 2
    assert sum(line["rows"] for line in lines if line["event"] == "committed") == streamed.status["rows_read_count"]
    assert {line["level"] for line in lines} == {"info", "debug"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo is not None for line in lines)


def test_metrics_are_what_the_status_says(streamed: Streamed) -> None:
    """What Prometheus' own parser reads is the status of that moment."""
    families = {family.name: family for family in text_string_to_metric_families(streamed.asking.metrics)}
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    status = streamed.status
    assert values["care_kpis_rows_read_total"] == status["rows_read_count"]
    assert values["care_kpis_events_kept"] == status["events_kept_count"]
    assert values["care_kpis_published_commit_id"] == status["published"]["commit_id"]
    assert values["care_kpis_cycle_seconds_count"] == 2 and values["care_kpis_pending_cycles"] == 0
    watermark = datetime.fromisoformat(status["watermark"]).timestamp()
    assert values["care_kpis_watermark_timestamp_seconds"] == pytest.approx(watermark)
    assert values["care_kpis_watermark_delay_seconds"] == pytest.approx(time.time() - watermark, abs=600)
    letters = {sample.labels["reason"]: sample.value for sample in families["care_kpis_dead_letters"].samples}
    assert letters == status["dead_letters_by_reason"]
    [lag] = families["care_kpis_partition_lag"].samples
    assert (lag.labels, lag.value) == ({"topic": "files", "partition": ""}, 0)
    assert streamed.asking.health == (200, "ok\n")


def test_the_page_names_every_metric_and_key(streamed: Streamed) -> None:
    """docs/watching.md has all metrics, all keys of the status and of the log, and no metric that is not there."""
    page = PAGE.read_text(encoding="utf-8")
    there = set()
    for family in text_string_to_metric_families(streamed.asking.metrics):
        there.add(f"{family.name}_total" if family.type == "counter" else family.name)
    ours = {name for name in there if name.startswith("care_kpis_")}
    assert len(ours) > 15 and ours == set(re.findall(r"`(care_kpis_\w+)[`{]", page))
    for name in (*streamed.status, *KEYS):
        assert f"`{name}`" in page, name
    assert set(FIELDS) < set(KEYS)


def console_of(width: int, height: int | None = None) -> Console:
    """A terminal of some size that keeps what it shows."""
    return Console(width=width, height=height, record=True, highlight=False, file=open(os.devnull, "w"))


def shown(view: View, width: int, height: int | None = None) -> list[str]:
    """What a terminal of some size shows of a view."""
    console = console_of(width)
    console.print(screen(view, width, height))
    return console.export_text().splitlines()


def test_once(streamed: Streamed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is watched is there: state, figures, partitions, today, and who waits longest."""
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["watch", str(streamed.output), "--once"]) == 0
    out = capsys.readouterr().out
    status = streamed.status
    assert "is not running: it ended" in out and "as it was asked to." in out and "\x1b" not in out
    assert f"{status['rows_read_count']:,}" in out and "Watermark" in out and status["today"]["date"] in out
    assert re.search(r"^files +2 +0 +20", out, re.MULTILINE)
    everybody = next(line for line in out.splitlines() if line.startswith("All channels"))
    assert everybody.split()[2:4] == [
        f"{status['today']['kpis'][-1][n]:,}" for n in ("message_count", "conversation_count")
    ]
    waiting = streamed.rows("FROM waiting_now")
    assert f"{len(waiting):,} turns wait as of " in out
    rows = [line for line in out.splitlines() if any(row["conversation_key"] in line for row in waiting[:8])]
    assert [row["conversation_key"] in line for row, line in zip(waiting, rows, strict=False)] == [True] * 8


@pytest.mark.parametrize(
    ("width", "height"), [(20, 24), (40, 24), (80, 24), (80, 50), (140, 40), (80, None), (30, None)]
)
def test_it_fits(streamed: Streamed, width: int, height: int | None) -> None:
    """No line is longer than the terminal is wide; from 80 by 24 on, nothing is cut off at the bottom."""
    lines = shown(Watched(streamed.output).look(), width, height)
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any("All channels"[: min(12, width // 3)] in line for line in lines)
    if width >= 80 and height is not None:
        assert len(lines) <= height and "…" not in "".join(lines)


def test_json_is_all_of_it(streamed: Streamed, capsys: pytest.CaptureFixture[str]) -> None:
    """The status as it is written, whether it runs, and the published result with those who wait."""
    assert main(["watch", str(streamed.output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == streamed.status and told["is_running"] is False and told["trouble"] is None
    waiting = streamed.rows("FROM waiting_now")
    assert told["result"]["waiting_turn_count"] == len(waiting)
    assert [row["conversation_key"] for row in told["result"]["waiting"]] == [
        row["conversation_key"] for row in waiting[:20]
    ]


def test_what_there_is_nothing_to_watch_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, an empty one, and a file; a result without a stream is shown."""
    for folder in (tmp_path / "nowhere", tmp_path):
        assert main(["watch", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("Error: Expected the output folder of a stream, but ") and error.count("\n") == 1
    output = copy_of_result(tmp_path)
    assert main(["watch", str(output), "--once"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No stream has run into ") and "turns wait as of" in " ".join(out.split())
    (output / STATUS).parent.mkdir()
    for text in ('{"half": ', "[]", '{"format": 0}'):
        (output / STATUS).write_text(text, encoding="utf-8")
        assert main(["watch", str(output), "--once"]) == 0
    (output / "care.duckdb").resolve().write_bytes(b"damaged")
    assert main(["watch", str(output), "--once"]) == 2
    assert "to be the DuckDB file of a result" in capsys.readouterr().err


def test_names_cannot_move_the_cursor(streamed: Streamed) -> None:
    """Names from the data are shown as they are: neither the terminal nor the layout obeys them."""
    view = Watched(streamed.output).look()
    assert view.status is not None and view.result is not None
    status = json.loads(json.dumps(view.status))
    odd = "[red]\x1b[2J\nx"
    status["partitions"][0]["partition"] = status["today"]["kpis"][0]["channel"] = odd
    status["said"] = [{"at": view.now.isoformat(), "sentence": odd}]
    result = replace(view.result, waiting=({**view.result.waiting[0], "customer_id": odd, "channel": "客服" * 9},))
    lines = shown(View(view.output, view.now, status, False, result), 120)
    text = "\n".join(lines)
    assert text.count("[red]\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}x") == 4 and "\x1b" not in text
    assert "客服客服客服客…" in text


class NoTaking:
    """Nothing to take of two partitions."""

    def __init__(self, *lags: int) -> None:
        """Takes what is left of each."""
        self.ranges = {f"care/{number}": Range(7, 7, lag=lag) for number, lag in enumerate(lags)}


@pytest.fixture
def store(tmp_path: Path, streamed: Streamed) -> Iterator[LiveStore]:
    """A store of a stream that has had two cycles."""
    with LiveStore(streamed.output) as opened:
        yield opened


def test_health(store: LiveStore) -> None:
    """503 before the start, 200 while it looks, 503 with the last sentence once it has not for 30 s, and at its end."""
    now = [1_000.0]
    figures = Figures("UTC", lambda: now[0], lambda: now[0])
    server = MetricsServer(figures, 0)
    try:
        assert get(server.port, "/healthz") == (503, "The stream is starting.\n")
        figures.began(store)
        assert get(server.port, "/healthz") == (200, "ok\n")
        figures.said("an old one")
        now[0] += 100
        figures.looked(NoTaking(0), store)  # type: ignore[arg-type]
        figures.said("Kafka at b:1 does not answer")
        now[0] += SECONDS_WITHOUT_LOOK - 1
        assert get(server.port, "/healthz")[0] == 200
        now[0] += 1
        code, why = get(server.port, "/healthz")
        assert code == 503
        assert why == "The stream has not looked for anything new for 30 s: Kafka at b:1 does not answer\n"
        figures.looked(NoTaking(0), store)  # type: ignore[arg-type]
        assert get(server.port, "/healthz")[0] == 200
        figures.ended(None)
        assert get(server.port, "/healthz") == (503, "The stream has ended.\n")
        assert get(server.port, "/elsewhere")[0] == 404
    finally:
        server.close()
    with pytest.raises(OSError):
        get(server.port, "/healthz")


def test_figures_of_a_stream_that_lags(store: LiveStore) -> None:
    """What goes on after two cycles: the cycle is known, counts begin anew, lag is by partition and in all."""
    figures = Figures("UTC")
    figures.began(store)
    assert figures.current()["lag"] is None and figures.current()["cycle"] == 2
    figures.looked(NoTaking(3, 0, 40), store)  # type: ignore[arg-type]
    for number in range(SENTENCES + 2):
        figures.said(f"sentence {number}")
    told = figures.current()
    assert told["lag"] == 43 and told["rows_read_count"] == 0 and told["pending_cycle_count"] == 0
    lags = {each["partition"]: each["lag"] for each in told["partitions"]}
    assert lags == {"care/0": 3, "care/1": 0, "care/2": 40, "files": None}
    assert [said["sentence"] for said in told["said"]] == [f"sentence {n}" for n in range(2, SENTENCES + 2)]
    view = View(Path("output"), datetime.now(UTC), {**told, "said": []}, True, None)
    table = "\n".join(shown(view, 80))
    assert re.search(r"care/2 +7 +40 .*care/0 +7 +3 ", table, re.DOTALL) and "Streaming into output" in table


def test_dead_letters_that_go_again(store: LiveStore) -> None:
    """The status has what is left of them, as `runs` does; the counter of Prometheus never goes back."""
    assert store.state is not None
    no, two = (
        DEAD_LETTERS.schema.empty_table(),
        {**dict.fromkeys(DEAD_LETTERS.schema.names), "source": "a", "source_row": 1},
    )
    letters = pa.Table.from_pylist(
        [{**two, "stage": "pair", "reason": "conflicting_duplicate"}] * 2, DEAD_LETTERS.schema
    )
    figures = Figures("UTC")
    for gone, came in ((no, letters), (letters.slice(0, 1), no)):
        result = types.SimpleNamespace(
            counts=json.dumps({"rows": {"rows_read": 5}, "seconds": 0.25}), letters=(gone, came), state=store.state
        )
        figures.committed(result, NoTaking(0), store)  # type: ignore[arg-type]
    told = figures.current()
    assert told["dead_letter_count"] == 1 and told["dead_letters_by_reason"] == {"conflicting_duplicate": 1}
    assert figures.new_letters() == {"conflicting_duplicate": 2} and told["rows_read_count"] == 10
    assert told["cycle_seconds"] == {"last": 0.25, "p50": 0.25, "p99": 0.25}


def test_rates_forget(store: LiveStore) -> None:
    """rows_per_second is of the last minute, the percentiles are of the last five."""
    now = [1_000.0]
    figures = Figures("UTC", lambda: now[0], lambda: now[0])
    figures.began(store)
    no = DEAD_LETTERS.schema.empty_table()
    for number in range(100):
        now[0] += 1
        counts = json.dumps({"rows": {"rows_read": 30}, "seconds": 0.01 * (number + 1)})
        result = types.SimpleNamespace(counts=counts, letters=(no, no), state=store.state)
        figures.committed(result, NoTaking(0), store)  # type: ignore[arg-type]
    told = figures.current()
    assert told["rows_per_second"] == 30 and told["cycle_seconds"] == {"last": 1.0, "p50": 0.5, "p99": 0.99}
    now[0] += 30
    assert figures.current()["rows_per_second"] == 15
    now[0] += 230
    assert figures.current()["rows_per_second"] == 0 and figures.current()["cycle_seconds"]["p50"] == 0.8
    now[0] += 300
    assert figures.current()["cycle_seconds"] == {"last": None, "p50": None, "p99": None}


def test_the_log_as_text(capsys: pytest.CaptureFixture[str], store: LiveStore) -> None:
    """Sentences with their time, one a line whatever they hold; cycles only where they are asked for."""
    figures = Figures("UTC")
    log = Watchers([figures, Log(figures, "care-events of Kafka at b:1")])
    log.began(store)
    log.said("Kafka does\nnot answer\x1b[2J")
    log.ended(UserError("Expected this, got that."))
    first, second, third = capsys.readouterr().err.splitlines()
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(
        f"{moment} The stream of care-events of Kafka at b:1 into .* starts. It goes on after .*", first
    )
    assert re.fullmatch(rf"{moment} Warning: Kafka does not answer \[2J\.", second)
    assert re.fullmatch(f"{moment} Error: The stream stops; what is committed stays. Expected this, got that.", third)
    assert figures.current()["ended_by"] == "Expected this, got that."


def test_a_taken_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, exit code 2, and nothing is touched."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ["stream", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--metrics-port", port]
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: Expected port {port} of 127.0.0.1 to be free") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_who_is_running() -> None:
    """A process id alone does not tell: another process may have it by now; of another machine only its age tells."""
    mine = process_identity(os.getpid())
    assert mine is not None
    place, started = mine
    status = {"ended_at": None, "process_id": os.getpid(), "process": [place, started]}
    assert is_running(status, 1e6)
    assert not is_running({**status, "process": [place, f"{int(started) - 1}"]}, 0.0)
    assert not is_running({**status, "ended_at": iso(time.time())}, 0.0)
    elsewhere = {**status, "process": ["another machine", started]}
    assert is_running(elsewhere, 1.0) and not is_running(elsewhere, 60.0)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        identity = process_identity(process.pid)
        assert identity is not None
    assert not is_running({**status, "process_id": process.pid, "process": list(identity)}, 0.0)


def command(*arguments: str) -> list[str]:
    """`care-kpis` in a process of its own."""
    return [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", *arguments]


def test_a_stream_that_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it runs it is well, and says so itself; killed, it is seen to be gone at once."""
    output, port = tmp_path / "output", free_port()
    (tmp_path / "inbox").mkdir()
    arguments = ["stream", "--input", str(tmp_path / "inbox"), "--output", str(output), "--metrics-port", str(port)]
    with subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while read_status(output) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert get(port, "/healthz") == (200, "ok\n")
            assert main(["watch", str(output)]) == 0
            out = " ".join(capsys.readouterr().out.split())
            assert out.startswith(f"Streaming into {output} for ") and f"process {process.pid}" in out
            assert "has no event yet" in out
        finally:
            process.kill()
            said = process.communicate()[1]
    assert "starts. It begins with the first cycle." in said
    assert main(["watch", str(output)]) == 0
    assert "is not running: it ended without a word" in " ".join(capsys.readouterr().out.split())


def test_the_terminal_is_given_back(streamed: Streamed) -> None:
    """On a terminal it goes on until Ctrl-C, which is no error; then the screen is what it was before."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    arguments = command("watch", str(streamed.output))
    with subprocess.Popen(arguments, cwd=ROOT, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        told = b""
        asked = threading.Timer(60, process.kill)
        asked.start()
        while b"All channels" not in told:
            told += os.read(parent, 65_536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            if select.select([parent], [], [], 0.05)[0]:
                told += read_some(parent)
        asked.cancel()
    told += read_some(parent)
    os.close(parent)
    assert process.returncode == 0 and b"Traceback" not in told
    assert told.index(b"\x1b[?1049h") < told.index(b"All channels") < told.index(b"\x1b[?1049l")


def read_some(terminal: int) -> bytes:
    """What is left to read; nothing once the other side is closed."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""
