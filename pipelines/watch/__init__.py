"""Watching a running stream from outside: what its status and its published result say, in a terminal."""
