"""What train.py and test.py are made of, and the benchmark."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write("error: this is Python {}.{}; start the program with 3.10 or newer\n".format(*sys.version_info))
    sys.exit(2)
