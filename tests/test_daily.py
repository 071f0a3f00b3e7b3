"""The run of a day: catches up, is safe to run twice and to kill, and tells a scheduler how it ended."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest
import urllib3

import pipelines.daily.delivery as delivery
from pipelines.batch import run
from pipelines.cli import main
from pipelines.daily.days import MOST_DAYS, Inputs, days_to_do, parse_range
from pipelines.daily.delivery import Mail, Message, NotDelivered, WebHook
from pipelines.daily.state import FOLDER, KEPT, STATE, Day, State, load_state, locked
from pipelines.options import BatchOptions
from sinks.publish import current_snapshot, open_snapshot
from transforms.errors import UserError
from transforms.settings import Settings

D1 = date(2026, 1, 5)
HOUR = 3_600_000_000


def day(number: int) -> date:
    """A day of the world, from 1."""
    return D1 + timedelta(days=number - 1)


def export(folder: Path, number: int, count: int = 4, name: str = "") -> Path:
    """The file of a day: conversations with an answer each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place in range(count):
        at = datetime.combine(day(number), datetime.min.time(), UTC) + timedelta(hours=8, minutes=place)
        shared = {"channel": "email", "conversation_id": f"{name}{number}-{place}"}
        for event_id, kind, when in (("1", "message", at), ("2", "reply", at + timedelta(minutes=5))):
            event = {"event_id": event_id, "event_type": kind, "occurred_at": when.isoformat(), **shared}
            lines.append(json.dumps(event))
    path = folder / f"{day(number)}{name}.ndjson"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def arguments(folder: Path, number: int | None, *more: str, dated: bool = True, audit: bool = False) -> list[str]:
    """A command line; without an audit, which takes long, unless asked for."""
    pattern = str(folder / "export" / "{date}*") if dated else str(folder / "export")
    named = [] if number is None else ["--date", day(number).isoformat()]
    places = ["--output", str(folder / "output"), "--reports", str(folder / "reports")]
    return ["daily", "--input", pattern, *places, *named, *([] if audit else ["--no-audit"]), *more]


def daily(folder: Path, number: int | None, *more: str, dated: bool = True, audit: bool = False) -> int:
    """Runs a day."""
    return main(arguments(folder, number, *more, dated=dated, audit=audit))


def commits(folder: Path) -> list[tuple[Any, ...]]:
    """Commit, as_of and rows read of each run."""
    with duckdb.connect(str(folder / "output" / "care.duckdb"), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        return warehouse.sql("SELECT commit_id, as_of::VARCHAR, rows_read_count FROM runs ORDER BY 1").fetchall()


def tables_of(output: Path) -> dict[str, list[Any]]:
    """The rows of the tables, without what commits add to them."""
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        return {
            table: warehouse.sql(f"SELECT * {without} FROM {table} ORDER BY ALL").fetchall()
            for table, without in (
                ("conversations", ""),
                ("turns", ""),
                ("kpi_statistics", ""),
                ("kpis", "EXCLUDE (revision, changed_at)"),
            )
        }


def reported(folder: Path) -> list[str]:
    """The days that have a report."""
    return sorted(path.stem.removeprefix("care-kpis-") for path in (folder / "reports").glob("*.html"))


# Days


@pytest.mark.parametrize(
    ("number", "last", "missing", "expected"),
    [
        (3, None, [], [3]),
        (3, 2, [], [3]),
        (3, 3, [], [3]),
        (6, 3, [], [4, 5, 6]),
        (6, 5, [2, 4], [2, 4, 6]),
        (2, 5, [3], [2]),
    ],
)
def test_which_days_a_run_is_about(number: int, last: int | None, missing: list[int], expected: list[int]) -> None:
    """The day itself, those missed since the last one, and those that had no files; a day gone by is alone."""
    known = None if last is None else day(last)
    assert days_to_do(day(number), known, [day(one) for one in missing]) == ([day(one) for one in expected], [])


def test_a_long_gap_is_not_caught_up_with() -> None:
    """What is too long ago is named."""
    days, given_up = days_to_do(day(60), day(10), [day(9)])
    assert (days[0], days[-1], len(days)) == (day(60 - MOST_DAYS), day(60), MOST_DAYS + 1)
    assert (given_up[0], given_up[-1]) == (day(9), day(60 - MOST_DAYS - 1))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("{date}*", "2026-01-05-a"), ("{date:%Y%m%d}.x", "20260105.x"), ("{date:%Y}/{date:%m}/*", "2026/01/a")],
)
def test_a_pattern_names_the_day(pattern: str, name: str, tmp_path: Path) -> None:
    """As ISO date, or in any form."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    inputs = Inputs((str(tmp_path / pattern),))
    assert inputs.is_dated and len(inputs.of(D1)) == 1
    assert inputs.of(date(2027, 2, 1)) == ()


@pytest.mark.parametrize("pattern", ["{date}{hour}", "{date!x}", "{date", "{date.__class__}/{x}"])
def test_a_pattern_with_other_braces_is_refused(pattern: str) -> None:
    """Nothing could be put in for them."""
    with pytest.raises(UserError, match=r"--input: expected \{date\}"):
        Inputs((pattern,))


def test_a_folder_has_files_or_not(tmp_path: Path) -> None:
    """Hidden files, and folders in folders without any, are none."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".hidden").touch()
    inputs = Inputs((str(tmp_path),))
    assert not inputs.is_dated and inputs.of(D1) == ()
    (tmp_path / "sub" / "a").touch()
    assert inputs.of(D1) == (str(tmp_path),)


