"""Programs in Java that are not on PyPI: Maven gets them, once, and they run as processes that end with us."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transforms.errors import UserError

_DIES_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"
    if sys.platform.startswith("linux")
    else "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
)
"""A program that becomes another one, which gets SIGTERM when we end, even by SIGKILL."""

_STARTER = ThreadPoolExecutor(1, "processes")
"""A thread that lives as long as we do: the system takes the end of the thread that started a process for our end."""


def missing_programs() -> list[str]:
    """Those of java and mvn that are not on the PATH."""
    return [name for name in ("java", "mvn") if shutil.which(name) is None]


def check_programs(product: str) -> None:
    """Sees that Java and Maven are there.

    Args:
      product: what they are for, as the message names it.

    Raises:
      UserError: one of them is missing.
    """
    missing = missing_programs()
    if missing:
        raise UserError(
            f"Expected java (17) and mvn (Maven) on the PATH to get and run {product}, but {' and '.join(missing)} is "
            "not there: install it; on Debian the packages are openjdk-17-jre-headless and maven."
        )


def fetch_jars(pom: Path, folder: Path) -> None:
    """Puts everything that a pom names, and what that needs at run time, into a folder.

    Raises:
      UserError: Maven could not get something.
    """
    copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder.absolute()}"]
    done = subprocess.run(["mvn", "-q", "-B", "-f", str(pom), *copy], capture_output=True, text=True)
    if done.returncode:
        said = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stdout[-500:])
        raise UserError(
            f"Expected Maven to fetch what {pom} names, but it said: {said.strip()}; see that it reaches Maven Central "
            "or a mirror of it (its settings.xml says which), then run again."
        )


def start_process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a program in a process group of its own (Ctrl-C is ours to handle) that is ended when we end.

    Args:
      command: the program and its arguments.
      log: file that gets what it says, added to its end.
      environment: its environment variables; None for ours.
    """

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", _DIES_WITH_PARENT, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    return _STARTER.submit(start).result()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as one:
        # A port that was in use a moment ago is free all the same.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
