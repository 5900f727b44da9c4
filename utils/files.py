"""Files that are never half-written, and the folders they go into."""

import contextlib
import os
import tempfile
from pathlib import Path

from utils.errors import UserError

PARTIAL = ".partial"  # the ending of a file that is still being written


def write_file(path: Path, data: bytes | memoryview, advice: str) -> None:
    """Write a file in such a way that whoever looks, now or after a power cut, sees the old one or the new one, whole.

    Raises:
        UserError: if the disk is full or the folder cannot be written; `advice` says what to do about it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")  # two programs may write the same file
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def make_folder(folder: Path, advice: str) -> None:
    """Make a folder, and find out before the work whose result goes into it whether that can be written.

    Raises:
        UserError: if not; `advice` says what to do about it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}; {advice}") from error
