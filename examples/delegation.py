"""Delegation: ask any replica of a fleet for what only another one has.

anyserve scheduler --port 8000
anyserve replica --port 8001 --scheduler 127.0.0.1:8000 --app examples.echo:app
anyserve replica --port 8002 --scheduler 127.0.0.1:8000 --app examples.streaming:app
python examples/delegation.py 127.0.0.1:8000 127.0.0.1:8001
"""

import sys

import numpy as np
import trio

from anyserve.client import open_client


async def count(address: str) -> list[int]:
    """Have `countdown` count, asking whoever listens at `address`."""
    async with open_client(address) as client:
        inputs = {"start": np.array([2], np.int32)}
        return [int(result["number"][0]) async for result in client.generate("countdown", inputs)]


def main(*addresses: str) -> list[list[int]]:
    """The scheduler sends the request on, and so does a replica that lacks the capability."""
    return [trio.run(count, address) for address in addresses]


if __name__ == "__main__":
    for address, numbers in zip(sys.argv[1:], main(*sys.argv[1:]), strict=True):
        print(f"{address} answers {numbers}")
