"""Exit codes: what a scheduler learns of how a command ended."""

from __future__ import annotations

from transforms.errors import UserError

DONE = 0
WRONG = 2
AUDIT_FAILED = 3
IN_USE = 4
NOT_DELIVERED = 5
NO_FILES = 6
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
