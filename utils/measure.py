"""How the benchmark measures: seconds, memory, in turns, each loop in a process of its own."""

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, set_start_method
from pathlib import Path

import torch
from tqdm import tqdm

from utils.errors import UserError

SUBJECT = None  # in each of the measuring processes: the loop that it measures


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes, until the device has done its part of it."""
    started = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started


def run_script(*arguments) -> float:
    """Seconds that one of the programs takes, from the command to its end."""
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, *map(str, arguments)], cwd=Path(__file__).parents[1], capture_output=True)
    if ended.returncode:
        raise UserError(f"{arguments[0]} failed, run it to see why: {' '.join(map(str, arguments))}")
    return time.perf_counter() - started


def peak_memory() -> float:
    """Bytes that this process has had in memory at most."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _make(subject: Callable, arguments: tuple) -> None:
    global SUBJECT
    set_start_method(None, force=True)  # a DataLoader starts its workers as anywhere else, not as this process was
    SUBJECT = subject(*arguments)


def _ask(method: str, *values) -> float:
    return getattr(SUBJECT, method)(*values)


@contextmanager
def process_for(subject: Callable, *arguments) -> Iterator[Callable[..., float]]:
    """A process with one loop, and a function that asks it for measurements.

    Each has its own: how the allocator is tuned, and what it was used for before, would show in the next loop's times.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a process inherits: Ctrl-C is for this one
    made = pool.submit(_make, subject, arguments)  # now, while the others start
    signal.signal(signal.SIGINT, handler)

    def ask(method: str, *values) -> float:
        try:
            made.result()  # raises what went wrong there
            return pool.submit(_ask, method, *values).result()
        except BrokenProcessPool as error:
            advice = "perhaps for lack of memory; try a smaller --batch-size"
            raise UserError(f"a measuring process was killed, {advice}") from error

    try:
        yield ask
    except KeyboardInterrupt:
        for process in active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False)  # its end takes seconds, in which the next thing can start


def in_turns(rows: dict[str, Callable[[], float]], turns: int, hidden: bool | None = None) -> dict[str, float]:
    """The median of each row, measured A B C A B C ...; `hidden`: tqdm's `disable`, None: a bar at a terminal."""
    values: dict[str, list[float]] = {name: [] for name in rows}
    for name, measure in tqdm(turns * list(rows.items()), leave=False, disable=hidden):
        values[name].append(measure())
    return {name: statistics.median(measured) for name, measured in values.items()}
