"""What every process of the tests begins with."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell has what it starts in the background ignore Ctrl-C; the processes that tests start have to hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
