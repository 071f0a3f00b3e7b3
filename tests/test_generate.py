"""Tests of the event generator: same bytes again, the contract's rules, all types and columns, rates, files."""

from __future__ import annotations

import gzip
import json
import shlex
from collections import Counter
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from fixtures import faults, generate, rhythm
from fixtures import world as words
from fixtures.blocks import Run
from fixtures.columns import SCHEMA, make_ids, scramble
from fixtures.export import COMPRESSIONS, TEXT_FORMATS, FileSet
from fixtures.generate import main, write_events
from transforms import schema as codes
from transforms.errors import UserError
from transforms.schema import AUTHOR_TYPES, CONTENT_COLUMNS, EVENT_COLUMNS, EVENT_TYPES

FIXTURES = Path(generate.__file__).parent
ALLOWED_AUTHORS = {"message": ["customer"], "reply": ["agent", "bot", "system"]}


@lru_cache
def world(events: int = 60_000, **arguments: object) -> pa.Table:
    """Generates events as one table of plain columns; made once for each set of arguments."""
    table = pa.Table.from_batches(generate.generate(events, **arguments))
    plain = [pa.field(column.name, column.type) for column in EVENT_COLUMNS]
    return table.cast(pa.schema(plain)).combine_chunks()


def digest(folder: Path) -> dict[str, bytes]:
    """Reads all files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def keys(table: pa.Table) -> list[tuple[str | None, ...]]:
    """Makes the conversation key of each row, as the contract defines it."""
    columns = ("account_id", "channel", "conversation_id", "customer_id")
    return [
        (account, None, conversation) if conversation else (account, channel, customer)
        for account, channel, conversation, customer in zip(
            *(table.column(name).to_pylist() for name in columns), strict=True
        )
    ]


def test_columns_are_those_of_the_contract() -> None:
    """Batches have the input columns in the contract's order, with its types up to dictionaries."""
    batch = next(generate.generate(500))
    assert batch.schema == SCHEMA
    assert batch.schema.names == [column.name for column in EVENT_COLUMNS]
    for field, column in zip(batch.schema, EVENT_COLUMNS, strict=True):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        assert kind == column.type, column.name
    batch.validate(full=True)


def test_all_types_and_columns_occur() -> None:
    """Every event type, author type, channel, language and topic occurs; only text is always null."""
    table = world()
    for name, expected in (
        ("event_type", EVENT_TYPES),
        ("author_type", AUTHOR_TYPES),
        ("channel", words.CHANNELS),
        ("priority", words.PRIORITIES),
        ("language", words.LANGUAGES),
        ("topic", words.TOPICS),
        ("subtopic", words.SUBTOPICS),
        ("quick_reply_id", words.QUICK_REPLIES),
    ):
        values = pc.unique(table.column(name).drop_null()).to_pylist()
        assert sorted(values) == sorted(expected), name
    for column in EVENT_COLUMNS:
        valid = len(table) - table.column(column.name).null_count
        assert valid == 0 if column.name == "text" else valid > 0, column.name
    replies = table.filter(pc.equal(table.column("event_type"), "reply"))
    assert set(replies.column("is_automated").to_pylist()) == {True, False, None}
    assert set(replies.column("author_type").to_pylist()) == {"agent", "bot", "system", None}


def test_rows_keep_the_rules_of_the_contract() -> None:
    """Without bad rows every row is valid: required columns, ranges, authors allowed."""
    table = world()
    for name in ("event_id", "event_type", "occurred_at", "channel", "account_id"):
        assert table.column(name).null_count == 0, name
    named = pc.or_(pc.is_valid(table.column("conversation_id")), pc.is_valid(table.column("customer_id")))
    assert pc.all(named).as_py()
    for event_type, authors in ALLOWED_AUTHORS.items():
        rows = table.filter(pc.equal(table.column("event_type"), event_type))
        assert set(rows.column("author_type").drop_null().to_pylist()) <= set(authors)
    for name, low, high in (("sentiment", -1, 1), ("score", 1, 5), ("duration_seconds", 0, 100_000)):
        limits = pc.min_max(table.column(name)).as_py()
        assert low <= limits["min"] < limits["max"] <= high, name
    for name, event_type in (("score", "rating"), ("duration_seconds", "wrap_up")):
        given = pc.is_valid(table.column(name))
        assert given.equals(pc.equal(table.column("event_type"), event_type)), name
    flagged = table.filter(pc.is_valid(table.column("is_automated")))
    assert pc.unique(flagged.column("event_type")).to_pylist() == ["reply"]


