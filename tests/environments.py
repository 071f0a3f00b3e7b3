"""Python environments of other programs, each apart from ours, that tests run those programs in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from pathlib import Path


def environment(name: str, lock: Path) -> Path:
    """The folder of the programs of an environment; made the first time, beside our own packages.

    Args:
      name: of the program.
      lock: every package and its version; another lock is another environment.

    Returns:
      The folder bin of the environment.
    """
    folder = Path(sys.prefix) / "others" / f"{name}-{zlib.crc32(lock.read_bytes()):08x}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", "--no-compile", "-r", str(lock)], check=True)
        (folder / "ready").touch()
    return folder / "bin"
