"""What a snapshot knows of its files, and how files go from one result into the next."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from test_publish import commit, stage

from sinks import links, manifest
from sinks.manifest import MANIFEST, find_damage, read_manifest, require_intact, seal
from sinks.publish import open_snapshot
from transforms.errors import UserError
from transforms.tables import TABLES


def grow(output: Path, *names: str) -> Path:
    """Publishes a result that takes over some files of the one before, and has a file that is in no table."""
    with open_snapshot(output) as snapshot:
        stage(snapshot, 1)
        for name in names:
            snapshot.link(name)
        (snapshot.path / "_state").mkdir(exist_ok=True)
        (snapshot.path / "_state" / "open.bin").write_bytes(b"open")
        return snapshot.publish({"more": "said"})


def test_every_file_is_listed(tmp_path: Path) -> None:
    """With its bytes, its checksum as others compute it, and rows where it is one of a table."""
    snapshot = grow(tmp_path)
    found = read_manifest(snapshot)
    assert (found.commit_id, found.about) == (1, {"more": "said"})
    files = {str(p.relative_to(snapshot)): p for p in snapshot.rglob("*") if p.is_file() and p.name != MANIFEST}
    assert found.files.keys() == files.keys()
    for path, entry in found.files.items():
        content = files[path].read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (entry.rows is None) == (path in ("care.duckdb", "_state/open.bin"))
    assert [len(found.of_table(spec.name)) for spec in TABLES] == [1] * len(TABLES)
    assert find_damage(snapshot, found.files) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"commit_id": 1, "tables": {}, "other_files": [], "sha256": "0"}',
    ],
)
def test_what_is_no_manifest(content: bytes, tmp_path: Path) -> None:
    """One sentence, whatever it is."""
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match="as a run wrote it, but it is damaged, was changed or is of another version"):
        read_manifest(tmp_path)


def test_a_manifest_knows_when_it_was_changed(tmp_path: Path) -> None:
    """Whatever is changed in it: a number, a path, what else it says. How it is laid out does not matter."""
    snapshot = grow(tmp_path)
    content = json.loads((snapshot / MANIFEST).read_text())
    (snapshot / MANIFEST).write_text(json.dumps(content))
    read_manifest(snapshot)
    for name, other in (("more", "else"), ("commit_id", 2), ("new", 1)):
        (snapshot / MANIFEST).write_text(json.dumps({**content, name: other}))
        with pytest.raises(UserError):
            read_manifest(snapshot)
    (snapshot / MANIFEST).unlink()
    with pytest.raises(UserError, match="but there is none: run `care-kpis rebuild`"):
        read_manifest(snapshot)


def test_a_linked_file_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither read nor written again, and outlives the result that it came from."""
    first = grow(tmp_path)
    before = read_manifest(first)
    read: list[Path] = []
    sha256 = manifest._sha256
    monkeypatch.setattr(manifest, "_sha256", lambda path: (read.append(path), sha256(path))[1])
    second = grow(tmp_path, "kpis/window_month=1970-01/part-0.parquet", "late_events/part-0.parquet")
    linked = {"kpis/window_month=1970-01/part-0.parquet", "late_events/part-0.parquet"}
    assert all((second / name).samefile(first / name) for name in linked)
    assert not linked & {"/".join(path.parts[len(second.parts) :]) for path in read}
    after = read_manifest(second)
    assert all(after.files[name] == before.files[name] for name in linked)
    grow(tmp_path, *linked)
    third = grow(tmp_path, *linked)
    assert not first.exists() and not second.exists()
    assert find_damage(third, read_manifest(third).files) == {}


