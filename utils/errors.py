"""Expected trouble, and the one place where it becomes one line and an exit code; signals; the standard streams."""

import contextlib
import errno
import io
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

SECONDS_TO_SPEAK = 5.0
# Ctrl-C; a batch system's notice to stop; a closed terminal, of which Windows does not tell.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_handlers_before = {}  # of signals, to be put back
TORCHRUNS = {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}


class UserError(Exception):
    """Trouble whose cause lies outside the code. Its text is one line: what happened; what to do.

    Whatever function meets such trouble raises it, throughout the project; docstrings do not repeat that.
    """


def is_distributed() -> bool:
    """Whether torchrun started this process; a shell may have kept one of its words from somewhere else."""
    return os.environ.keys() >= TORCHRUNS


def exit_on_ctrl_c() -> None:
    """In the seconds of imports, before `run_program` takes over, let Ctrl-C end the program without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _handlers_before[signal.SIGINT] = signal.signal(signal.SIGINT, _exit_on_signal)


def _exit_on_signal(number, frame):
    _restore_handlers()
    sys.exit(128 + number)


def _on_signal(number, frame):
    if not hasattr(sys, "ps1"):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the program at once
    raise KeyboardInterrupt(number)


def ignore_further_signals() -> None:
    """Shell and system may both send one. To be called where the first is handled: a destructor may swallow it."""
    for number in SIGNALS[1:]:
        if number in _handlers_before:
            signal.signal(number, signal.SIG_IGN)


def _restore_handlers() -> None:
    for number, handler in _handlers_before.items():
        signal.signal(number, handler)
    _handlers_before.clear()


def interrupt_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code of an interrupted program by the shells' convention, 128 + the signal's number."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def first_line(error: Exception) -> str:
    """What an exception says, or the one that torch's compiler has wrapped up in it, without pages that may follow."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Terminal(io.FileIO):
    """A terminal. Once it is gone, what is written to it goes nowhere: no reason to stop training."""

    def write(self, data: memoryview) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def _reopen(stream: TextIO | None, mode: str, errors: str) -> TextIO:
    """The same file as another text stream, to which any text can be written, or from which any can be read."""
    if stream is None:  # it is closed, as by `<&-`
        return open(os.devnull, mode)
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's
        return stream
    if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:  # the console of Windows
        stream.reconfigure(errors=errors)
        return stream
    is_device = stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)  # `isatty` denies a terminal that is gone
    file = (_Terminal if is_device else io.FileIO)(stream.fileno(), mode, closefd=False)
    buffer = io.BufferedReader(file) if mode == "r" else io.BufferedWriter(file)
    at_once = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, errors, line_buffering=at_once)


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Around a program: its streams and signals. What it changes for this process is put back for a notebook."""
    streams, environment = (sys.stdin, sys.stdout, sys.stderr), dict(os.environ)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as for a command that a shell started in the background
            _handlers_before.setdefault(number, signal.signal(number, _on_signal))
    # A file's name may have no form in the terminal's encoding, and what is typed may not be valid text in it.
    sys.stdin, sys.stdout = _reopen(sys.stdin, "r", "replace"), _reopen(sys.stdout, "w", "backslashreplace")
    sys.stderr = _reopen(sys.stderr, "w", "backslashreplace")
    try:
        yield
    finally:
        if hasattr(sys, "ps1"):  # there is a prompt, at which work goes on
            sys.stdin, sys.stdout, sys.stderr = streams
            os.environ.clear()
            os.environ.update(environment)
            _restore_handlers()


def run_program(main: Callable[[], int]) -> None:
    """Run `main` and exit with its code; a `UserError` is one line and 2, Ctrl-C 130, SIGTERM 143, SIGHUP 129.

    1: the reader of the output has left, as in `python test.py | head`.
    """
    with _surroundings():
        sys.exit(_exit_code(main))


def _exit_code(main: Callable[[], int]) -> int:
    code = 0
    try:
        try:
            code = main()
        except UserError as error:
            report_error(error)
            code = 2
        except KeyboardInterrupt as interrupt:
            code = interrupt_code(interrupt)
            if sys.stderr.isatty():
                warn("")  # the shell's prompt begins a line
        except SystemExit as end:  # of --help, or Ctrl-D at a question: what was printed is still to be flushed
            code = end.code or 0
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:  # while the reader of our output did not read on
        _silence(sys.stdout)
        code = interrupt_code(interrupt)
    except BrokenPipeError:
        _silence(sys.stdout)
        code = code or 1
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise  # not something that the user can fix
        report_error(f"{error.filename or 'standard output'}: {error.strerror}; fix that, or name another place")
        _silence(sys.stdout)
        code = code or 2
    return code


def warn(text: str) -> None:
    """Print on stderr, or nowhere: in `python train.py 2>&1 | tee log`, Ctrl-C ends its reader, too."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def printable(text: str) -> str:
    """One line that changes nothing in a terminal, whatever is in a file's name."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _silence(stream: TextIO) -> None:
    """What is still to be written to it goes nowhere, and fails no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def report_error(error: UserError | str) -> None:
    """One line on stderr; of torchrun's processes here the first speaks at once, others wait: they met the same."""
    rank = os.environ["LOCAL_RANK"] if is_distributed() else "0"
    if rank != "0":  # torchrun ends all when one ends: if the first has something to say, do not be before it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_TO_SPEAK)
        error = f"process {rank}: {error}"
    warn(printable(f"error: {error}"))