@pytest.mark.parametrize("text", ["2026-01-05", "2026-01-06..2026-01-05", "a..b", "..", "2026-01-05..2026-02-30"])
def test_a_range_of_days_is_checked(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said in one sentence, with exit code 2."""
    with pytest.raises(ValueError):
        parse_range(text)
    assert daily(tmp_path, None, "--backfill", text) == 2
    assert "expected two days such as 2026-01-01..2026-01-14" in capsys.readouterr().err


# State and lock


def test_the_state_is_what_was_saved_and_bounded(tmp_path: Path) -> None:
    """The oldest days are forgotten."""
    with locked(tmp_path):
        state = State({day(number): Day(number, ["mail"], ["web_hook"]) for number in range(1, KEPT + 11)})
        state.save(tmp_path)
    loaded = load_state(tmp_path)
    assert len(loaded.days) == KEPT and loaded.last == day(KEPT + 10)
    assert loaded.days[day(11)] == Day(11, ["mail"], ["web_hook"])
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["lock", STATE]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 9, "days": {}}', '{"version": 1, "days": {"x": {}}}'])
def test_a_damaged_state_is_told(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to do about it."""
    folder = tmp_path / "output" / FOLDER
    folder.mkdir(parents=True)
    (folder / STATE).write_text(text)
    assert daily(tmp_path, 1) == 2
    assert "remove it" in capsys.readouterr().err


def test_a_second_run_of_a_day_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a code of its own; also where another command is writing to the result."""
    export(tmp_path / "export", 1)
    with locked(tmp_path / "output"):
        assert daily(tmp_path, 1) == 4
    assert f"process {os.getpid()} is at it" in capsys.readouterr().err
    with open_snapshot(tmp_path / "output"):
        assert daily(tmp_path, 1) == 4
    assert "is writing to it" in capsys.readouterr().err
    assert daily(tmp_path, 1) == 0


# Runs


def test_a_day_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second time nothing is new, and every file has the same bytes."""
    export(tmp_path / "export", 1)
    export(tmp_path / "export", 2)
    assert daily(tmp_path, 1) == 0
    assert commits(tmp_path) == [(1, "2026-01-06 00:00:00+00", 8)]
    assert reported(tmp_path) == ["2026-01-05"]
    before = {path: path.read_bytes() for path in (tmp_path / "reports").iterdir()}
    state = (tmp_path / "output" / FOLDER / STATE).read_bytes()
    capsys.readouterr()
    assert daily(tmp_path, 1) == 0
    assert "nothing was new" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "reports").iterdir()} == before
    assert (tmp_path / "output" / FOLDER / STATE).read_bytes() == state
    assert len(commits(tmp_path)) == 1


