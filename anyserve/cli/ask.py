"""`anyserve infer` and `anyserve chat`: their arguments, and how they end.

What they do is imported when one of them runs: a replica, which has the same command line, needs
neither a client nor numpy.
"""

from __future__ import annotations

import argparse
from typing import Any

from anyserve.cli.running import run_async


def add_commands(commands: Any) -> None:
    """Add `infer` and `chat` to the command line."""
    infer = commands.add_parser(
        "infer",
        help="send one request",
        description="Send one request and print what comes back.",
        epilog="example: anyserve infer 127.0.0.1:8001 decode text_input='Once upon a time'"
        " max_tokens=40 --stream",
    )
    infer.add_argument("address", help="where the replica serves, as 127.0.0.1:8001")
    infer.add_argument("capability")
    infer.add_argument(
        "inputs",
        nargs="*",
        metavar="NAME=VALUE",
        help="an input: text for BYTES, else a number or JSON list; repeated for several texts",
    )
    infer.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="a request parameter"
    )
    infer.add_argument("--stream", action="store_true", help="print responses as they come")
    infer.add_argument("--timeout", type=float, default=120.0, help="seconds to wait (120)")
    infer.set_defaults(run=_infer)

    chat = commands.add_parser(
        "chat",
        help="chat with a replica's decode capability",
        description="Chat in the terminal. Ctrl-C stops an answer, Ctrl-D ends the chat.",
    )
    chat.add_argument("address", help="where the replica serves, as 127.0.0.1:8001")
    chat.add_argument("--capability", default="decode")
    chat.add_argument("--system", help="a system prompt of your own")
    chat.add_argument("--max-tokens", type=int, default=256)
    chat.add_argument("--temperature", type=float, default=0.7)
    chat.set_defaults(run=_chat)


def _infer(options: argparse.Namespace) -> int:
    from anyserve.cli.infer import infer

    return run_async(infer, options)


def _chat(options: argparse.Namespace) -> int:
    from anyserve.cli.chat import chat

    return run_async(chat, options)
