"""`anyserve replica` under the sampler."""

from __future__ import annotations

import sys

from anyserve import cli
from benchmarks import sampler

if __name__ == "__main__":
    sampler.install()
    sys.exit(cli.main(["replica", *sys.argv[1:]]))
