"""What a result that grows remembers: what was taken, its open rows and wakes; and what is new of the files named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.settings import settings_record
from pipelines.sources.files import InputFile, open_stored
from sinks.output_folder import STATE
from sinks.stored import conversation_keys_of, stored_statistics
from transforms.before import Before
from transforms.errors import UserError
from transforms.hashing import Hashes, hash_conversation_keys
from transforms.settings import Settings
from transforms.wakes import load_wakes, woken_keys

STATE_FILE = "state.json"
ROWS_FOLDER = "rows"
WAKES_FILE = "wakes.npy"
_VERSION = 1
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Taken:
    """An input that was taken: its name, what its rows' source is called, its size, SHA-256, rows and commit."""

    name: str
    source: str
    bytes: int
    sha256: str
    rows: int
    commit_id: int


@dataclass(frozen=True)
class State:
    """What the next cycle begins with.

    Attributes:
      settings: settings of the result but as_of, as `runs` tells them.
      as_of: the moment up to which time has passed, microseconds; None where there is no event.
      latest: latest occurred_at of the events kept, microseconds; None where there is none.
      row_count: rows in all files of open rows.
      taken: the inputs, in the order they were taken.
      stream: what a stream remembers, where the result is one's.
    """

    settings: Mapping[str, Any]
    as_of: int | None = None
    latest: int | None = None
    row_count: int = 0
    taken: tuple[Taken, ...] = ()
    stream: Mapping[str, Any] | None = None

    def save(self, root: Path) -> None:
        """Writes the state into a snapshot in the making."""
        path = root / STATE / STATE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n", encoding="utf-8")


def load_state(previous: Path | None, output: Path) -> State | None:
    """The state of the result before (its snapshot) in an output folder, or None where there is no result.

    Raises:
      UserError: the result was not made to grow, or by a version that kept other rows.
    """
    if previous is None:
        return None
    path = previous / STATE / STATE_FILE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"Expected a result that was begun with --append in {output}, but its open rows were not kept: run "
            "once more over all files with --append into a new output folder, and append there from then on."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"Expected to read {path}, but it is damaged ({error}): run over all files with --append into a new folder."
        ) from error
    if said.pop("version") != _VERSION:
        raise UserError(
            f"Expected open rows of this version in {output}: run over all files with --append into a new folder."
        )
    said["taken"] = tuple(Taken(**taken) for taken in said["taken"])
    return State(**said)


def settings_of_state(settings: Settings) -> Mapping[str, Any]:
    """The settings that must not change while a result grows."""
    record = dict(json.loads(json.dumps(settings_record(settings))))
    del record["as_of"]
    return record


def check_settings(state: State, settings: Settings) -> None:
    """Refuses to add to a result that was made with other settings.

    Raises:
      UserError: they differ.
    """
    now = settings_of_state(settings)
    if now != state.settings:
        names = [name for name in now if now[name] != state.settings.get(name)]
        raise UserError(
            f"Expected the settings that the result was made with, but {', '.join(names)} changed from "
            f"{json.dumps({n: state.settings.get(n) for n in names})} to {json.dumps({n: now[n] for n in names})}: "
            "give the same settings, or run over all files into a new output folder."
        )


def before_of(previous: Path, state: State, replaced: frozenset[str]) -> Before:
    """The result before, as the transforms see it."""
    root = previous / STATE
    return Before(
        rows=tuple(sorted((root / ROWS_FOLDER).glob("*.arrow"))),
        woken=partial(_woken, root / WAKES_FILE),
        as_of=state.as_of,
        statistics=partial(stored_statistics, previous),
        keys_of_customers=partial(_keys_of_customers, previous),
        replaced=replaced,
    )


def _woken(wakes: Path, as_of: int) -> Hashes:
    return woken_keys(load_wakes(wakes), as_of)


def _keys_of_customers(previous: Path, customers: pa.Table) -> Any:
    return np.unique(hash_conversation_keys(conversation_keys_of(previous, customers)))


@dataclass(frozen=True)
class Plan:
    """What of the files named is to be read.

    Attributes:
      files: files to read.
      sources: what the rows of a file are said to come from, by path, where that is not the path.
      sha256: of each file to read, by path.
      taken_already: paths of files whose content was taken before, or that another one of them has too.
      grown: paths of files that have grown since they were taken and are left alone.
      replaced: what was taken of files that are read again.
    """

    files: tuple[InputFile, ...]
    sources: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    taken_already: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()
    replaced: tuple[Taken, ...] = ()

    def taken(self, state: State, rows: Mapping[str, int], commit_id: int) -> tuple[Taken, ...]:
        """What is taken once the files are read, with their rows by path."""
        gone = {taken.source for taken in self.replaced}
        new = (
            Taken(f.path, self.sources.get(f.path, f.path), f.size, self.sha256[f.path], rows[f.path], commit_id)
            for f in self.files
        )
        return (*(taken for taken in state.taken if taken.source not in gone), *new)


def plan_files(
    files: Sequence[InputFile], state: State | None, commit_id: int, grown_files: Literal["leave", "reread"] = "leave"
) -> Plan:
    """Tells which files are new, by their content.

    Args:
      files: the files named.
      state: of the result before, or None.
      commit_id: number of this commit.
      grown_files: what to do with a file that begins with all that was taken from a file of its name: leave it alone
        or read it again.
    """
    taken = state.taken if state is not None else ()
    known = {t.sha256 for t in taken}
    latest = {t.name: t for t in taken}
    plan = Plan(())
    for file in files:
        before = latest.get(file.path)
        sha256, prefix = _fingerprints(file, before.bytes if before is not None else 0)
        if sha256 in known:
            plan = replace(plan, taken_already=(*plan.taken_already, file.path))
            continue
        sources = plan.sources
        if before is not None:
            if file.size > before.bytes and prefix == before.sha256:
                if grown_files == "leave":
                    plan = replace(plan, grown=(*plan.grown, file.path))
                    continue
                plan = replace(plan, replaced=(*plan.replaced, before))
                sources = {**sources, file.path: before.source}
            else:
                # Another content under a name that was used: its rows must not be taken for those of the earlier one.
                sources = {**sources, file.path: f"{file.path}@{commit_id}"}
        known.add(sha256)
        plan = replace(plan, files=(*plan.files, file), sources=sources, sha256={**plan.sha256, file.path: sha256})
    return plan


def _fingerprints(file: InputFile, size: int) -> tuple[str, str]:
    """SHA-256 of a file as it is stored, and of its first bytes."""
    whole, prefix, left = hashlib.sha256(), hashlib.sha256(), size
    with open_stored(file.path) as stored:
        while chunk := stored.read(_CHUNK):
            whole.update(chunk)
            if left > 0:
                prefix.update(chunk[:left])
                left -= len(chunk)
    return whole.hexdigest(), prefix.hexdigest()