def test_agents_belong_to_one_team_of_their_account() -> None:
    """An agent acts for one team only, and agents and teams are those of the event's account."""
    table = world()
    acts = table.filter(pc.and_(pc.is_valid(table.column("agent_id")), pc.is_valid(table.column("team_id"))))
    trios = acts.group_by(["account_id", "agent_id", "team_id"]).aggregate([]).to_pylist()
    assert len({trio["agent_id"] for trio in trios}) == len(trios) == 3 * 40
    for trio in trios:
        assert trio["agent_id"].startswith(f"{trio['account_id']}-agent-")
        assert trio["team_id"].startswith(f"{trio['account_id']}-")


@pytest.mark.parametrize("agents", [1, 3, 8])
def test_few_agents_all_work(agents: int) -> None:
    """Any number of agents is spread over the teams, and each of them acts."""
    table = world(5_000, agents=agents, accounts=1)
    assert len(pc.unique(table.column("agent_id").drop_null())) == agents


def test_event_ids_are_unique_but_for_copies() -> None:
    """An event_id occurs again in its own key only: as an exact duplicate or a conflicting one, at their rates."""
    table = world(duplicate_rate=0.02, conflict_rate=0.01)
    content = list(zip(*(table.column(name).to_pylist() for name in CONTENT_COLUMNS), strict=True))
    by_id: dict[str, list[tuple[object, ...]]] = {}
    for row in content:
        by_id.setdefault(row[0], []).append(row)
    assert len(set(zip(keys(table), table.column("event_id").to_pylist(), strict=True))) == len(by_id)
    copies = sum(len(rows) - 1 for rows in by_id.values())
    conflicts = sum(len(set(rows)) - 1 for rows in by_id.values())
    assert copies / len(table) == pytest.approx(0.03, rel=0.15)
    assert conflicts / len(table) == pytest.approx(0.01, rel=0.15)
    plain = world(20_000, duplicate_rate=0.0, conflict_rate=0.0)
    assert pc.count_distinct(plain.column("event_id")).as_py() == len(plain)


def test_late_and_shuffled_rows_at_their_rates() -> None:
    """Without disturbance time never runs back; with it, it does for about the asked share of rows."""
    tidy = dict(late_rate=0.0, shuffle_rate=0.0, duplicate_rate=0.0, conflict_rate=0.0)
    times = world(**tidy).column("occurred_at").cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()
    late = world(**{**tidy, "late_rate": 0.05}).column("occurred_at").cast(pa.int64()).to_numpy()
    behind = np.maximum.accumulate(late) - late
    assert (behind > 0).mean() == pytest.approx(0.05, rel=0.15)
    assert (behind > 7 * 86_400e6).sum() > 50
    shuffled = world(**{**tidy, "shuffle_rate": 0.5}).column("occurred_at").cast(pa.int64()).to_numpy()
    behind = np.maximum.accumulate(shuffled) - shuffled
    assert 0 < behind.max() <= 90e6
    assert (behind > 0).mean() > 0.1


def test_number_of_rows_and_period() -> None:
    """There are exactly as many rows as asked for, over the whole period and hardly beyond it."""
    for events in (1, 2, 99, 60_000):
        assert len(world(events)) == events
    limits = pc.min_max(world().column("occurred_at")).as_py()
    assert limits["min"].date() == date(2026, 1, 1)
    assert datetime(2026, 3, 29, tzinfo=UTC) < limits["max"] < datetime(2026, 4, 3, tzinfo=UTC)
    other = pc.min_max(world(5_000, start=date(2024, 2, 28), days=7).column("occurred_at")).as_py()
    assert other["min"].date() == date(2024, 2, 28)
    assert len(world(3_000, days=1, accounts=8)) == 3_000


