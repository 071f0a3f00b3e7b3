"""Random worlds for property tests: small and nasty, made so that the rare rules of the contract really are used.

A world is a shuffled list of raw NDJSON lines and the settings to run them with. Few keys, few names and few moments
make everything collide; silences fall exactly at a limit and a microsecond to either side of it.
"""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from transforms.settings import ChannelSettings, Settings

Row = dict[str, Any]

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
END_OF_TIME = 4_133_980_800 * SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

PLACES = (
    ("UTC", "2025-12-31T23:30:00"),
    ("Europe/Berlin", "2026-03-29T00:30:00"),
    ("Europe/Berlin", "2026-10-25T00:30:00"),
    ("America/New_York", "2026-03-08T06:30:00"),
    ("America/New_York", "2026-11-01T05:30:00"),
    ("America/Sao_Paulo", "2018-11-04T02:30:00"),  # midnight is skipped
    ("America/Sao_Paulo", "2018-02-18T01:30:00"),  # midnight turns back into the day before
    ("Asia/Kolkata", "2026-02-28T18:11:11"),
    ("Australia/Lord_Howe", "2026-04-04T14:30:00"),  # half an hour
    ("Australia/Lord_Howe", "2026-10-03T15:00:00"),
    ("America/Havana", "2026-03-08T04:30:00"),  # midnight is skipped
    ("America/Havana", "2026-11-01T04:30:00"),  # midnight comes twice
    ("America/St_Johns", "2006-04-02T03:00:00"),  # the clocks change one minute after midnight
    ("America/St_Johns", "2006-10-29T02:20:00"),
    ("Pacific/Apia", "2011-12-30T09:30:00"),  # a date that never was
    ("Asia/Kathmandu", "1985-12-31T18:10:00"),  # a quarter of an hour at midnight
    ("Africa/Monrovia", "1972-01-07T00:30:00"),  # an offset with seconds
    ("Pacific/Chatham", "2026-04-04T13:30:00"),
    ("Africa/Cairo", "2023-04-27T21:30:00"),
    ("America/New_York", "1970-01-01T06:00:00"),  # windows that begin before the epoch
    ("Asia/Tokyo", "2100-12-30T00:00:00"),  # the last moments there are
)

CHANNELS = ("x", "email", "whatsapp", "webchat", 'a "b"\\')
ACCOUNTS = (None, None, "acme", "acme", 'q"\\,[]', "ü\u2028")
CONVERSATION_IDS = ("c0", "c1", "12", 'a"b\\c', "tab\there\nand\x01\x7f", "ñ😀", "[null]", "null", " c0", "C0")
CUSTOMERS = ("u1", "u1", "u2", "ü3", "5", 'u"\\\b', "NULL", "u\uff5e")
EVENT_IDS = (
    *("e1", "e10", "E1", "z", "Z", "é", "e", "😀", "\uff5e", "7", "a", "a\x00", "a\x00b", "tab\t", '"', "\\"),
    *("12345678901234567890123", "long-common-prefix-of-many-bytes-1", "long-common-prefix-of-many-bytes-2", " e1"),
)
WORDS = (None, None, None, "p", "q", "P", "ñ", "12")
NASTY_TEXTS = ('line\nbreak "quoted" ☃', "", "secret \\ \u2028", '{"event_type":"message"}', 17)

TYPES = (
    "message reopened handoff assigned escalated resumed reply held note wrap_up dismissed resolved rating"
).split()

