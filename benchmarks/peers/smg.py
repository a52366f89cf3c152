# /// script
# requires-python = "==3.11.*"
# dependencies = ["smg==1.13.0"]
# ///
"""The Shepherd Model Gateway before one worker: `python -m benchmarks.peers.smg PORT WORKER`."""

from __future__ import annotations

import sys

from smg.launch_router import main  # type: ignore[import-not-found]

from benchmarks.ports import free_port

if __name__ == "__main__":
    port, worker = sys.argv[1:]
    sys.argv[1:] = [
        *("--host", "127.0.0.1", "--port", port, "--worker-urls", f"http://{worker}"),
        *("--policy", "round_robin", "--log-level", "warn"),
        *("--prometheus-port", str(free_port())),
    ]
    main()
