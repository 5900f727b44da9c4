"""Expected trouble, and the one place where it becomes one line and an exit code."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TextIO

SECONDS_TO_SPEAK = 5.0


class UserError(Exception):
    """Trouble whose cause lies outside the code. Its text is one line: what happened; what to do.

    Whatever function meets such trouble raises it, throughout the project; docstrings do not repeat that.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, a batch system's notice to stop: handled as Ctrl-C is."""


def _on_signal(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the program at once
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def interrupt_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code of an interrupted program by the shells' convention, 128 + the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def first_line(error: Exception) -> str:
    """What an exception says, or the one that torch's compiler has wrapped up in it, without pages that may follow."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_program(main: Callable[[], int]) -> None:
    """Run `main` and exit with its code; a `UserError` is one line and 2, Ctrl-C is 130, SIGTERM 143.

    1: the reader of the output has left, as in `python test.py | head`.
    """
    sys.stdin = sys.stdin or open(os.devnull)  # None where it is closed, as by `<&-`
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    # A file's name may have no form in the terminal's encoding, and what is typed may not be valid text in it.
    for stream, errors in (sys.stdout, "backslashreplace"), (sys.stdin, "replace"):
        if hasattr(stream, "reconfigure"):  # a notebook's have no such method
            stream.reconfigure(errors=errors)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # as for a command that a shell started in the background
            signal.signal(number, _on_signal)
    code = 0
    try:
        try:
            code = main()
        except UserError as error:
            _report(error)
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
        _report(f"{error.filename or 'standard output'}: {error.strerror}; fix that, or name another place")
        _silence(sys.stdout)
        code = code or 2
    sys.exit(code)


def warn(text: str) -> None:
    """Print on stderr, or nowhere: in `python train.py 2>&1 | tee log`, Ctrl-C ends its reader, too."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """What is still to be written to it goes nowhere, and fails no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report(error: UserError | str) -> None:
    """One line on stderr; of torchrun's processes here the first speaks at once, others wait: they met the same."""
    rank = os.environ.get("LOCAL_RANK", "0")
    if rank != "0":  # torchrun ends all when one ends: if the first has something to say, do not be before it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_TO_SPEAK)
        error = f"process {rank}: {error}"
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in f"error: {error}")
    warn(text)  # one line, whatever is in a file's name