def test_proportions() -> None:
    """A conversation has about seven events and two turns, and customers return."""
    table = world()
    run = Run(60_000, 1, date(2026, 1, 1), 90, 3, 40, faults.Rates(), text=False)
    rows = sum(columns["at"].size for columns in run.rows())
    assert rows == len(table)
    assert rows / run.conversations == pytest.approx(7.3, rel=0.05)
    messages = pc.sum(pc.equal(table.column("event_type"), "message")).as_py()
    assert 2.3 < messages / run.conversations < 3.3
    unkeyed = table.filter(pc.is_null(table.column("conversation_id")))
    assert set(pc.unique(unkeyed.column("channel")).to_pylist()) == {"x", "instagram"}
    opened: dict[tuple[str | None, ...], set[date]] = {}
    for key, at in zip(keys(unkeyed), unkeyed.column("occurred_at").to_pylist(), strict=True):
        opened.setdefault(key, set()).add(at.date())
    returning = sum(max(days) - min(days) > (date(2026, 1, 4) - date(2026, 1, 1)) for days in opened.values())
    assert 0.1 < returning / len(opened) < 0.8
    mixed = table.filter(pc.is_valid(table.column("conversation_id")))
    pairs = mixed.group_by(["conversation_id", "channel"]).aggregate([]).column("conversation_id")
    assert len(pairs) > pc.count_distinct(pairs).as_py(), "some tickets move to another channel"


def test_life_follows_the_accounts_zone() -> None:
    """By local time, nobody rings at night or on Sunday, and e-mail is answered in the morning, not at night."""
    table = world()
    for account, zone in zip(words.ACCOUNTS[:3], words.ZONES[:3], strict=True):
        mine = table.filter(pc.equal(table.column("account_id"), account))

        def local_times(mine: pa.Table, zone: str, event_type: str, channel: str) -> list[datetime]:
            chosen = pc.and_(pc.equal(mine.column("event_type"), event_type), pc.equal(mine.column("channel"), channel))
            times = mine.filter(chosen).column("occurred_at").to_pylist()
            return [at.astimezone(ZoneInfo(zone)) for at in times]

        calls = local_times(mine, zone, "message", "phone")
        assert calls
        assert sum(7 < at.hour < 21 and at.weekday() < 6 for at in calls) / len(calls) > 0.99
        mails = Counter(at.hour for at in local_times(mine, zone, "reply", "webchat"))
        assert sum(mails[hour] for hour in range(6)) < 0.05 * mails.total()
        written = Counter(at.hour for at in local_times(mine, zone, "message", "x"))
        assert sum(written[hour] for hour in (11, 12, 18, 19)) > 4 * sum(written[hour] for hour in (1, 2, 3, 4))
        week = Counter(at.weekday() for at in local_times(mine, zone, "message", "email"))
        assert week[5] + week[6] < week[0]


def test_channels_have_their_own_pace() -> None:
    """The median wait for a human is seconds on the phone, about a minute in chat, and hours by e-mail."""
    table = world(late_rate=0.0, shuffle_rate=0.0, duplicate_rate=0.0, conflict_rate=0.0)
    waits: dict[str, list[float]] = {channel: [] for channel in words.CHANNELS}
    waiting: dict[tuple[str | None, ...], datetime] = {}
    names = ("event_type", "author_type", "is_automated", "occurred_at", "channel")
    columns = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    for key, (event_type, author, automated, at, channel) in zip(keys(table), columns, strict=True):
        if event_type == "message":
            waiting.setdefault(key, at)
        elif event_type == "reply" and author in ("agent", None) and not automated and key in waiting:
            waits[channel].append((at - waiting.pop(key)).total_seconds())
    medians = {channel: float(np.median(values)) for channel, values in waits.items()}
    assert medians["phone"] < 60 < medians["webchat"] * 2 < 400 < medians["whatsapp"]
    assert medians["whatsapp"] < medians["x"] < 3_600 < medians["email"]
    assert np.percentile(waits["email"], 90) > 2 * medians["email"]


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    """Files of every format are the same byte for byte in a second run, and other with another seed."""
    for format in COMPRESSIONS:
        arguments = dict(events=3_000, format=format, files=2, bad_rate=0.01, days=5)
        for folder, seed in (("first", 5), ("second", 5), ("third", 6)):
            write_events(tmp_path / format / folder, seed=seed, **arguments)
        first, second, third = (digest(tmp_path / format / name) for name in ("first", "second", "third"))
        assert first == second
        assert first.keys() == third.keys()
        assert all(first[name] != third[name] for name in first)