def test_missed_days_and_late_files_are_made_up_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A day without files is told and tried again; the result is that of one run over everything."""
    for number in (1, 3, 5):
        export(tmp_path / "export", number)
    assert daily(tmp_path, 1) == 0
    assert daily(tmp_path, 4) == 0
    assert f"No files for {day(2)}" in capsys.readouterr().out
    assert reported(tmp_path) == [str(day(1)), str(day(3))]
    assert commits(tmp_path)[-1] == (2, "2026-01-08 00:00:00+00", 8)
    export(tmp_path / "export", 2)
    assert daily(tmp_path, 5) == 0
    assert reported(tmp_path) == [str(day(number)) for number in (1, 2, 3, 5)]
    assert load_state(tmp_path / "output").missing == [day(4)]
    files = tuple(str(path) for path in (tmp_path / "export").iterdir())
    as_of = Settings(as_of=int(datetime(2026, 1, 10, tzinfo=UTC).timestamp()) * 1_000_000)
    run(BatchOptions(files, tmp_path / "whole", as_of))
    assert tables_of(tmp_path / "output") == tables_of(tmp_path / "whole")


def test_another_file_of_a_day_that_was_done(tmp_path: Path) -> None:
    """It is taken by the next run, and told as restated; the day's own report stays."""
    for number in (1, 2):
        export(tmp_path / "export", number)
    assert daily(tmp_path, 1) == 0
    export(tmp_path / "export", 1, count=3, name="more")
    assert daily(tmp_path, 2) == 0
    assert [row[2] for row in commits(tmp_path)] == [8, 14]
    assert "1 windows" in (tmp_path / "reports" / f"care-kpis-{day(2)}.txt").read_text()
    assert "Conversations: 4" in (tmp_path / "reports" / f"care-kpis-{day(1)}.txt").read_text()


def test_time_does_not_go_back(tmp_path: Path) -> None:
    """An earlier day, made up for later, is added as of the latest day; a file's later events move time on."""
    for number in (1, 2):
        export(tmp_path / "export", number)
    late = {"event_id": "9", "event_type": "message", "occurred_at": "2026-01-08T03:00:00Z", "channel": "x"}
    with (tmp_path / "export" / f"{day(2)}.ndjson").open("a") as file:
        file.write(json.dumps({**late, "conversation_id": "late"}) + "\n")
    assert daily(tmp_path, 2) == 0
    assert daily(tmp_path, 1) == 0
    assert [row[1] for row in commits(tmp_path)] == ["2026-01-08 03:00:00+00"] * 2
    assert reported(tmp_path) == [str(day(1)), str(day(2))]


def test_a_folder_without_dates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All new files are taken; a day is reported once the result reaches its end."""
    export(tmp_path / "export", 1)
    assert daily(tmp_path, 1, dated=False) == 0
    assert daily(tmp_path, 2, dated=False) == 0
    assert f"No files for {day(2)}" in capsys.readouterr().out
    export(tmp_path / "export", 2)
    export(tmp_path / "export", 3)
    assert daily(tmp_path, 3, dated=False) == 0
    assert reported(tmp_path) == [str(day(number)) for number in (1, 2, 3)]


def test_quiet_days_with_the_same_empty_file(tmp_path: Path) -> None:
    """Their content is one and the same; time passes all the same."""
    export(tmp_path / "export", 1)
    for number in (2, 3):
        (tmp_path / "export" / f"{day(number)}.csv").write_text("event_id,event_type,occurred_at,channel\n")
    for number in (1, 2, 3, 3):
        assert daily(tmp_path, number) == 0
    assert [row[1] for row in commits(tmp_path)] == [f"2026-01-0{number} 00:00:00+00" for number in (6, 7, 8)]
    assert "is not complete" not in (tmp_path / "reports" / f"care-kpis-{day(3)}.txt").read_text()


def test_a_backfill(tmp_path: Path) -> None:
    """One run over all of it, a report for each day, and the next day goes on from there; nothing is delivered."""
    for number in (1, 2, 3, 4):
        export(tmp_path / "export", number)
    with hook() as posts:
        more = ["--backfill", f"{day(1)}..{day(3)}", "--web-hook-file", address(tmp_path, posts)]
        assert daily(tmp_path, None, *more) == 0
        assert (reported(tmp_path), posts.bodies) == ([str(day(number)) for number in (1, 2, 3)], [])
        assert daily(tmp_path, 4, *more[2:]) == 0
        assert [post["day"] for post in posts.bodies] == [str(day(4))]
    assert [row[2] for row in commits(tmp_path)] == [24, 8]


def test_what_is_asked_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A day that is not over, two kinds of days, no files where they are required."""
    today = datetime.now(UTC).date()
    wrong = [["--date", str(today)], ["--date", str(D1), "--backfill", f"{D1}..{D1}"]]
    for more, words in zip(wrong, ("Expected a day that is over", "got both"), strict=True):
        assert daily(tmp_path, None, *more) == 2
        assert words in capsys.readouterr().err
    assert daily(tmp_path, 1) == 0
    assert f"No files for {D1}" in capsys.readouterr().out
    assert daily(tmp_path, 1, "--require-files") == 6
    assert current_snapshot(tmp_path / "output") is None


