"""Logging: one line an event, as text for people or JSON for machines, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_NAMES = ("request_id", "trace_id")
"""What a record may say of its request."""


class OneLine(Exception):
    """Base of errors whose message says it all: the log leaves their traceback out."""


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback that belongs to a record; empty where there is none to show."""
    if not record.exc_info or isinstance(record.exc_info[1], OneLine):
        return ""
    return formatter.formatException(record.exc_info)


def _names(record: logging.LogRecord) -> dict[str, str]:
    return {name: value for name in _NAMES if (value := getattr(record, name, ""))}


class _Text(logging.Formatter):
    """`12:30:01 I worker decode/0: message [request_id=7]`."""

    def __init__(self, actor: str) -> None:
        super().__init__()
        self._actor = actor

    def format(self, record: logging.LogRecord) -> str:
        actor = getattr(record, "actor", self._actor)
        names = _names(record)
        line = "{} {} {}: {}{}".format(
            time.strftime("%H:%M:%S", time.localtime(record.created)),
            record.levelname[0],
            actor,
            record.getMessage(),
            f" [{' '.join(f'{key}={value}' for key, value in names.items())}]" if names else "",
        )
        traceback = _traceback(self, record)
        return f"{line}\n{traceback}" if traceback else line


class _Json(logging.Formatter):
    """One JSON object a line, a traceback in its `exception`."""

    def __init__(self, actor: str) -> None:
        super().__init__()
        self._actor = actor

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "actor": getattr(record, "actor", self._actor),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= _names(record)
        traceback = _traceback(self, record)
        if traceback:
            event["exception"] = traceback
        return json.dumps(event)


def configure(log_format: str, level: str, actor: str) -> None:
    """Send the process's log to standard error.

    log_format: one of `FORMATS`. level: one of `LEVELS`. actor: who logs where a record says
    nothing else.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(actor) if log_format == "json" else _Text(actor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("anyserve").setLevel(level.upper())
