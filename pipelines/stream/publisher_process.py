"""The process that publishes: beside the stream, at a lower priority, and never without it.

It has a descriptor of the output folder's lock too, so that nobody else can write there before both have ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.memory import give_freed_memory_back
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.stream.restating import Request

NICENESS = 10
"""Cycles come first; where they leave nothing, a tenth of a core is left."""

_WITHOUT_REQUESTS = 1


class ProcessEnded(Exception):
    """The process ended before it had published; says how."""


class PublisherProcess:
    """Starts the process where it is needed, and ends it; for one thread at a time."""

    def __init__(self, lock: int) -> None:
        """Takes a descriptor of the output folder's lock."""
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def publish(self, request: Request) -> int:
        """Publishes; gives the number of the commit.

        Raises:
          ProcessEnded: the process was killed; whether it had published before, the next one finds out.
          UserError: the disk is full, or the result before is damaged.
        """
        if self._process is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send(request)
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise ProcessEnded(self._how_it_ended()) from None
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    def kill(self) -> None:
        """Ends the process at once, from any thread."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process, which has nothing under way."""
        if self._process is not None:
            self._how_it_ended()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            # Modules are found as they are here, and not in the folder that we happen to be in (-P).
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=(theirs.fileno(), self._lock),
                # Ctrl-C is for the stream.
                start_new_session=True,
            )

    def _how_it_ended(self) -> str:
        assert self._process is not None and self._connection is not None
        self._connection.close()
        code = self._process.wait()
        self._process = self._connection = None
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"


def main(descriptor: int) -> None:
    """Publishes what it is asked to, until nobody is there to ask.

    Args:
      descriptor: of a socket on which requests come and answers go: the number of a commit, or an exception.
    """
    os.nice(NICENESS)
    # It rests most of the time, and holds nothing then: what large vectors take goes back as they are dropped.
    pa.set_memory_pool(pa.system_memory_pool())
    # Whoever ends the stream lets it finish; without it there is nothing to finish for.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    requests: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    while True:
        connection.send(_answer(requests.get()))
        give_freed_memory_back()


def _receive(connection: Connection, requests: SimpleQueue[Request]) -> None:
    """Takes requests; ends the process, amid whatever it does, as soon as the stream is gone."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        # Nobody is there to be told.
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(_WITHOUT_REQUESTS)


def _answer(request: Request) -> int | Exception:
    # Imported while the first request is under way, for which nothing else waits.
    from pipelines.failures import said_clearly
    from pipelines.stream.restating import publish

    try:
        with said_clearly(Path(request.output)):
            return publish(request)
    except UserError as error:
        return UserError(*error.args)
    except BaseException:
        return RuntimeError(traceback.format_exc())


if __name__ == "__main__":
    main(int(sys.argv[1]))
