"""Expected trouble, and the one place where it becomes one line and an exit code."""

import os
import signal
import sys
import time
from collections.abc import Callable

SECONDS_TO_SPEAK = 5.0


class UserError(Exception):
    """Trouble whose cause lies outside the code. Its text is one line: what happened; what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, a batch system's notice to stop: handled as Ctrl-C is."""


def _on_sigterm(signal_number, frame):
    raise Terminated


def interrupt_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code of an interrupted program by the shells' convention, 128 + the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def first_line(error: Exception) -> str:
    """What an exception says, without the pages that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_program(main: Callable[[], int]) -> None:
    """Run `main` and exit with its code; a `UserError` is one line and 2, Ctrl-C is 130, SIGTERM 143."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        _report(error)
        code = 2
    except KeyboardInterrupt as interrupt:
        code = interrupt_code(interrupt)
    except BrokenPipeError:  # the reader of our output went away, as in `python test.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.filename is None:  # not about a file or folder that the user could do something about
            raise
        _report(f"{error.filename}: {error.strerror}; mend that, or name another place")
        code = 2
    sys.exit(code)


def _report(error: UserError | str) -> None:
    """One line on stderr; of torchrun's processes on a machine the first speaks for all, who mostly met the same."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:  # whichever process ends first, torchrun ends the others: do not be before the one that speaks
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_TO_SPEAK)
