"""`python -m anyserve.replica`: the same as `anyserve replica`."""

import sys

from anyserve.cli import main

if __name__ == "__main__":
    sys.exit(main(["replica", *sys.argv[1:]]))