def test_the_day_is_yesterday(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the zone of the settings."""
    assert daily(tmp_path, None, "--timezone", "Pacific/Kiritimati") == 0
    yesterday = (datetime.now(UTC) + timedelta(hours=14)).date() - timedelta(days=1)
    assert f"No files for {yesterday}" in capsys.readouterr().out


def test_an_audit_that_fails_ends_the_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, no report, nothing delivered; the next run does the day."""
    from test_audit import broken_build

    export(tmp_path / "export", 1)
    with hook() as posts:
        more = ["--web-hook-file", address(tmp_path, posts)]
        with monkeypatch.context() as patch:
            broken_build(patch)
            assert daily(tmp_path, 1, *more, audit=True) == 3
        assert "kpis: message_count (range) (4)" in capsys.readouterr().err
        assert (reported(tmp_path), posts.bodies) == ([], [])
        assert daily(tmp_path, 1, *more, audit=True) == 0
        assert [post["audit"] for post in posts.bodies] == ["passed"]
    assert reported(tmp_path) == [str(D1)]


# Delivery


class Posts:
    """A web hook: what it got, and how it answers."""

    def __init__(self) -> None:
        """Answers 200 unless told otherwise."""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[int] = []
        self.kill: subprocess.Popen[str] | None = None
        self.port = 0


@contextmanager
def hook() -> Iterator[Posts]:
    """A web server of this test."""
    posts = Posts()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.bodies.append(json.loads(body))
            posts.headers.append(dict(self.headers))
            if posts.kill is not None:
                posts.kill.kill()
                return
            self.send_response(posts.answers.pop(0) if posts.answers else 200)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    posts.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield posts
    finally:
        server.shutdown()
        server.server_close()


def address(folder: Path, posts: Posts) -> str:
    """A file with the address of a web hook."""
    path = folder / "hook"
    path.write_text(f"http://127.0.0.1:{posts.port}/services/s3cret\n")
    return str(path)


class Mails:
    """A mail server: what it got, and what it answers to RCPT."""

    def __init__(self) -> None:
        """Takes everything unless told otherwise."""
        self.got: list[EmailMessage] = []
        self.to: list[list[str]] = []
        self.answers: list[str] = []
        self.logins: list[str] = []
        self.tls: ssl.SSLContext | None = None
        self.port = 0


@contextmanager
def mail_server() -> Iterator[Mails]:
    """A small SMTP server (RFC 5321) of this test."""
    mails = Mails()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            to: list[str] = []
            while line := self.rfile.readline():
                word = line.split()[0].upper().decode() if line.split() else ""
                if word == "RCPT":
                    answer = mails.answers.pop(0) if mails.answers else "250 ok"
                    to.append(line.decode().partition("<")[2].partition(">")[0])
                    self.say(answer)
                elif word == "DATA":
                    self.say("354 go on")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    content = b"".join(one[1:] if one.startswith(b".") else one for one in lines)
                    message = message_from_bytes(content, policy=policy.default)
                    assert isinstance(message, EmailMessage)
                    mails.got.append(message)
                    mails.to.append(to)
                    self.say("250 taken")
                elif word == "EHLO" and mails.tls is not None:
                    self.say("250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN")
                elif word == "STARTTLS" and mails.tls is not None:
                    self.say("220 go on")
                    try:
                        self.connection = mails.tls.wrap_socket(self.connection, server_side=True)
                    except (ssl.SSLError, OSError):
                        return
                    self.rfile = self.connection.makefile("rb")
                    self.wfile = self.connection.makefile("wb", buffering=0)
                elif word == "AUTH":
                    mails.logins.append(base64.b64decode(line.split()[2]).decode())
                    self.say("235 welcome")
                elif word == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    mails.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield mails
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, three times, and has no settings of the machine."""
    quick = delivery.RETRY.new(total=3, backoff_factor=0)
    monkeypatch.setattr(delivery, "RETRY", quick)
    for name in [name for name in os.environ if name.startswith("CARE_KPIS_")]:
        monkeypatch.delenv(name)


def message(folder: Path, title: str = "Report") -> Message:
    """Something to deliver."""
    files = [folder / "a.csv", folder / "a.xlsx", folder / "a.html"]
    for file in files:
        file.write_bytes(b"<p>hi</p>")
    return Message(D1, title, "Ümläute\n.dot\n", files, 7, "passed")


def mail_to(mails: Mails, *to: str) -> Mail:
    """A way by the mail server of the test."""
    return Mail(to or ("a@example.com",), "kpis@example.com", "127.0.0.1", mails.port, "none")


def test_mail_brings_text_page_and_workbook(tmp_path: Path) -> None:
    """To all addresses at once; the same report has the same id; a title cannot become a header."""
    with mail_server() as mails:
        for _ in range(2):
            mail_to(mails, "a@example.com", "b@example.com").send(message(tmp_path, "Report\nBcc: evil@example.com"))
    first, second = mails.got
    assert mails.to == [["a@example.com", "b@example.com"]] * 2
    assert first["Subject"] == "Report Bcc: evil@example.com" and first["Bcc"] is None
    assert first["Message-ID"] == second["Message-ID"]
    body = first.get_body()
    assert body is not None and body.get_content().splitlines() == ["Ümläute", ".dot"]
    assert [part.get_filename() for part in first.iter_attachments()] == ["a.xlsx", "a.html"]


def test_mail_is_tried_again(tmp_path: Path) -> None:
    """After what may pass, not after what will not."""
    with mail_server() as mails:
        mails.answers = ["451 later", "421 busy"]
        mail_to(mails).send(message(tmp_path))
        assert len(mails.got) == 1
        mails.answers = ["451 later"] * 9
        with pytest.raises(NotDelivered, match=r"refuses a@example.com, 3 times again"):
            mail_to(mails).send(message(tmp_path))
        assert len(mails.answers) == 5
        mails.answers = ["550 no such user"]
        with pytest.raises(NotDelivered, match=r"refuses a@example.com$"):
            mail_to(mails).send(message(tmp_path))
        mails.answers = []
        with pytest.raises(NotDelivered, match="STARTTLS"):
            Mail(("a@example.com",), "k@example.com", "127.0.0.1", mails.port).send(message(tmp_path))
    with pytest.raises(NotDelivered, match="cannot be used"):
        mail_to(mails).send(message(tmp_path))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes a certificate, is not installed")
def test_mail_over_an_encrypted_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a login; a certificate that nobody vouches for ends it before the password is sent."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2 -keyout {key} -out {certificate}"
    subprocess.run([*made.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with mail_server() as mails:
        mails.tls = context
        mail = Mail(("a@example.com",), "k@example.com", "localhost", mails.port, "starttls", "user", "s3cret")
        with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED") as told:
            mail.send(message(tmp_path))
        assert "s3cret" not in str(told.value) and (mails.logins, mails.got) == ([], [])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        mail.send(message(tmp_path))
    assert mails.logins == ["\0user\0s3cret"] and len(mails.got) == 1


def test_a_password_is_not_sent_in_the_clear() -> None:
    """Nor are addresses taken that would be more headers."""
    with pytest.raises(UserError, match="encrypted"):
        Mail(("a@example.com",), "k@example.com", "mail.example.com", 25, "none", "user", "word")
    with pytest.raises(UserError, match="mail address"):
        Mail(("a@example.com\nBcc: b@example.com",), "k@example.com", "localhost", 25)


def test_a_web_hook_gets_a_small_object(tmp_path: Path) -> None:
    """With text, day, verdict and paths, and the token."""
    with hook() as posts:
        posts.answers = [503, 429]
        WebHook(f"http://127.0.0.1:{posts.port}/services/s3cret", "t0ken").send(message(tmp_path))
    assert len(posts.bodies) == 3
    body = posts.bodies[-1]
    assert body.pop("text") == "Ümläute\n.dot\n"
    files = [str(tmp_path / name) for name in ("a.csv", "a.xlsx", "a.html")]
    assert body == {
        "id": "care-kpis-2026-01-05",
        "day": "2026-01-05",
        "title": "Report",
        "commit_id": 7,
        "audit": "passed",
        "files": files,
    }
    assert posts.headers[-1]["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(("answers", "count"), [([503] * 9, 4), ([404], 1), ([302], 1)])
def test_a_web_hook_that_refuses(
    answers: Sequence[int], count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No secret of the address is in the error, nor in the log; it is not followed elsewhere."""
    caplog.set_level(logging.DEBUG)
    with hook() as posts:
        posts.answers = list(answers)
        with pytest.raises(NotDelivered) as told:
            WebHook(f"http://127.0.0.1:{posts.port}/services/s3cret").send(message(tmp_path))
    assert len(posts.bodies) == count
    assert str(told.value).startswith("http://127.0.0.1") and "s3cret" not in str(told.value) + caplog.text


def test_a_web_hook_that_is_not_there(tmp_path: Path) -> None:
    """Neither is the address told."""
    with hook() as posts:
        pass
    with pytest.raises(NotDelivered, match="does not answer") as told:
        WebHook(f"http://127.0.0.1:{posts.port}/services/s3cret").send(message(tmp_path))
    assert "s3cret" not in str(told.value)
    with pytest.raises(UserError, match="--web-hook"):
        WebHook("s3cret.example.com")


def test_nothing_is_delivered_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could not be delivered is owed; the next run, of the next day too, delivers that and nothing else."""
    for number in (1, 2):
        export(tmp_path / "export", number)
    with hook() as posts, mail_server() as mails:
        settings = tmp_path / "delivery.toml"
        settings.write_text(
            f'mail_to = ["a@example.com"]\nmail_from = "k@example.com"\nsmtp_host = "127.0.0.1"\n'
            f'smtp_port = {mails.port}\nsmtp_security = "none"\n'
        )
        monkeypatch.setenv("CARE_KPIS_WEB_HOOK", f"http://127.0.0.1:{posts.port}/services/s3cret")
        more = ["--delivery", str(settings)]
        posts.answers = [500] * 4
        assert daily(tmp_path, 1, *more) == 5
        said = capsys.readouterr()
        assert "web hook of 2026-01-05: http://127.0.0.1" in said.err and "s3cret" not in said.out + said.err
        assert reported(tmp_path) == [str(D1)] and len(mails.got) == 1
        assert daily(tmp_path, 2, *more) == 0
        assert daily(tmp_path, 2, *more) == 0
    assert [str(mail["Subject"]) for mail in mails.got] == [f"Customer care report: {day(n)}" for n in (1, 2)]
    assert [post["day"] for post in posts.bodies] == [str(day(n)) for n in (1, 1, 1, 1, 1, 2)]
    assert posts.bodies[-1]["text"].startswith("Customer care report\n")
    assert load_state(tmp_path / "output").days[day(1)].delivered == ["mail", "web_hook"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("mail_too = 1", "mail_too: there is no such setting; did you mean mail_to?"),
        ('smtp_password = "x"', "smtp_password: there is no such setting; did you mean smtp_password_file?"),
        ("[smtp_host]", "smtp_host: expected text or a number, got a table"),
        ("=", "expected a readable TOML file"),
        ('mail_to = "a@example.com"', "Expected --mail-from beside --mail-to"),
        ('mail_to = "a@example.com"\nmail_from = "k@example.com"\nsmtp_user = "u"', "Expected a password"),
        ('mail_to = "a@example.com"\nmail_from = "k@example.com"\nsmtp_port = 0', "'--smtp-port': 0 is not in"),
        ('web_hook_file = "/nowhere"', "--web-hook-file: expected a readable text file"),
    ],
)
def test_wrong_settings_of_delivery(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is run."""
    (tmp_path / "delivery.toml").write_text(content)
    assert daily(tmp_path, 1, "--delivery", str(tmp_path / "delivery.toml")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_the_command_line_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the environment, then the file; passwords come from a file or the environment."""
    seen: list[Mail] = []
    monkeypatch.setattr(delivery.Mail, "send", lambda self, message: seen.append(self))
    export(tmp_path / "export", 1)
    (tmp_path / "word").write_text("from file\n")
    (tmp_path / "delivery.toml").write_text(
        'mail_to = "f@example.com"\nmail_from = "f@example.com"\nsmtp_host = "file"\nsmtp_user = "u"\n'
        f'smtp_security = "tls"\nsmtp_password_file = "{tmp_path / "word"}"\n'
    )
    monkeypatch.setenv("CARE_KPIS_MAIL_FROM", "e@example.com")
    monkeypatch.setenv("CARE_KPIS_SMTP_HOST", "environment")
    monkeypatch.setenv("CARE_KPIS_SMTP_PASSWORD", "from environment")
    more = ["--delivery", str(tmp_path / "delivery.toml"), "--smtp-host", "option"]
    assert daily(tmp_path, 1, *more) == 0
    assert seen == [Mail(("f@example.com",), "e@example.com", "option", 465, "tls", "u", "from file")]


# Killed


def start(folder: Path, *more: str, before: str = "") -> subprocess.Popen[str]:
    """A run of the first day in a process of its own."""
    asked = arguments(folder, 1, *more)
    code = f"import os, signal, sys\n{before}\nfrom pipelines.cli import main\nsys.exit(main({asked!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    "before",
    [
        f"import pipelines.commit as m; m.build_warehouse = lambda *a, **b: {DIE}",
        f"import pipelines.report.build as m; m.write_report = lambda *a, **b: {DIE}",
        f"import pipelines.report.files as m, pipelines.report.build as b; b.write_files = lambda *a, **b: {DIE}",
        f"import pipelines.daily.delivery as m; m.WebHook.send = lambda *a, **b: {DIE}",
    ],
)
def test_a_killed_run_is_made_up_for(before: str, tmp_path: Path) -> None:
    """Amid the run, before the report, amid it, and before the delivery: the next run does what is left, once."""
    export(tmp_path / "export", 1)
    with hook() as posts:
        more = ["--web-hook-file", address(tmp_path, posts)]
        process = start(tmp_path, *more, before=before)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        assert posts.bodies == []
        assert daily(tmp_path, 1, *more) == 0
        assert daily(tmp_path, 1, *more) == 0
        assert [post["day"] for post in posts.bodies] == [str(D1)]
    assert (len(commits(tmp_path)), reported(tmp_path)) == (1, [str(D1)])


def test_killed_while_it_delivers(tmp_path: Path) -> None:
    """Nobody can know whether that arrived: it is delivered again, under the same id."""
    export(tmp_path / "export", 1)
    with hook() as posts:
        more = ["--web-hook-file", address(tmp_path, posts)]
        posts.kill = start(tmp_path, *more)
        posts.kill.communicate(timeout=120)
        assert posts.kill.returncode == -signal.SIGKILL
        posts.kill = None
        assert daily(tmp_path, 1, *more) == 0
    assert [post["id"] for post in posts.bodies] == ["care-kpis-2026-01-05"] * 2


def test_a_retry_is_one_of_the_library() -> None:
    """What waits between tries is urllib3's, for mail too: it grows, and has an end."""
    assert isinstance(delivery.RETRY, urllib3.Retry)
