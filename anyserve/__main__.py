"""`python -m anyserve`: the same as the `anyserve` command."""

import sys

from anyserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
