"""`care-kpis upload` and `care-kpis load`: a result goes to another file system, and from there to other machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_growth import append, event, options, rows_of, write

from pipelines.batch import run
from pipelines.cli import main
from sinks.output_folder import current_snapshot
from sinks.remote import load, upload
from transforms.errors import UserError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A result of three months, with a dead letter."""
    lines = [event(f"m{n}", 24 * 31 * n, conversation_id=f"c{n}") for n in range(3)]
    append([write(tmp_path / "1.ndjson", *lines, b"no event")], tmp_path / "output")
    return tmp_path / "output"


@pytest.fixture(params=["folder", "file://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where it goes: both are Beam's local file system."""
    return f"{request.param if request.param == 'file://' else ''}{tmp_path / 'share'}"


def grow(output: Path, tmp_path: Path, name: str) -> None:
    """One more commit that changes the last month."""
    append([write(tmp_path / f"{name}.ndjson", event(name, 24 * 31 * 2 + 1, conversation_id="c2"))], output)


def test_there_and_back(output: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables are the same, commit by commit; only what changed is sent and fetched."""
    copy = tmp_path / "copy"
    assert main(["upload", str(output), url]) == 0
    assert main(["load", url, "--output", str(copy)]) == 0
    assert "Commit 1: " in capsys.readouterr().out
    assert rows_of(copy) == rows_of(output)
    for name in ("a", "b", "c"):
        grow(output, tmp_path, name)
        sent, fetched = upload(output, url), load(url, copy)
        assert sent.files == fetched.files > 0 and sent.kept == fetched.kept > 0
        assert rows_of(copy) == rows_of(output)
    assert main(["check", str(copy)]) == 0
    assert upload(output, url).files == load(url, copy).files == 0
    assert sorted(path.name for path in (tmp_path / "share").iterdir()) == ["000003", "000004", "current.json"]
    fresh = tmp_path / "fresh"
    load(url, fresh)
    assert rows_of(fresh) == rows_of(output)
    snapshot = current_snapshot(fresh)
    assert snapshot is not None and snapshot.name == "000004"


def test_a_rebuilt_result_is_another_one(output: Path, tmp_path: Path) -> None:
    """It goes up and comes down although its commit is the same."""
    share, copy = str(tmp_path / "share"), tmp_path / "copy"
    upload(output, share)
    load(share, copy)
    assert main(["rebuild", str(output)]) == 0
    upload(output, share)
    load(share, copy)
    assert rows_of(copy) == rows_of(output)
    assert json.loads((tmp_path / "share" / "current.json").read_text()) == {"folder": "000001.1"}


def test_an_upload_that_stops(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers have the old result until the pointer is replaced, and the next upload puts all right."""
    share, copy = str(tmp_path / "share"), tmp_path / "copy"
    upload(output, share)
    old = rows_of(output)
    grow(output, tmp_path, "a")
    for step in ("send", "copy", "point"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="Expected to reach"):
            patch.setattr(f"sinks.remote._Remote.{step}", lambda *_: (_ for _ in ()).throw(OSError("gone")))
            upload(output, share)
        load(share, copy)
        assert rows_of(copy) == old
    upload(output, share)
    load(share, copy)
    assert rows_of(copy) == rows_of(output)


def test_what_cannot_be_loaded(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing there, a file that changed, a folder with a later commit, an unknown scheme: one sentence each."""
    share = tmp_path / "share"
    assert main(["load", str(share), "--output", str(tmp_path / "copy")]) == 2
    assert "Expected a result at" in capsys.readouterr().err
    upload(output, str(share))
    victim = next((share / "000001" / "turns").rglob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert main(["load", str(share), "--output", str(tmp_path / "copy")]) == 2
    assert "its checksum differs" in capsys.readouterr().err
    assert current_snapshot(tmp_path / "copy") is None
    later = tmp_path / "later"
    for name in ("1", "2"):
        run(options([write(tmp_path / f"{name}.ndjson", event(name, 1))], later))
    assert main(["load", str(share), "--output", str(later)]) == 2
    assert "has commit 2" in capsys.readouterr().err
    assert main(["upload", str(output), "nowhere://bucket/care"]) == 2
    assert "Expected to reach nowhere://bucket/care" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["upload", str(tmp_path / "empty"), str(share)]) == 2
    assert "Expected a result in" in capsys.readouterr().err