def test_damage_to_a_linked_file_stays_visible(tmp_path: Path) -> None:
    """The checksum is that of the first time, so a result never vouches for what it did not write."""
    grow(tmp_path)
    second = grow(tmp_path, "runs/part-0.parquet")
    size = (second / "runs/part-0.parquet").stat().st_size
    (second / "runs/part-0.parquet").write_bytes(b"x" * size)
    third = grow(tmp_path, "runs/part-0.parquet")
    assert find_damage(third, read_manifest(third).files) == {"runs/part-0.parquet": "its content has changed"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_there_are_no_hard_links(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy takes their place, with the checksum of the file that it is a copy of."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    first = grow(tmp_path)
    monkeypatch.setattr(links.os, "link", refuse)
    second = grow(tmp_path, "runs/part-0.parquet")
    assert not (second / "runs/part-0.parquet").samefile(first / "runs/part-0.parquet")
    assert read_manifest(second).files["runs/part-0.parquet"] == read_manifest(first).files["runs/part-0.parquet"]
    assert find_damage(second, read_manifest(second).files) == {}


def test_a_file_that_takes_the_place_of_a_linked_one(tmp_path: Path) -> None:
    """What is at the path in the end counts."""
    grow(tmp_path)
    with open_snapshot(tmp_path) as snapshot:
        stage(snapshot, 1)
        file = snapshot.link("_state/open.bin")
        file.unlink()
        file.write_bytes(b"nepo")
        final = snapshot.publish()
    assert find_damage(final, read_manifest(final).files) == {}
    assert read_manifest(final).files["_state/open.bin"].sha256 == hashlib.sha256(b"nepo").hexdigest()


def test_files_of_the_result_before(tmp_path: Path) -> None:
    """None before the first one; below a folder or all; by their manifest."""
    with open_snapshot(tmp_path) as snapshot:
        assert snapshot.previous_files() == []
    grow(tmp_path)
    with open_snapshot(tmp_path) as snapshot:
        assert snapshot.previous_files("_state") == snapshot.previous_files("_state/") == ["_state/open.bin"]
        assert snapshot.previous_files("_sta") == []
        assert len(snapshot.previous_files()) == len(TABLES) + 2
        assert snapshot.previous_rows("conversations") == 1
    (tmp_path / ".snapshots" / "000001" / MANIFEST).unlink()
    with open_snapshot(tmp_path) as snapshot, pytest.raises(UserError, match="run `care-kpis rebuild`"):
        snapshot.previous_files()


@pytest.mark.parametrize("way", ["link", "copy", "previous_file"])
def test_what_cannot_be_taken_over(way: str, tmp_path: Path) -> None:
    """A file that is unknown, gone or of another size is refused, with what to do."""
    with open_snapshot(tmp_path) as snapshot, pytest.raises(UserError, match="Expected a file x in the result before"):
        getattr(snapshot, way)("x")
    first = grow(tmp_path)
    (first / "_state" / "open.bin").write_bytes(b"opens")
    (first / "care.duckdb").unlink()
    with open_snapshot(tmp_path) as snapshot:
        with pytest.raises(UserError, match=r"with 4 bytes as it was published, but it has 5: run `care-kpis rebuild`"):
            getattr(snapshot, way)("_state/open.bin")
        with pytest.raises(UserError, match="but it is not there"):
            getattr(snapshot, way)("care.duckdb")
        (snapshot.path / MANIFEST).touch()
        with pytest.raises(UserError, match=r"Expected a file manifest\.json"):
            getattr(snapshot, way)(MANIFEST)


@pytest.mark.parametrize("way", ["copy", "previous_file"])
def test_what_is_read_from_the_result_before_is_verified(way: str, tmp_path: Path) -> None:
    """Damage is not carried on under a new checksum."""
    first = grow(tmp_path)
    with open_snapshot(tmp_path) as snapshot:
        file = getattr(snapshot, way)("_state/open.bin")
        assert file.read_bytes() == b"open" and (file == first / "_state" / "open.bin") == (way == "previous_file")
    (first / "_state" / "open.bin").write_bytes(b"nope")
    with open_snapshot(tmp_path) as snapshot, pytest.raises(UserError, match="but its content has changed: run `care"):
        getattr(snapshot, way)("_state/open.bin")


def test_tables_that_have_to_be_intact(tmp_path: Path) -> None:
    """Only those named are read; without a manifest nothing is known."""
    snapshot = commit(tmp_path, 3)
    require_intact(snapshot, [spec.name for spec in TABLES])
    (snapshot / "runs" / "part-0.parquet").write_bytes(b"x")
    require_intact(snapshot, ["kpis"])
    with pytest.raises(UserError, match=r"runs/part-0.parquet of the earlier result .* it has 1 bytes instead of"):
        require_intact(snapshot, ["kpis", "runs"])
    (snapshot / MANIFEST).unlink()
    require_intact(snapshot, ["runs"])


def test_damage_in_words(tmp_path: Path) -> None:
    """Each kind has its own."""
    for name in ("same", "longer", "other", "gone"):
        (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    seal(tmp_path, 1, {}, {})
    files = read_manifest(tmp_path).files
    (tmp_path / "longer").write_bytes(b"abcd")
    (tmp_path / "other").write_bytes(b"abd")
    (tmp_path / "gone").unlink()
    assert find_damage(tmp_path, files) == {
        "gone": "it is not there",
        "longer": "it has 4 bytes instead of 3",
        "other": "its content has changed",
    }
