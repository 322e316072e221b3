"""A lock on an open file that the system lets go when the process ends, however it ends."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    # Windows keeps others from even reading a locked place, so the place is far behind the end.
    _FAR_AWAY = 1 << 40

    def try_lock(fd: int) -> bool:
        """Take the only lock of an open file; False if another process has it."""
        os.lseek(fd, _FAR_AWAY, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(fd, 0, os.SEEK_END)
        return True

else:
    import errno
    import fcntl

    def try_lock(fd: int) -> bool:
        """Take the only lock of an open file; False if another process has it.

        Some network file systems know no locks; there it is True without a lock.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True


def is_same_file(fd: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is (still) the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
