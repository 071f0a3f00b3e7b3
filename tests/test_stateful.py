"""The stateful DoFns under TestStream: whatever comes when, the changes add up to what a batch run makes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import golden
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drivers import Outcome, Row, as_rows, run_kernels, whole_numbers, with_running_sums
from streams import FOR_EVER, arrivals_of, run_stream, tables_of
from worlds import world

from pipelines.cli import main
from pipelines.settings import settings_record
from pipelines.sources.blocks import Block
from pipelines.sources.formats import read_block
from pipelines.unbounded.loading import load_changes
from sinks.change_files import begin_changes, write_changes
from sinks.file_systems import RemoteFolder
from transforms.buckets import Bucket, encode_rows
from transforms.errors import UserError
from transforms.events import parse_events
from transforms.key_changes import KEYS_KIND, LETTERS_KIND, WINDOWS_KIND, decode_changes, encode_change
from transforms.kpis import compute_kpis
from transforms.restating import Restated, restate
from transforms.settings import DAY, HOUR, ChannelSettings, Settings
from transforms.shuffle import PLAIN_EVENTS, split_by_key, with_plain_ids
from transforms.statistics import add_statistics
from transforms.stored_statistics import read_statistics
from transforms.stream_settings import SECOND, StreamSettings
from transforms.tables import CONVERSATIONS, TURNS
from transforms.window_groups import Difference, restate_group, split_by_group

START = 1_767_571_200 * SECOND
PATIENT = StreamSettings(allowed_lateness=FOR_EVER)
NO_EVENTS = PLAIN_EVENTS.empty_table()


def event(name: str, hour: float, kind: str = "message", **more: object) -> bytes:
    """A line of NDJSON; hours count from 2026-01-05, a Monday."""
    at = START // 1000 + round(hour * 3_600_000)
    row = {"event_id": name, "event_type": kind, "occurred_at": at, "channel": "email", "conversation_id": "c", **more}
    return json.dumps(row).encode()


def rows_of(lines: Sequence[bytes], part: int = 0) -> pa.Table:
    """Lines as rows of a bucket."""
    events = parse_events(read_block(Block(f"part-{part}.ndjson", "ndjson", 1, b"\n".join(lines)))).events
    parts = [with_plain_ids(rows) for _, rows in split_by_key(events, 1)]
    return parts[0] if parts else NO_EVENTS


def in_order(rows: Sequence[Row]) -> list[str]:
    """Rows of a table in any order, to compare."""
    return sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)


def settings_and_end(seed: int, lines: Sequence[bytes], settings: Settings) -> Settings | None:
    """Settings with an as_of of whole seconds behind all events; None where there is no event."""
    settings = replace(settings, repeat_contact=None, as_of=None)
    latest = run_kernels([b"\n".join(lines)], settings).counts["as_of"]
    if latest is None:
        return None
    later = random.Random(f"end {seed}").choice((0, SECOND, 40 * DAY, 500 * DAY))
    return replace(settings, as_of=-(-latest // SECOND) * SECOND + later)


def check_same(changes: Sequence[bytes], want: Outcome) -> None:
    """The changes add up to the tables of a batch run."""
    got = tables_of(changes)
    assert in_order(got["conversations"]) == in_order(want.conversations)
    assert in_order(got["turns"]) == in_order(want.turns)
    assert in_order(got["kpi_statistics"]) == in_order(as_rows(want.kpi_statistics))
    assert in_order(got["pair_letters"]) == in_order([row for row in want.dead_letters if row["stage"] == "pair"])
    for name, count in (("kept", "events_kept"), ("exact_duplicate", "exact_duplicates"), ("stray", "stray_events")):
        assert sum(key[f"{name}_count"] for key in got["keys"]) == want.counts[count]


def check_world(seed: int) -> None:
    """A random world in a random order of arrival, while the watermark goes on at random."""
    lines, settings = world(seed)
    given = settings_and_end(seed, lines, settings)
    if given is None or given.as_of is None:
        return
    # A stream ends at the end of time, when every timer has fired: behind all that time alone does.
    longest = max(channel.max_open for channel in (given.default, *given.channels.values()))
    given = replace(given, as_of=given.as_of + -(-2 * longest // SECOND) * SECOND)
    arrivals = arrivals_of(lines, random.Random(seed), given.as_of)
    check_same(run_stream(arrivals, given, PATIENT), run_kernels([b"\n".join(lines)], given))


@pytest.mark.parametrize("seed", (1, 2))
def test_a_stream_is_a_batch(seed: int) -> None:
    """Row for row at the same as_of, however late events come within what is allowed."""
    check_world(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 140, 10))
def test_many_worlds(first: int) -> None:
    """The same of many more worlds."""
    for seed in range(first, first + 10):
        check_world(seed)


@pytest.mark.parametrize("case", golden.cases() or [None], ids=lambda case: case.name if case else "none")
def test_golden_cases(case: Path | None) -> None:
    """The golden cases run through the kernels of the stream, each event in a firing of its own."""
    if case is None:
        pytest.skip("the golden cases are not here")
    settings = golden.settings_of(case)
    if settings.repeat_contact is not None:
        pytest.skip("repeat contacts reach from key to key")
    want = golden.expected(case)
    as_of = want["counts"]["as_of"]
    if as_of is None:
        pytest.skip("a case without any event")
    lines = golden.lines_of(case)
    parsed = parse_events(read_block(Block("part-0.ndjson", "ndjson", 1, b"\n".join(lines))))
    order = np.random.default_rng(1).permutation(parsed.events.num_rows)
    fired, bucket = [], Bucket()
    for _, rows in split_by_key(parsed.events, 1):
        for row in order.tolist():
            one = with_plain_ids(rows.slice(row, 1))
            bucket = take(fired, bucket, one, latest(one), settings)
    take(fired, bucket, NO_EVENTS, as_of, settings)
    got = tables_of(changes_of(fired, settings))
    statistics = add_statistics([one.statistics for one in fired])
    kpis, stored, *_ = compute_kpis(statistics, settings.timezone, as_of)
    got["kpis"] = with_running_sums(as_rows(kpis))
    assert in_order(got["kpi_statistics"]) == in_order(as_rows(stored))
    assert golden.compare_tables(got, want) == []


def latest(rows: pa.Table) -> int:
    """The latest occurred_at of rows: with it as the watermark all of them count."""
    return int(np.asarray(rows["occurred_at"].cast(pa.int64())).max())


def take(
    fired: list[Restated], bucket: Bucket, rows: pa.Table, watermark: int, settings: Settings, **stream: int
) -> Bucket:
    """One firing, through the bytes that are kept between two; notes what came of it."""
    kept = Bucket.load(bucket.save(), [encode_rows(bucket.rows)])
    done = restate(kept, rows, watermark, watermark, settings, replace(PATIENT, **stream))
    if done is None:
        return bucket
    fired.append(done)
    return done.bucket


def changes_of(fired: Sequence[Restated], settings: Settings, at_once: int = 1) -> list[bytes]:
    """The changes that firings give; `at_once` firings are added up together."""
    kinds = KEYS_KIND, CONVERSATIONS.name, TURNS.name, LETTERS_KIND
    found, groups = [], dict[str, Difference]()
    for one in fired:
        tables = (one.keys, one.conversations, one.turns, one.letters)
        found.append(encode_change(dict(zip(kinds, tables, strict=True))))
    for place in range(0, len(fired), at_once):
        parts: dict[str, list[Difference]] = {}
        for one in fired[place : place + at_once]:
            for group, part in split_by_group(Difference(one.statistics, one.marks), settings.timezone):
                parts.setdefault(group, []).append(Difference.load(part.save()))
        for group, some in parts.items():
            groups[group], windows = restate_group(group, groups.get(group, Difference()), some, settings.timezone)
            found.append(encode_change({WINDOWS_KIND: windows}))
    return found


@pytest.mark.parametrize("seed", (20, 21, 23, 24, 25))
def test_what_a_dead_worker_wrote_does_no_harm(seed: int) -> None:
    """A try that saw rows in another order and bundling, and died, leaves changes behind: the tables are the same."""
    lines, settings = world(seed)
    given = settings_and_end(seed, lines, settings)
    if given is None or given.as_of is None:
        return
    rng, rows = random.Random(seed), rows_of(lines)
    times = np.asarray(rows["occurred_at"].cast(pa.int64())).tolist()
    before: list[Restated] = []
    first = rng.randint(0, rows.num_rows)
    order = rng.sample(range(rows.num_rows), rows.num_rows)
    saved = take(before, Bucket(), rows.take(pa.array(order[:first], pa.int64())), rng.choice(times), given)
    tries = []
    for is_last in (False, True):
        fired, bucket, left = list(before), saved, order[first:]
        rng.shuffle(left)
        if not is_last:
            left = left[: rng.randint(0, len(left))]
        watermark = 0
        while left:
            size = rng.randint(1, 4)
            now, left = left[:size], left[size:]
            bucket = take(fired, bucket, rows.take(pa.array(now, pa.int64())), watermark, given)
            watermark = max(watermark, rng.choice(times))
        end = given.as_of if is_last or rng.random() < 0.5 else watermark
        take(fired, bucket, NO_EVENTS, end, given)
        tries.append(changes_of(fired, given, rng.randint(1, 3)))
    mixed = [*tries[0], *tries[1], *rng.sample(tries[1], len(tries[1]) // 2)]
    rng.shuffle(mixed)
    check_same(mixed, run_kernels([b"\n".join(lines)], given))


@pytest.mark.parametrize("seed", range(30, 33))
def test_marks_are_where_numbers_are(seed: int) -> None:
    """No statistic ever falls into a cell that is not marked: else nobody would take it back after a failure."""
    lines, settings = world(seed)
    given = settings_and_end(seed, lines, settings)
    assert given is not None and given.as_of is not None
    fired: list[Restated] = []
    rows, bucket = rows_of(lines), Bucket()
    for row in range(rows.num_rows):
        bucket = take(fired, bucket, rows.slice(row, 1), latest(rows.slice(row, 1)), given)
        marks = whole_numbers(add_statistics([one.marks for one in fired]))
        assert whole_numbers(add_statistics([one.statistics for one in fired])).keys() <= marks.keys()
    take(fired, bucket, NO_EVENTS, given.as_of, given)
    marks = whole_numbers(add_statistics([one.marks for one in fired]))
    assert whole_numbers(add_statistics([one.statistics for one in fired])).keys() <= marks.keys()


def test_silent_keys_are_forgotten() -> None:
    """Rows go once nothing can join them any more; what was said of them stays, and what comes later begins anew."""
    settings = Settings(default=ChannelSettings(gap=HOUR, max_idle=48 * HOUR, max_open=96 * HOUR))
    solved = [event("a", 0), event("b", 1, "reply", author_type="agent"), event("c", 2, "resolved")]
    ticket = [event("d", 0, conversation_id="d"), event("e", 1, "note", conversation_id="d")]
    later = [event("f", 200), event("a", 201, "reply", author_type="agent")]
    fired: list[Restated] = []
    lateness = {"allowed_lateness": 10 * HOUR}
    bucket = take(fired, Bucket(), rows_of([*solved, *ticket]), START, settings, **lateness)
    assert fired[-1].wake_at is not None
    for hour, left in ((60, 5), (60 + 1e-6, 2), (107, 2), (107 + 1e-6, 0)):
        watermark = START + round(hour * HOUR)
        bucket = take(fired, bucket, NO_EVENTS, watermark, settings, **lateness)
        assert bucket.rows.num_rows == left, hour
    assert len(bucket.forgotten) == 2 and len(bucket.wakes) == 0
    bucket = take(fired, bucket, rows_of(later, 1), START + 201 * HOUR, settings, **lateness)
    assert bucket.rows.num_rows == 2
    bucket = take(fired, bucket, NO_EVENTS, START + 4000 * HOUR, settings, **lateness)
    assert bucket.rows.num_rows == 0 and len(bucket.forgotten) == 0 and fired[-1].wake_at is None
    as_of = START + 4000 * HOUR
    whole = run_kernels(
        [b"\n".join([*solved, *ticket, *later]).replace(b'"a"', b'"z"', 1)], replace(settings, as_of=as_of)
    )
    got = tables_of(changes_of(fired, settings))
    names = {name: value for name, value in whole.counts.items() if name in ("conversations", "turns")}
    assert {name: len(got[name]) for name in names} == names
    assert in_order(got["conversations"]) == in_order(whole.conversations)
    assert in_order(got["kpi_statistics"]) == in_order(as_rows(whole.kpi_statistics))


def test_rows_far_ahead_wait() -> None:
    """A row a day ahead of the watermark does not make time pass for the others; it counts once its time comes."""
    settings, fired = (
        Settings(default=ChannelSettings(gap=HOUR, max_idle=2 * HOUR, max_open=2 * HOUR)),
        list[Restated](),
    )
    bucket = take(fired, Bucket(), rows_of([event("a", 1), event("b", 25)]), START + HOUR, settings)
    assert bucket.rows.num_rows == 1 and bucket.pending.num_rows == 1
    assert fired[-1].conversations["state"].to_pylist() == ["open"]
    assert fired[-1].wake_at == START + 3 * HOUR + 1
    bucket = take(fired, bucket, NO_EVENTS, START + 25 * HOUR - 70 * SECOND, settings)
    assert bucket.rows.num_rows == 2 and bucket.pending.num_rows == 0
    assert restate(bucket, NO_EVENTS, START, START, settings, PATIENT) is None


def check_loading(seed: int, folder: Path) -> None:
    """The changes of a world, in two orders and some of them twice, are loaded one part after another."""
    lines, settings = world(seed)
    given = settings_and_end(seed, lines, settings)
    if given is None or given.as_of is None:
        return
    rng, want = random.Random(seed), run_kernels([b"\n".join(lines)], given)
    rows, fired, bucket = rows_of(lines), list[Restated](), Bucket()
    order = rng.sample(range(rows.num_rows), rows.num_rows)
    for place in range(0, len(order), 5):
        some = rows.take(pa.array(order[place : place + 5], pa.int64()))
        bucket = take(fired, bucket, some, latest(some), given)
    take(fired, bucket, NO_EVENTS, given.as_of, given)
    progress = pa.table(
        {
            "topic": ["t"],
            "partition": pa.array([0], pa.int32()),
            "next_offset": [len(lines)],
            "rows_read": [want.counts["rows_read"]],
            "watermark": [given.as_of],
        }
    )
    letters = parse_events(read_block(Block("part-0.ndjson", "ndjson", 1, b"\n".join(lines)))).dead_letters
    changes = [*changes_of(fired, given, 2), encode_change({"progress": progress, "dead_letters": letters})]
    changes = rng.sample(changes, len(changes))
    url, output = str(folder / "changes"), folder / "output"
    begin_changes(url, {"settings": settings_record(given)})
    size = -(-len(changes) // rng.randint(2, 4))
    for place in range(0, len(changes), size):
        some = changes[max(place - 2, 0) : place + size]
        for number in range(0, len(some), 7):
            write_changes(url, "2026-01-31", decode_changes(some[number : number + 7]))
        assert load_changes(url, output, remove=seed % 2 == 1).changes
    assert load_changes(url, output).changes == 0
    left = [path for path in (folder / "changes").rglob("*.*") if path.name != "stream.json"]
    assert bool(left) == (seed % 2 == 0)
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        for table, theirs in (("conversations", want.conversations), ("turns", want.turns), ("kpis", want.kpis)):
            ours = as_rows(warehouse.sql(f"SELECT * FROM {table}").to_arrow_table())
            assert golden.compare_tables({table: ours}, {table: theirs}, tables=[table]) == []
        ours = as_rows(warehouse.sql("SELECT * FROM dead_letters").to_arrow_table())
        assert in_order(ours) == in_order(want.dead_letters)
        read, kept = warehouse.sql("SELECT sum(rows_read_count), sum(events_kept_count) FROM runs").fetchall()[0]
        assert (read, kept) == (want.counts["rows_read"], want.counts["events_kept"])
        for table in ("conversations", "turns", "kpi_statistics", "dead_letters"):
            files = [pq.read_table(path, partitioning=None) for path in (output / table).rglob("*.parquet")]
            warehouse.register("files", pa.concat_tables(files))
            for one, other in ((table, "files"), ("files", table)):
                columns = ", ".join(row[0] for row in warehouse.sql(f"DESCRIBE {table}").fetchall())
                assert (
                    warehouse.sql(f"SELECT {columns} FROM {one} EXCEPT ALL SELECT {columns} FROM {other}").fetchall()
                    == []
                )
    assert main(["check", str(output)]) == 0


@pytest.mark.parametrize("seed", range(40, 43))
def test_loading(seed: int, tmp_path: Path) -> None:
    """In whatever order change files come, part by part, the result is that of a batch run; and it is sound."""
    check_loading(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(200, 220, 5))
def test_loading_many_worlds(first: int, tmp_path: Path) -> None:
    """The same of many more worlds."""
    for seed in range(first, first + 5):
        check_loading(seed, tmp_path / str(seed))


def test_what_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another stream, another result, a damaged file: one sentence each."""
    url = tmp_path / "changes"
    begin_changes(str(url), {"settings": {"timezone": "UTC"}, "buckets": 4})
    begin_changes(str(url), {"settings": {"timezone": "UTC"}, "buckets": 4})
    with pytest.raises(UserError, match="but buckets changed from"):
        begin_changes(str(url), {"settings": {"timezone": "UTC"}, "buckets": 8})
    source = tmp_path / "in.ndjson"
    source.write_bytes(event("a", 1))
    fired: list[Restated] = []
    take(fired, Bucket(), rows_of([event("a", 1)]), START + HOUR, Settings())
    write_changes(str(url), "2026-01-31", decode_changes(changes_of(fired, Settings())))
    assert main(["batch", "--input", str(source), "--output", str(tmp_path / "batch")]) == 0
    assert main(["load", str(url), "--output", str(tmp_path / "batch")]) == 2
    assert "nothing but `load` of change files writes to" in " ".join(capsys.readouterr().err.split())
    assert main(["load", str(url), "--output", str(tmp_path / "live")]) == 0
    assert "1 changes merged" in capsys.readouterr().out
    assert main(["load", str(url), "--output", str(tmp_path / "live")]) == 0
    assert "Nothing new" in capsys.readouterr().out
    damaged = next((url / "files").rglob("*-turns.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert main(["load", str(url), "--output", str(tmp_path / "anew")]) == 2
    assert "its checksum differs" in " ".join(capsys.readouterr().err.split())


def test_changes_that_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Removed once they are in the result, however often that is interrupted; written again, they change nothing."""
    url, live = tmp_path / "changes", tmp_path / "live"
    begin_changes(str(url), {"settings": {"timezone": "UTC"}})
    fired: list[Restated] = []
    bucket, day = Bucket(), f"{datetime.now(UTC):%Y-%m-%d}"
    changes = []
    for name in "ab":
        bucket = take(fired, bucket, rows_of([event(name, 1, conversation_id=name)]), START + HOUR, Settings())
        changes.append(decode_changes(changes_of(fired[-1:], Settings())))

    def files() -> int:
        return sum(path.is_file() for path in url.rglob("*")) - 1

    def conversations() -> list[str]:
        with duckdb.connect(str(live / "care.duckdb"), read_only=True) as warehouse:
            return sorted(key for (key,) in warehouse.sql("SELECT conversation_key FROM conversations").fetchall())

    first = write_changes(str(url), day, changes[0])
    there = files()
    remove = RemoteFolder.remove
    for whole in range(there):
        asked: list[str] = []

        def remove_or_die(folder: RemoteFolder, name: str, asked: list[str] = asked, whole: int = whole) -> None:
            asked.append(name)
            if len(asked) > whole:
                raise RuntimeError("killed")
            remove(folder, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RemoteFolder, "remove", remove_or_die)
            with pytest.raises(RuntimeError, match="killed"):
                load_changes(str(url), live, remove=True)
        assert conversations() == ['[null,"a"]'] and files() == there - whole
    assert main(["load", str(url), "--output", str(live), "--remove-loaded"]) == 0
    assert files() == 0
    # A worker that begins anew writes it again.
    assert write_changes(str(url), day, changes[0]) == first
    write_changes(str(url), day, changes[1])
    assert load_changes(str(url), live, remove=True).changes == 1
    assert conversations() == ['[null,"a"]', '[null,"b"]'] and files() == 0
    capsys.readouterr()
    assert main(["upload", str(live), str(tmp_path / "sent")]) == 0
    assert main(["load", str(tmp_path / "sent"), "--output", str(tmp_path / "other"), "--remove-loaded"]) == 2
    assert "expected the change files of a stream" in " ".join(capsys.readouterr().err.split())


def test_statistics_of_windows_are_read_back() -> None:
    """What the rows of windows say is what was added up."""
    fired: list[Restated] = []
    take(
        fired,
        Bucket(),
        rows_of([event("a", 1), event("b", 2, "reply", author_type="agent")]),
        START + 2 * HOUR,
        Settings(),
    )
    windows = decode_changes(changes_of(fired, Settings()))[WINDOWS_KIND]
    hours = read_statistics(windows.filter(pa.compute.equal(windows["grain"], "hour")))
    ours, theirs = whole_numbers(hours), whole_numbers(fired[0].statistics)
    assert {cell: value for cell, value in ours.items() if any(value[0])} == theirs