SCRIPTS = (
    # Plain work, with all that surrounds it.
    "message human resolved",
    "message assigned human wrap_up resolved rating",
    "assigned message assigned human message human resolved wrap_up",
    "message assigned assigned human human resolved rating rating",
    "message escalated assigned assigned human assigned resolved",
    "automated message human automated message resolved",
    # A customer who asks again, before, at and after the gap.
    "message gap message human gap message human",
    "message human gap message gap message human resolved",
    "note gap message",
    "automated gap message human",
    # The silence limits, and what sets them.
    "message human resolved idle note idle message",
    "message resolved reopened idle note open note",
    "message reopened idle resolved open message",
    "message human open human",
    "message human resolved message idle resolved",
    "message dismissed idle reopened message open message",
    # A pending reopening, and all its ends.
    "message human resolved message resolved",
    "message human resolved message dismissed",
    "message human resolved message human resolved",
    "message human resolved message bot reopened message resolved",
    "message human resolved reopened message human dismissed message",
    "message human resolved message message bot dismissed resolved",
    "human resolved message dismissed",
    "human dismissed message human dismissed",
    # Dismissed.
    "message dismissed message dismissed dismissed message human dismissed",
    "message dismissed resolved message resolved",
    "message dismissed reopened dismissed reopened human dismissed",
    "message human dismissed resolved message dismissed",
    # Bots, handoffs and what is due.
    "message bot message bot handoff bot gap message human",
    "message bot gap message",
    "message bot gap human",
    "message bot gap bot handoff gap message",
    "handoff message bot handoff bot resolved",
    "message handoff bot dismissed",
    "message handoff",
    "bot message bot message bot resolved",
    # Holds.
    "message held held resumed held resolved held resumed",
    "held message dismissed held reopened held human resumed resolved",
    "message held assigned dismissed",
    # Outreach.
    "human message human resolved",
    "human gap message bot",
    "automated resolved message human",
    "bot human resolved reopened note",
    "message human resolved gap human message",
    "message human resolved idle automated message human",
    "message human resolved gap message human resolved idle message",
    # Stray events.
    "open rating wrap_up",
    "open rating message human",
    "idle wrap_up open note rating message",
    "open note rating open message",
    "idle held open rating",
    "open rating note gap message human",
    "open wrap_up held gap human message",
    "open rating gap message human",
)
"""What happens in one thread: words are events, gap, idle and open are silences about as long as that limit."""

INFERENCE_SCRIPTS = (
    "message human gap note message human",
    "message human gap resolved",
    "message human gap message resolved",
    "message human gap message bot resolved message",
    "message human idle message message resolved reopened human",
    "message human held gap message assigned resolved",
    "message human gap message dismissed",
    "message human gap reopened message gap human gap message",
    "message human gap message human gap rating",
    "message human gap dismissed resolved",
    "human gap message gap human gap note",
    "message human held gap note resumed held resolved",
    "message human idle message resolved",
    "message human gap message resolved idle rating",
)
"""The same, for threads in which a silence resolves."""


def world(seed: int, debatable: bool = True) -> tuple[list[bytes], Settings]:
    """A world with bad rows of every reason.

    Args:
      seed: the same seed gives the same world.
      debatable: whether it may hold what a reader of the contract could take in two ways (see `debatable_bad_rows` and
        `written_time`).

    Returns:
      Raw NDJSON lines in no order, blank ones among them, and the settings.
    """
    lines, settings = clean_world(seed, debatable=debatable)
    rng = random.Random(f"bad rows of {seed}")
    bad = bad_rows(rng)
    if debatable:
        bad += debatable_bad_rows()
    for line, _, _ in rng.sample(bad, rng.choice((0, 2, 5, 12))):
        lines.insert(rng.randint(0, len(lines)), line)
    for blank in rng.sample((b"", b"  ", b"\r", b"\t "), rng.choice((0, 1, 3))):
        lines.insert(rng.randint(0, len(lines)), blank)
    return lines, settings


