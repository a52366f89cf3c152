# /// script
# requires-python = "==3.11.*"
# dependencies = ["litellm[proxy]==1.108.7"]
# ///
"""LiteLLM's proxy before one worker: `python -m benchmarks.peers.litellm_proxy PORT WORKER`."""

from __future__ import annotations

import json
import logging
import sys
import tempfile

from litellm.proxy.proxy_cli import run_server  # type: ignore[import-not-found]


def main(port: str, worker: str) -> None:
    """Serve until it is told to stop."""
    way = {"model": "openai/mock", "api_base": f"http://{worker}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "mock", "litellm_params": way}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)  # which is YAML too
        file.flush()
        # A line for each request is not what is measured.
        logging.getLogger("uvicorn.access").addFilter(lambda record: False)
        run_server(["--host", "127.0.0.1", "--port", port, "--config", file.name])


if __name__ == "__main__":
    main(*sys.argv[1:])
