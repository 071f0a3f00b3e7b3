"""Files that several results share."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_CANNOT_LINK = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


def inode_and_time(status: os.stat_result) -> tuple[int, int]:
    """What tells a file from another one at the same place, or from itself written anew."""
    return status.st_ino, status.st_mtime_ns


def link_or_copy(source: Path, target: Path) -> bool:
    """Makes `target` a hard link of `source`, or a copy where the file system has none.

    Returns:
      Is it a hard link?

    Raises:
      OSError: the target is there already, or cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        shutil.copyfile(source, target)
        return False
    return True