def clean_world(seed: int, duplicates: bool = True, debatable: bool = True) -> tuple[list[bytes], Settings]:
    """The world of the same seed without bad rows and blank lines.

    Args:
      seed: the same seed gives the same world.
      duplicates: whether events come twice, word for word or with other contents; without, every row is one event.
      debatable: as of `world`.

    Returns:
      Raw NDJSON lines in no order, and the settings.
    """
    rng = random.Random(seed)
    settings, start = random_settings(rng)
    rows = random_events(rng, settings, start)
    copies = random_copies(rng, rows)
    as_of = random_as_of(rng, rows + copies, settings)
    # Written out with a generator of its own, so that leaving out copies changes nothing else.
    pen = random.Random(f"written {seed}")
    lines = [written(pen, row, debatable) for row in (rows + copies if duplicates else rows)]
    pen.shuffle(lines)
    return lines, Settings(settings.default, settings.channels, settings.repeat_contact, settings.timezone, as_of)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def random_settings(rng: random.Random) -> tuple[Settings, int]:
    """Settings (as_of is still to come), and the moment near which it all begins."""
    zone, near = rng.choice(PLACES)
    start = (datetime.fromisoformat(near).replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    gap = rng.choice((600, 3_600, 3_600, 86_400)) * SECOND + rng.choice((0, 0, 0, 1, 500_001))
    max_idle = gap * rng.choice((1, 2, 3, 30)) + rng.choice((0, 0, 1))
    max_open = max_idle * rng.choice((1, 2, 4, 12)) + rng.choice((0, 0, 1))
    odds = rng.choice((0.1, 0.5))
    default = ChannelSettings(
        gap=gap,
        max_idle=max_idle,
        max_open=max_open,
        split_threads=rng.random() < odds / 2,
        infer_resolution=rng.random() < odds,
        has_life_cycle=rng.random() >= odds / 2,
    )
    if rng.random() < 0.1:
        default = ChannelSettings()
    channels = {
        channel: channel_settings(rng, default) for channel in CHANNELS if rng.random() < 0.5 * (rng.random() < 0.8)
    }
    repeat_contact = rng.choice((None, gap + 1, max_idle + 1, max_idle * 2, 3 * max_open, 1))
    return Settings(default, channels, repeat_contact, zone), start - rng.choice((0, 0, 1, 6)) * HOUR + rng.choice(
        (0, 0, 111_111, 999_999)
    )


def channel_settings(rng: random.Random, default: ChannelSettings) -> ChannelSettings:
    """What differs in one channel."""

    def often(usual: Any, *others: Any) -> Any:
        return usual if rng.random() < 0.5 else rng.choice(others)

    gap = often(default.gap, max(default.gap // 2, 1), default.gap * 2, 300 * SECOND)
    max_idle = max(gap, often(default.max_idle, default.max_idle + 1, default.max_idle * 2, default.max_idle // 2))
    max_open = max(max_idle, often(default.max_open, default.max_open + 1, default.max_open * 2, default.max_idle))
    return ChannelSettings(
        gap=gap,
        max_idle=max_idle,
        max_open=max_open,
        split_threads=often(default.split_threads, not default.split_threads),
        infer_resolution=often(default.infer_resolution, not default.infer_resolution),
        has_life_cycle=often(default.has_life_cycle, not default.has_life_cycle),
    )


def random_as_of(rng: random.Random, rows: list[Row], settings: Settings) -> int | None:
    """None, or a moment not before the last event: often at the limit of some event, or 1 us to either side of it."""
    latest: int = max(row["occurred_at"] for row in rows)
    if rng.random() < 0.4:
        return None
    last: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: int(row["occurred_at"])):
        last[row["account_id"], row["conversation_id"] or (row["channel"], row["customer_id"])] = row
    moments = []
    for row in last.values():
        s = settings.of_channel(row["channel"])
        limits = [row["occurred_at"] + limit for limit in (s.gap, s.max_idle, s.max_open)]
        moments += [at + nudge for at in limits for nudge in (0, 0, 1, -1) if at + nudge >= latest]
    choices: list[int] = [*(moments or [latest + s.max_idle + 1]), latest, latest + 1, latest + 400 * DAY]
    return rng.choice(choices)


# ---------------------------------------------------------------------------------------------------------------------
# Events


def random_events(rng: random.Random, settings: Settings, start: int) -> list[Row]:
    """Valid events of a few threads; every event_id is unique within its key."""
    budget = rng.randint(18, 88)
    rows: list[Row] = []
    threads = random_threads(rng)
    while len(rows) < budget:
        for thread in threads:
            at = start + rng.choice((0, 0, rng.randint(0, 86_400) * SECOND))
            wanted = min(rng.randint(3, 40), budget - len(rows))
            # A second visit of the same thread goes on where the first one stopped.
            rows += walk(rng, thread, settings, thread.pop("at", at), wanted)
    return rows


def random_threads(rng: random.Random) -> list[Row]:
    """A few keys that look alike: what all their events share, and what the events pick from."""
    threads: dict[Any, Row] = {}
    for _ in range(rng.choice((1, 2, 3, 5))):
        account, customer, channel = rng.choice(ACCOUNTS), rng.choice(CUSTOMERS), rng.choice(CHANNELS[:3])
        conversation = rng.choice((None, *CONVERSATION_IDS)) if rng.random() < 0.75 else None
        key = (account, conversation) if conversation else (account, channel, customer)
        threads[key] = {
            "account_id": account,
            "conversation_id": conversation,
            "channels": [channel] if conversation is None or rng.random() < 0.4 else rng.choices(CHANNELS, k=3),
            "customers": [customer] if conversation is None else [customer, customer, None, rng.choice(CUSTOMERS)],
            "event_ids": event_ids(rng),
        }
    return list(threads.values())


def event_ids(rng: random.Random) -> list[str]:
    """Enough ids for one key, in no order, all different."""
    plain = [f"e{number}{rng.choice(('', '', 'a', 'B', 'é'))}" for number in range(2, 140)]
    # The nasty ones come early (ids are taken from the end), mixed with plain ones.
    early = rng.sample(EVENT_IDS, 15) + plain[:10]
    rng.shuffle(early)
    return list(dict.fromkeys(plain[10:] + early))


def walk(rng: random.Random, thread: Row, settings: Settings, at: int, wanted: int) -> list[Row]:
    """Events of one thread, by scripts one after the other."""
    rows: list[Row] = []
    spoken_at, silence = at, None
    while len(rows) < wanted and thread["event_ids"]:
        infers = settings.of_channel(thread["channels"][0]).infer_resolution
        words = rng.choice(INFERENCE_SCRIPTS if rng.random() < (0.35 if infers else 0.05) else SCRIPTS).split()
        for place, word in enumerate(words):
            if word in ("gap", "idle", "open"):
                silence = word
                continue
            if rng.random() < 0.08:
                word = rng.choice(("note", "bot", "automated", "assigned", "rating", "reopened", "dismissed", "held"))
            if rows:
                before = rows[-1]
                s = settings.of_channel(before["channel"])
                at = next_moment(rng, silence, before["occurred_at"], spoken_at, s, settings.repeat_contact)
                # The same type at the same instant: only event_id says which came first.
                if silence is None and place and word == words[place - 1] and rng.random() < 0.5:
                    at = before["occurred_at"]
            silence = None
            if at >= END_OF_TIME or not thread["event_ids"]:
                return rows
            row = random_event(rng, thread, word)
            row["occurred_at"] = at
            rows.append(row)
            thread["at"] = at
            if word in ("message", "human", "bot"):
                spoken_at = at
        # Scripts follow at once, or after a silence.
        silence = rng.choice((None, None, "gap", "gap", "idle", "open"))
    return rows


def next_moment(
    rng: random.Random, silence: str | None, last: int, spoken: int, s: ChannelSettings, repeat_contact: int | None
) -> int:
    """When the next event happens: at a limit or right beside it where a silence is due, else soon."""
    if silence is not None or rng.random() < 0.06:
        limit = {"gap": s.gap, "idle": s.max_idle, "open": s.max_open, None: repeat_contact or s.gap}[silence]
        since = spoken if silence == "gap" and rng.random() < 0.6 else last
        at = since + limit + rng.choice((0, 0, 1, 1, 1, 2, -1, SECOND))
        if at >= last:
            return at
    soon = rng.random()
    if soon < 0.2:
        return last
    if soon < 0.25:
        return last + 1
    if soon < 0.9:
        return last + rng.choice((1, 5, 30, 30, 90)) * SECOND
    return last + rng.randint(0, s.gap)


def random_event(rng: random.Random, thread: Row, word: str) -> Row:
    """One valid event, occurred_at still to come; null where nothing is said."""
    event_type = "reply" if word in ("human", "bot", "automated") else word
    row: Row = {
        "event_id": thread["event_ids"].pop(),
        "event_type": event_type,
        "occurred_at": None,
        "channel": rng.choice(thread["channels"]),
        "account_id": thread["account_id"],
        "conversation_id": thread["conversation_id"],
        "customer_id": rng.choice(thread["customers"]),
        "author_type": None,
        "agent_id": None,
        "team_id": None,
        "is_automated": None,
        **{column: rng.choice(WORDS) for column in ("topic", "subtopic", "priority", "language", "quick_reply_id")},
        "sentiment": rng.choice((None, None, None, -1, 0, 0.0, 1, 0.531, -0.125)),
        "score": None,
        "duration_seconds": None,
    }
    if word == "message":
        row["author_type"] = rng.choice((None, None, "customer"))
    elif word == "human":
        row["author_type"] = rng.choice((None, None, "agent"))
        row["is_automated"] = rng.choice((None, None, False))
    elif word == "bot":
        row["author_type"] = "bot"
        row["is_automated"] = rng.choice((None, None, False))
    elif word == "automated":
        row["author_type"], row["is_automated"] = rng.choice(
            (("system", None), ("system", False), ("system", True), ("agent", True), ("bot", True), (None, True))
        )
    else:
        row["author_type"] = rng.choice((None, None, None, "agent", "bot", "system", "customer"))
        # On replies only: elsewhere it says nothing.
        row["is_automated"] = rng.choice((None, None, None, False, True))
    if event_type in ("reply", "assigned", "resolved", "note"):
        row["agent_id"] = rng.choice((None, "A", "A", "B", "C", "a"))
        row["team_id"] = rng.choice((None, None, "T1", "T1", "T2", "ü"))
    if word == "rating" or rng.random() < 0.05:
        row["score"] = rng.choice((1, 2, 3, 3.999999, 4, 4.0, 4.5, 5))
    if word == "wrap_up" or rng.random() < 0.05:
        row["duration_seconds"] = rng.choice((0, 0.0, 30, 12.5, 0.000001, 90.25, 86_400))
    return row


# ---------------------------------------------------------------------------------------------------------------------
# Copies


def random_copies(rng: random.Random, rows: list[Row]) -> list[Row]:
    """Copies of some events: word for word, or with other contents under the same id, and copies of those."""
    copies: list[Row] = []
    exact, conflicting = rng.choice(((0.0, 0.0), (0.1, 0.03), (0.25, 0.1)))
    for row in rows:
        if rng.random() < exact:
            copies += [dict(row) for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < conflicting:
            for _ in range(rng.choice((1, 1, 2, 3))):
                other = changed(rng, row)
                copies += [dict(other) for _ in range(rng.choice((1, 1, 2)))]
    return copies


def changed(rng: random.Random, row: Row) -> Row:
    """A valid event with the same key and event_id and one column changed (now and then to the same value again)."""
    row = dict(row)
    columns = ["topic", "language", "quick_reply_id", "sentiment", "is_automated", "agent_id", "occurred_at", "score"]
    if row["conversation_id"] is not None:
        columns += ["channel", "customer_id"]
    if row["event_type"] not in ("message", "reply", "rating", "wrap_up"):
        columns += ["event_type", "event_type", "author_type"]
    column = rng.choice(columns)
    if column == "occurred_at":
        nudged = row["occurred_at"] + rng.choice((1, -1, SECOND, -30 * SECOND))
        row["occurred_at"] = min(max(nudged, 0), END_OF_TIME - 1)
    else:
        row[column] = rng.choice(
            {
                "channel": CHANNELS,
                "customer_id": (None, *CUSTOMERS),
                # Its text ranks conflicting copies, not its place among the types.
                "event_type": ("assigned", "note", "held", "dismissed", "reopened", "escalated"),
                "author_type": (None, "agent", "bot", "customer", "system"),
                "agent_id": (None, "A", "B", "a", "ä"),
                "is_automated": (None, False, True) if row["event_type"] != "reply" else (None, False),
                "sentiment": (None, -1, -0.5, 0, 1),
                "score": (1, 3, 5) if row["event_type"] == "rating" else (None, 1, 5),
            }.get(column, (None, "a", "P", "p", "z", "ñ", "\uff5e", "😀"))
        )
    return row


# ---------------------------------------------------------------------------------------------------------------------
# How rows are written


def written(rng: random.Random, row: Row, debatable: bool = True) -> bytes:
    """One event as a line of JSON, in one of the many ways that mean the same."""
    out: Row = {}
    for column, value in row.items():
        if value is None:
            # Null, empty and absent are the same.
            how = rng.random()
            if how < 0.15:
                out[column] = None
            elif how < 0.25:
                out[column] = ""
        elif column == "occurred_at":
            out[column] = written_time(rng, value, debatable)
        elif isinstance(value, str) and value.isascii() and value.isdigit() and rng.random() < 0.5:
            # An integer where text is due is taken as text.
            out[column] = int(value)
        elif column in ("sentiment", "score", "duration_seconds") and rng.random() < 0.3:
            out[column] = float(value)
        else:
            out[column] = value
    if rng.random() < 0.3:
        out["text"] = rng.choice(NASTY_TEXTS)
    if rng.random() < 0.1:
        out["utm_source"] = rng.choice(("extra", 7, None, {"deep": [1, {"event_type": "message"}]}))
    columns = list(out)
    if rng.random() < 0.5:
        rng.shuffle(columns)
    separators = rng.choice(((",", ":"), (", ", ": "), (" , ", " : ")))
    text = json.dumps({c: out[c] for c in columns}, ensure_ascii=rng.random() < 0.5, separators=separators)
    return text.encode("utf-8") + rng.choice((b"", b"", b"", b" ", b"\r"))


def written_time(rng: random.Random, at: int, debatable: bool = True) -> Any:
    """One moment as ISO 8601 text with some offset, or as epoch milliseconds."""
    how = rng.random()
    if at % 1_000 == 0 and how < 0.2:
        return at // 1_000 if how < 0.15 else at / 1_000
    if at % 125 == 0 and how < 0.4:
        # Eighths of a millisecond are exact in binary.
        return at / 1_000
    if debatable and how < 0.05:
        # Thousandths are not: 1772409600000.001 is a microsecond more than 1772409600000 all the same.
        return at / 1_000
    offset = rng.choice((0, 0, 0, 60, 330, 765, -60, -570, -1_439, 840))
    local = EPOCH + timedelta(microseconds=at, minutes=offset)
    text = local.strftime("%Y-%m-%d") + rng.choice("TTT ") + local.strftime("%H:%M")
    fraction = f"{local.microsecond:06d}"
    if local.microsecond or local.second or rng.random() < 0.5:
        text += local.strftime(":%S")
        if local.microsecond or rng.random() < 0.5:
            shown = fraction if rng.random() < 0.5 else fraction.rstrip("0") or "0"
            # Finer than a microsecond is cut off.
            text += "." + (fraction + rng.choice(("9", "999", "000", "9999999999")) if rng.random() < 0.1 else shown)
    if offset == 0 and rng.random() < 0.8:
        return text + "Z"
    hours, minutes = divmod(abs(offset), 60)
    colon = "" if debatable and rng.random() < 0.05 else ":"
    return text + ("-" if offset < 0 else "+") + f"{hours:02d}{colon}{minutes:02d}"


# ---------------------------------------------------------------------------------------------------------------------
# Bad rows


def bad_rows(rng: random.Random) -> list[tuple[bytes, str, str | None]]:
    """One row or more for every reason (conflicting_duplicate apart), in keys that the world may have as well.

    Args:
      rng: where the rest of each row comes from.

    Returns:
      (raw line, reason, column or None) of each.
    """
    good = {
        "event_id": "ok",
        "event_type": "note",
        "occurred_at": "2026-01-01T00:00:00Z",
        "channel": rng.choice(CHANNELS),
        "account_id": rng.choice(ACCOUNTS),
        "conversation_id": rng.choice(CONVERSATION_IDS),
        "customer_id": "u1",
        "text": "secret",
    }
    changes: list[tuple[Row, str, str]] = [
        ({"event_id": None}, "missing", "event_id"),
        ({"event_id": ""}, "missing", "event_id"),
        ({"event_id": True}, "wrong_type", "event_id"),
        ({"event_id": 7.0}, "wrong_type", "event_id"),
        ({"event_id": 7.5, "event_type": "shout"}, "wrong_type", "event_id"),
        ({"event_type": None, "occurred_at": None}, "missing", "event_type"),
        ({"event_type": 7}, "unknown_event_type", "event_type"),
        ({"event_type": "Message"}, "unknown_event_type", "event_type"),
        ({"event_type": " message", "author_type": "robot"}, "unknown_event_type", "event_type"),
        ({"event_type": ["message"]}, "wrong_type", "event_type"),
        ({"occurred_at": None}, "missing", "occurred_at"),
        ({"occurred_at": ""}, "missing", "occurred_at"),
        ({"occurred_at": True}, "wrong_type", "occurred_at"),
        ({"occurred_at": {}}, "wrong_type", "occurred_at"),
        ({"occurred_at": "2026-01-01"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01T00:00:00"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-02-30T00:00:00Z"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01T00:00:00+25:00"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01T24:30:00Z", "channel": None}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01T00:60:00Z"}, "bad_time", "occurred_at"),
        ({"occurred_at": " 2026-01-01T00:00:00Z"}, "bad_time", "occurred_at"),
        ({"occurred_at": "1772409600000"}, "bad_time", "occurred_at"),
        ({"occurred_at": "yesterday"}, "bad_time", "occurred_at"),
        ({"occurred_at": "NaN"}, "bad_time", "occurred_at"),
        ({"occurred_at": -1}, "out_of_range", "occurred_at"),
        ({"occurred_at": "1969-12-31T23:59:59.999999Z"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "1970-01-01T00:30:00+01:00"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "2101-01-01T00:00:00Z"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "9999-12-31T23:59:59-23:59"}, "out_of_range", "occurred_at"),
        ({"occurred_at": 4_133_980_800_000}, "out_of_range", "occurred_at"),
        ({"occurred_at": 10**18}, "out_of_range", "occurred_at"),
        ({"occurred_at": 10**30}, "out_of_range", "occurred_at"),
        ({"channel": None}, "missing", "channel"),
        ({"channel": ""}, "missing", "channel"),
        ({"channel": False}, "wrong_type", "channel"),
        ({"account_id": 1.5}, "wrong_type", "account_id"),
        ({"account_id": {"a": 1}}, "wrong_type", "account_id"),
        ({"conversation_id": ["c0"]}, "wrong_type", "conversation_id"),
        ({"conversation_id": None, "customer_id": None}, "missing", "customer_id"),
        ({"conversation_id": "", "customer_id": "", "score": "5"}, "missing", "customer_id"),
        ({"customer_id": 0.0}, "wrong_type", "customer_id"),
        ({"author_type": "robot"}, "unknown_author_type", "author_type"),
        ({"author_type": 7, "sentiment": 9}, "unknown_author_type", "author_type"),
        ({"author_type": "Agent"}, "unknown_author_type", "author_type"),
        ({"author_type": True}, "wrong_type", "author_type"),
        ({"event_type": "message", "author_type": "agent"}, "author_type_not_allowed", "author_type"),
        ({"event_type": "message", "author_type": "bot"}, "author_type_not_allowed", "author_type"),
        ({"event_type": "reply", "author_type": "customer"}, "author_type_not_allowed", "author_type"),
        ({"event_type": "message", "author_type": "robot"}, "unknown_author_type", "author_type"),
        ({"agent_id": [1]}, "wrong_type", "agent_id"),
        ({"team_id": False}, "wrong_type", "team_id"),
        ({"is_automated": 1}, "wrong_type", "is_automated"),
        ({"is_automated": 0}, "wrong_type", "is_automated"),
        ({"is_automated": "yes"}, "wrong_type", "is_automated"),
        ({"is_automated": "true", "sentiment": 2}, "wrong_type", "is_automated"),
        ({"topic": ["a"]}, "wrong_type", "topic"),
        ({"topic": 1.0}, "wrong_type", "topic"),
        ({"language": {}}, "wrong_type", "language"),
        ({"quick_reply_id": 12.5}, "wrong_type", "quick_reply_id"),
        ({"sentiment": "good"}, "wrong_type", "sentiment"),
        ({"sentiment": "0.5"}, "wrong_type", "sentiment"),
        ({"sentiment": True}, "wrong_type", "sentiment"),
        ({"sentiment": 1.01}, "out_of_range", "sentiment"),
        ({"sentiment": -2, "score": 9}, "out_of_range", "sentiment"),
        ({"event_type": "rating"}, "missing", "score"),
        ({"event_type": "rating", "score": ""}, "missing", "score"),
        ({"event_type": "rating", "score": 0.99}, "out_of_range", "score"),
        ({"score": 5.5}, "out_of_range", "score"),
        ({"score": "5"}, "wrong_type", "score"),
        ({"event_type": "wrap_up"}, "missing", "duration_seconds"),
        ({"event_type": "wrap_up", "duration_seconds": None}, "missing", "duration_seconds"),
        ({"duration_seconds": -0.5}, "out_of_range", "duration_seconds"),
        ({"duration_seconds": 1e300}, "out_of_range", "duration_seconds"),
        ({"event_type": "wrap_up", "duration_seconds": "60"}, "wrong_type", "duration_seconds"),
        ({"text": ["a"]}, "wrong_type", "text"),
        ({"text": 1.5}, "wrong_type", "text"),
    ]
    found: list[tuple[bytes, str, str | None]] = [
        (json.dumps(good | change, ensure_ascii=rng.random() < 0.5).encode("utf-8"), reason, column)
        for change, reason, column in changes
    ]
    line = json.dumps(good).encode("utf-8")
    unreadable = (b"{", b"nul", b"null", b"17", b"[1]", b'"text"', b"\xff", b"true", line[:-1], line + line, b"{},{}")
    found += [(bad, "unreadable", None) for bad in unreadable]
    found += [(bad, "unreadable", None) for bad in (line.replace(b"u1", b"u\xe4"), b"{" + b"x" * 1_500)]
    found += [(bad, "unreadable", None) for bad in (line.replace(b'"', b"'"), b'{"event_id": "a", "event_id": }')]
    # A raw control character in a string is no JSON; an object without any column lacks the first.
    found += [(line.replace(b"secret", b"a\x01b"), "unreadable", None), (b"{}", "missing", "event_id")]
    return found


def debatable_bad_rows() -> list[tuple[bytes, str, str | None]]:
    """Bad rows whose reason could be argued about: NaN and infinity are no JSON but have a reason of their own.

    Returns:
      (raw line, reason, column or None) of each, as the reference takes them.
    """
    row = {"event_id": "ok", "event_type": "note", "occurred_at": "2026-01-01T00:00:00Z", "channel": "x"}
    row["conversation_id"] = "c0"
    numbers = (math.nan, math.inf, -math.inf)
    found: list[tuple[bytes, str, str | None]] = [
        (json.dumps(row | {"sentiment": number}).encode("utf-8"), "out_of_range", "sentiment") for number in numbers
    ]
    found.append((json.dumps(row | {"occurred_at": math.nan}).encode("utf-8"), "out_of_range", "occurred_at"))
    text = json.dumps(row)
    found.append((text.replace('"c0"', '"c0", "score": 1e999').encode("utf-8"), "out_of_range", "score"))
    # Half a surrogate pair is no text.
    found.append((text.replace('"c0"', '"\\ud800"').encode("utf-8"), "unreadable", None))
    return found
