"""Files that are never half-written, and the folder of a run: its files and its lock."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError, warn


def write_file(path: Path, data: bytes | memoryview, advice: str) -> None:
    """Write a file so that whoever looks, now or after a power cut, sees the old one or the new one, whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two programs may write the same file
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
    """Make a folder, and find out before the work whose result goes into it whether that can be written."""
    try:
        create(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}; {advice}") from error


def create(folder: Path) -> None:
    """Create a folder, unless it is there; an `OSError` says what is in the way."""
    for each in (folder, *folder.parents):
        if each.is_symlink() and not each.exists():
            raise OSError(errno.ENOENT, f"{each} is a link that leads nowhere")
        if each.exists() and not each.is_dir():
            raise OSError(errno.ENOTDIR, f"{each} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)


def epoch_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:02d}.pth"


def saved_epochs(folder: Path) -> list[int]:
    """The epochs whose checkpoints are in `folder`, ascending; none if there is no such folder."""
    try:
        names = os.listdir(folder)  # unlike Path.glob, which takes a folder that may not be read for an empty one
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = {int(match[1]) for name in names if (match := re.fullmatch(r"epoch_(\d+)\.pth", name))}
    return sorted(epoch for epoch in numbers if epoch_path(folder, epoch).exists())


def no_epoch(folder: Path) -> str:
    """That there is no epoch in `folder`, and where there are some: in the folder above, or in those within it."""
    found = []
    for each in [Path(os.path.realpath(folder)).parent, *(sorted(folder.iterdir()) if folder.is_dir() else ())]:
        with contextlib.suppress(OSError):  # one that may not be read
            found += [os.path.relpath(each)] if saved_epochs(each) else []
    return f"there is no epoch in {folder}" + (f", but there is in {', '.join(found)}" if found else "")


def _is_empty(folder: Path) -> bool:
    """Whether nothing but the lock is in `folder`; not if it is gone."""
    return folder.is_dir() and os.listdir(folder) == [".lock"]


def acquire_lock(path: Path, timeout: float) -> FileLock:
    """The lock at `path`, held; `Timeout` if another program holds it for so many seconds, -1: for ever.

    Where the file system has no locks, as on some clusters, a line says so, and the program goes on without.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a mere file, left over by a killed program, would lock for ever
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        warn(f"note: there are no locks in {path.parent}; see to it that no other program writes there")
    return lock


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this run alone; remove it if it stays empty. A killed run leaves no lock."""
    new_folders = [each for each in (folder, *folder.parents) if not each.exists()]
    lock = None
    try:
        try:
            create(folder)
            lock = acquire_lock(folder / ".lock", timeout=0)
        except Timeout as error:
            advice = "wait for it, or name another --checkpoint-dir"
            raise UserError(f"another run is writing to {folder}; {advice}") from error
        except OSError as error:
            place = error.filename or folder
            raise UserError(f"cannot write to {place}: {error.strerror}; name another --checkpoint-dir") from error
        yield
    finally:
        if lock:
            if new_folders and _is_empty(folder):
                (folder / ".lock").unlink()
            lock.release()
        for each in new_folders:
            with contextlib.suppress(OSError):
                each.rmdir()  # if it is empty


def prepare_run(folder: Path, overwrite: bool) -> None:
    """Remove what a save that was cut off has left in `folder`, and to `overwrite` the run in it; nothing else."""
    for path in folder.glob("*.partial"):
        if re.fullmatch(r"(epoch_\d+\.pth|history\.csv)(\.\d+)?", path.stem):
            path.unlink()
    if overwrite:
        for epoch in saved_epochs(folder):
            epoch_path(folder, epoch).unlink()
        (folder / "history.csv").unlink(missing_ok=True)
