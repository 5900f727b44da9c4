"""Started by test_faults.py: train.py, which the system kills at the first byte of a file beyond so many."""

import resource
import signal
import sys

import train
from utils.errors import run_program
from utils.plot import import_matplotlib

if __name__ == "__main__":
    size = int(sys.argv.pop(1))
    import_matplotlib()  # which may write its cache: before the limit
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores, to get an error instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    run_program(train.main)
