"""Exit codes: what a scheduler learns of how a command ended."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from transforms.errors import UserError

DONE = 0
WRONG = 2
AUDIT_FAILED = 3
IN_USE = 4
NOT_DELIVERED = 5
NO_FILES = 6
UNWRITTEN = 120
INTERRUPTED = 130


def exit_code_of(error: UserError) -> int:
    """The exit code for an error that the user can mend.

    Args:
      error: as it arrived; what it was made from tells too.

    Returns:
      What its class says (`exit_code`), IN_USE where a lock was held by somebody else, and WRONG for all others.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError) and isinstance(code := getattr(cause, "exit_code", None), int):
            return code
        if isinstance(cause, BlockingIOError):
            return IN_USE
        cause = cause.__cause__ or cause.__context__
    return WRONG


def run_process(main: Callable[[], int]) -> int:
    """Runs what a process is for, so that its end does not take every object apart.

    After a large run that would take as long as the start did; the system frees memory at once. Threads are waited for
    and what is registered for the end is done, as ever.

    Args:
      main: gives the exit code; what it raises is shown as ever, with the exit code 1.

    Returns:
      The exit code, with which the process is to end.
    """
    code = 1
    # What is registered first is done last.
    atexit.register(lambda: _end(code))
    code = main()
    return code


def _end(code: int) -> NoReturn:
    try:
        for output in (sys.stdout, sys.stderr):
            if output is not None:
                output.flush()
    except (OSError, ValueError):
        code = code or UNWRITTEN
    os._exit(code)
