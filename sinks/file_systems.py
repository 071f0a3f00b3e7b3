"""A folder on whatever file system Apache Beam knows: gs://, s3://, hdfs://, or one that is mounted."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sinks.parquet import writing
from transforms.errors import UserError


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Turns what a file system says into a sentence for the user.

    Raises:
      UserError: the URL cannot be reached, read or written.
    """
    from apache_beam.io.filesystem import BeamIOError

    try:
        yield
    except (BeamIOError, OSError, ValueError) as error:
        raise UserError(
            f"Expected to reach {url}, but it failed: {str(error).splitlines()[0] if str(error) else error!r}; check "
            "the address, your rights, and that Beam's extra for its file system is installed."
        ) from error


class RemoteFolder:
    """The few things that are done to files at a URL; names are relative to it.

    Attributes:
      url: the folder, without a slash at its end.
    """

    def __init__(self, url: str) -> None:
        """Takes the URL; nothing is asked yet."""
        from apache_beam.io.filesystems import FileSystems

        self.url = url.removeprefix("file://").rstrip("/")
        self.systems: Any = FileSystems

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self.systems.exists(f"{self.url}/{name}"))

    def names(self, pattern: str) -> list[str]:
        """The names of the files that match a glob pattern, sorted."""
        found = self.systems.match([f"{self.url}/{pattern}"])
        return sorted(one.path.removeprefix(f"{self.url}/") for match in found for one in match.metadata_list)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self.open(name) as file:
            content: bytes = file.read()
        return content

    def put(self, name: str, content: bytes) -> None:
        """Writes a file that is there whole or not at all; written beside and renamed, for where writing is not atomic.

        A file that is there already is taken to be the same.
        """
        if self.exists(name):
            return
        waiting = f"{name}.{secrets.token_hex(4)}.tmp"
        with self.create(waiting) as file:
            file.write(content)
        self.systems.rename([f"{self.url}/{waiting}"], [f"{self.url}/{name}"])

    def remove(self, name: str) -> None:
        """Removes a file, unless it is gone already."""
        if self.exists(name):
            self.systems.delete([f"{self.url}/{name}"])

    def send(self, file: Path, name: str) -> None:
        """Writes a file from one of this machine."""
        with open(file, "rb") as source, self.create(name) as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def fetch(self, name: str, file: Path) -> str:
        """Reads a file into one of this machine; gives its SHA-256."""
        digest = hashlib.sha256()
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with self.open(name) as source, open(file, "wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def copy(self, pairs: list[tuple[str, str]]) -> None:
        """Copies files there."""
        for _, target in pairs:
            self._make_folder(f"{self.url}/{target}")
            if self.exists(target):
                self.systems.delete([f"{self.url}/{target}"])
        self.systems.copy([f"{self.url}/{a}" for a, _ in pairs], [f"{self.url}/{b}" for _, b in pairs])

    def open(self, name: str) -> Any:
        """Opens a file to read it as it is stored."""
        from apache_beam.io.filesystem import CompressionTypes

        return self.systems.open(f"{self.url}/{name}", compression_type=CompressionTypes.UNCOMPRESSED)

    def create(self, name: str) -> Any:
        """Opens a file to write it; folders are made."""
        from apache_beam.io.filesystem import CompressionTypes

        self._make_folder(f"{self.url}/{name}")
        return self.systems.create(f"{self.url}/{name}", compression_type=CompressionTypes.UNCOMPRESSED)

    def _make_folder(self, path: str) -> None:
        """Makes the folder of a file, on a file system that has folders."""
        if "://" not in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