def test_blocks_do_not_depend_on_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small blocks keep the rules that one large one keeps: the number of rows, order, unique ids."""
    monkeypatch.setattr("fixtures.blocks.BLOCK_ROWS", 1_000)
    batches = list(generate.generate(20_000, duplicate_rate=0.0, conflict_rate=0.0, late_rate=0.0, shuffle_rate=0.0))
    assert len(batches) >= 15
    table = pa.Table.from_batches(batches)
    assert len(table) == 20_000
    assert (np.diff(table.column("occurred_at").cast(pa.int64()).to_numpy()) >= 0).all()
    assert pc.count_distinct(table.column("event_id")).as_py() == 20_000


def read_back(path: Path, format: str) -> pa.Table:
    """Reads a written file by a reader that knows nothing of the generator, as plain columns where it can."""
    if format == "parquet":
        return pq.read_table(path)
    if format == "arrow":
        return pa.ipc.open_file(path).read_all()
    opened = pa.input_stream(str(path), compression="detect")
    if format == "csv":
        return pyarrow.csv.read_csv(opened)
    rows = [json.loads(line) for line in opened.read().decode().splitlines()]
    return pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows])


@pytest.mark.parametrize(
    ("format", "compression"), [(format, name) for format, names in COMPRESSIONS.items() for name in names]
)
def test_files_are_readable_and_agree(tmp_path: Path, format: str, compression: str) -> None:
    """Every format and compression holds the rows that generate yields, over several files, in order."""
    paths = write_events(tmp_path, 2_000, 3, format, compression, files=3, days=10)
    assert [path.name.split(".")[0] for path in paths] == ["events-000", "events-001", "events-002"]
    assert sorted(tmp_path.iterdir()) == paths
    parts = [read_back(path, format) for path in paths]
    assert [len(part) for part in parts] == [666, 667, 667]
    expected = pa.Table.from_batches(generate.generate(2_000, 3, days=10))
    for name in CONTENT_COLUMNS:
        written = [value for part in parts for value in part.column(name).to_pylist()]
        wanted = expected.column(name).to_pylist()
        if name == "occurred_at" and format in TEXT_FORMATS:
            written = [datetime.fromisoformat(str(value)) for value in written]
            written = [at.replace(tzinfo=UTC) if at.tzinfo is None else at for at in written]
        empty = format == "csv"
        assert [value or None if empty and value == "" else value for value in written] == wanted, name


def test_parquet_holds_plain_text(tmp_path: Path) -> None:
    """Parquet files have the contract's types, so that any tool reads them as it would another system's export."""
    (path,) = write_events(tmp_path / "one", 1_000)
    assert path.name == "events.parquet"
    schema = pq.read_schema(path)
    assert schema.names == SCHEMA.names
    assert [field.type for field in schema] == [column.type for column in EVENT_COLUMNS]


def reasons(line: str) -> str | None:
    """Finds what is wrong with an NDJSON line, as the contract defines it; None where nothing is."""
    try:
        row = json.loads(line)
    except ValueError:
        return "unreadable"
    if not isinstance(row.get("is_automated", False), bool):
        return "wrong_type"
    needed = ["event_id", "event_type", "occurred_at", "channel"]
    needed += {"rating": ["score"], "wrap_up": ["duration_seconds"]}.get(row.get("event_type"), [])
    needed += [] if "conversation_id" in row else ["customer_id"]
    if any(name not in row for name in needed):
        return "missing"
    if row["event_type"] not in EVENT_TYPES:
        return "unknown_event_type"
    try:
        at = datetime.fromisoformat(row["occurred_at"])
    except ValueError:
        return "bad_time"
    if at.tzinfo is None:
        return "bad_time"
    inside = (
        -1 <= row.get("sentiment", 0) <= 1 and 1 <= row.get("score", 1) <= 5 and row.get("duration_seconds", 0) >= 0
    )
    if at < datetime(1970, 1, 1, tzinfo=UTC) or not inside:
        return "out_of_range"
    author = row.get("author_type")
    if author is not None and author not in AUTHOR_TYPES:
        return "unknown_author_type"
    if author is not None and author not in ALLOWED_AUTHORS.get(row["event_type"], AUTHOR_TYPES):
        return "author_type_not_allowed"
    return None


def test_bad_rows_of_every_reason(tmp_path: Path) -> None:
    """NDJSON has bad rows of every reason but conflicts, which have a rate of their own, at the asked rate."""
    (path,) = write_events(tmp_path, 20_000, format="ndjson", bad_rate=0.05)
    found = Counter(reasons(line) for line in path.read_text().splitlines())
    assert found.pop(None) / 20_000 == pytest.approx(0.95, rel=0.01)
    assert set(found) == set(codes.REASONS) - {"conflicting_duplicate"}


def test_bad_rows_of_every_fault(tmp_path: Path) -> None:
    """Typed formats have every fault that they can; CSV has those of text, too, and no row hides another."""
    table = world(20_000, bad_rate=0.05)
    for name in ("event_id", "event_type", "occurred_at", "channel"):
        assert table.column(name).null_count > 0, name
    assert "liked" in pc.unique(table.column("event_type")).to_pylist()
    assert "robot" in pc.unique(table.column("author_type")).to_pylist()
    assert pc.max(table.column("sentiment")).as_py() > 1
    assert pc.max(table.column("score")).as_py() > 5
    assert pc.min(table.column("duration_seconds")).as_py() < 0
    assert pc.min(table.column("occurred_at")).as_py() < datetime(1970, 1, 1, tzinfo=UTC)
    (path,) = write_events(tmp_path, 20_000, format="csv", compression="gzip", bad_rate=0.05)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(lines) == 20_001
    assert lines[0] == ",".join(SCHEMA.names)
    fields = Counter(line.count(",") + 1 for line in lines)
    assert fields[len(SCHEMA)] > 19_900
    assert len(fields) > 1
    assert any(",maybe," in line for line in lines)
    assert any(",yesterday," in line for line in lines)


def test_everything_bad_or_copied() -> None:
    """The rates reach from none to all."""
    assert len(world(2_000, bad_rate=1.0, duplicate_rate=1.0, conflict_rate=1.0, late_rate=1.0)) == 2_000


@pytest.mark.parametrize(
    ("arguments", "words_of_error"),
    [
        ({"events": 0}, "expected events from 1"),
        ({"seed": -1}, "expected seed from 0"),
        ({"days": 0}, "expected days from 1"),
        ({"accounts": 0}, "expected accounts from 1"),
        ({"agents": 0}, "expected agents from 1"),
        ({"bad_rate": 1.5}, "expected bad_rate from 0.0 to 1.0, got 1.5"),
        ({"late_rate": float("nan")}, "expected late_rate"),
        ({"start": date(1969, 12, 31)}, "expected start from 1970-01-02"),
        ({"format": "xlsx"}, "expected a format of parquet, arrow, ndjson, csv, got 'xlsx'"),
        ({"format": "csv", "compression": "lz4"}, "expected a compression of none, gzip, zstd for csv, got 'lz4'"),
        ({"events": 5, "files": 6}, "expected from 1 file up to one a row"),
        ({"files": 0}, "expected from 1 file"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, object], words_of_error: str) -> None:
    """An argument that cannot be is one clear sentence, and nothing is written."""
    with pytest.raises(UserError, match=words_of_error):
        write_events(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_generate_checks_at_once() -> None:
    """Wrong arguments are refused on the call, before the first batch is asked for."""
    with pytest.raises(UserError, match="expected events"):
        generate.generate(0)


def test_files_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in the middle no file is left; a second run replaces files of its own names only."""
    write = FileSet.write

    def fail_later(self: FileSet, batch: pa.RecordBatch) -> None:
        write(self, batch.slice(0, 600))
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(FileSet, "write", fail_later)
        with pytest.raises(OSError, match="disk full"):
            write_events(tmp_path, 1_000, files=2)
    assert list(tmp_path.iterdir()) == []
    write_events(tmp_path, 1_000, files=3)
    before = digest(tmp_path)
    write_events(tmp_path, 1_000, files=3)
    assert digest(tmp_path) == before
    with pytest.raises(UserError, match=r"expected no other event files in .*, found events-000.parquet"):
        write_events(tmp_path, 1_000, files=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder"):
        write_events(tmp_path / "file", 1_000)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the files it wrote; after a user error one sentence, and exits with 2."""
    assert main([str(tmp_path / "a"), "--events", "500", "--files", "2", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "a" / f"events-00{n}.csv") for n in range(2)]
    assert main([str(tmp_path / "b"), "--bad-rate", "7"]) == 2
    assert capsys.readouterr().err.startswith("error: expected bad_rate from 0.0 to 1.0, got 7.0")


def test_sample_is_what_its_command_makes(tmp_path: Path) -> None:
    """The committed sample is, byte for byte, what the command in the README makes; it is small and has all faults."""
    text = (FIXTURES / "README.md").read_text().replace("\\\n", " ")
    command = next(line for line in text.splitlines() if "fixtures.generate fixtures/sample" in line)
    program, flag, module, output, *options = shlex.split(command)
    assert (program, flag, module, output) == ("python", "-m", "fixtures.generate", "fixtures/sample")
    assert main([str(tmp_path), *options]) == 0
    sample = (FIXTURES / "sample" / "events.ndjson").read_bytes()
    assert (tmp_path / "events.ndjson").read_bytes() == sample
    assert len(sample) < 600_000
    lines = sample.decode().splitlines()
    assert len(lines) == 2_000
    found = Counter(reasons(line) for line in lines)
    assert set(found) - {None} == set(codes.REASONS) - {"conflicting_duplicate"}
    sound = [json.loads(line) for line in lines if reasons(line) is None]
    copies = Counter(row["event_id"] for row in sound)
    distinct = {json.dumps(row, sort_keys=True) for row in sound}
    assert len(copies) < len(distinct) < len(sound)
    assert {row["event_type"] for row in sound} == set(EVENT_TYPES)


def test_ids_are_one_to_one() -> None:
    """Ids of different numbers differ, negative numbers are null, and a salt makes other ids."""
    numbers = np.concatenate([np.arange(200_000), (1 << 47) + np.arange(200_000), (1 << 48) - 1 - np.arange(1_000)])
    assert np.unique(scramble(numbers, 9)).size == numbers.size
    ids = make_ids(np.array([3, -1, 4]), "e", 1)
    assert ids.null_count == 1
    assert ids[0].as_py() != make_ids(np.array([3]), "e", 2)[0].as_py()
    assert len(ids[2].as_py()) == 13
    ids.validate(full=True)
    assert make_ids(np.array([-1]), "e", 1).to_pylist() == [None]
    assert len(make_ids(np.array([], dtype=np.int64), "e", 1)) == 0


def test_delays_are_lognormal() -> None:
    """Delays have the median that was asked for, a long tail, and are never 0."""
    delays = rhythm.Dice(1).delay(20_000, 100.0) / rhythm.SECOND
    assert np.median(delays) == pytest.approx(100, rel=0.05)
    assert delays.min() > 0
    assert np.mean(delays) > 1.2 * np.median(delays)


def test_moments_move_into_the_staffed_hours() -> None:
    """Saturday's e-mail waits for Monday morning, local time; what is inside the hours stays."""
    clock = rhythm.Clock(words.make_world(1, 5), date(2026, 1, 1), 90)
    zone = ZoneInfo("Europe/Berlin")
    moments = [
        datetime(2026, 1, 10, 12, tzinfo=zone),
        datetime(2026, 1, 9, 12, tzinfo=zone),
        datetime(2026, 1, 9, 3, tzinfo=zone),
    ]
    at = np.array([int(moment.timestamp() * 1_000) for moment in moments])
    channel = np.full(3, words.EMAIL)
    moved = clock.shift_into_hours(rhythm.Dice(1), at, np.zeros(3, dtype=np.int64), channel, np.full(3, 1.0))
    local = [datetime.fromtimestamp(value / 1_000, zone) for value in moved]
    assert [(moment.day, moment.hour) for moment in local] == [(12, 8), (9, 12), (9, 8)]
    assert moved[1] == at[1]
