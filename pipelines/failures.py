"""What made a run fail, as the user should hear it: Beam gives back what a worker raised as the text of a traceback."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transforms.errors import UserError

_SAID = re.compile(r"^(?:transforms\.errors\.)?UserError: (.*)$", re.MULTILINE)
_WHERE = re.compile(r" \[while running '[^']*'\]$")
_ERRNO = re.compile(r"OSError: \[Errno (\d+)\]|PermissionError: \[Errno (\d+)\]")
_SHORT_WRITE = re.compile(r"OSError: \d+ requested and \d+ written")
_INTERRUPTS = ("KeyboardInterrupt", "Query interrupted")

_NO_SLOTS = re.compile(r"NoResourceAvailableException|TimeoutException: Timeout has occurred")
_CANCELLED = re.compile(r"StatusRuntimeException: (CANCELLED|UNAVAILABLE)")
_MEANINGS = (
    (re.compile(r"ConnectException.*finishConnect"), "Flink did not reach the worker pool of --environment_config"),
    (
        _CANCELLED,
        "a worker ended amid its work (killed, out of memory)",
    ),
    (re.compile(r"FileNotFoundError: .*_work"), "a worker does not see the output folder, or the run was stopped"),
    (_NO_SLOTS, "the cluster had not as many free slots as --parallelism wants"),
    (re.compile(r"OutOfMemoryError"), "a Java process ran out of memory"),
)
"""What words in the failure of a cluster mean."""


@contextmanager
def said_clearly(output: Path, runner: str | None = None) -> Iterator[None]:
    """Turns failures that the user can mend into UserError, and an interruption into KeyboardInterrupt.

    Args:
      output: the folder that is being written.
      runner: the Beam runner that the user named; None for the default one, whose other failures are ours.

    Raises:
      UserError: something that the user can mend.
      KeyboardInterrupt: the run was interrupted.
    """
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            raise UserError(_WHERE.sub("", str(error))) from error
        if any(word in text for word in _INTERRUPTS):
            raise KeyboardInterrupt from error
        said = _SAID.findall(text)
        if said:
            raise UserError(_WHERE.sub("", said[-1])) from error
        reason = _system_reason(text)
        if reason is not None:
            raise UserError(
                f"Expected room and permission to write {output}, but the system says {reason!r}: free some space or "
                "choose another output folder, then run again; an earlier result is untouched."
            ) from error
        if runner is not None:
            last = [line for line in str(error).splitlines() if line.strip()]
            what = next((meaning for words, meaning in _MEANINGS if words.search(text)), "it failed")
            raise UserError(
                f"Expected --runner {runner} to run the pipeline, but {what}: {last[-1] if last else text}; see "
                "what it needs in Apache Beam's documentation, or leave --runner out."
            ) from error
        raise


def named_runner(beam_args: Sequence[str]) -> str | None:
    """The runner among Beam's options as typed; None where there is none."""
    words = [word for argument in beam_args for word in argument.split("=", 1)]
    return next((after for word, after in itertools.pairwise(words) if word == "--runner"), None)


def _system_reason(text: str) -> str | None:
    """What the system says of a write that failed; None where it was none."""
    if _SHORT_WRITE.search(text):
        return os.strerror(28)
    found = _ERRNO.search(text)
    return os.strerror(int(found.group(1) or found.group(2))) if found else None
