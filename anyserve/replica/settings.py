"""TraceSetting and LogSettings: what is in force, and the few things that a client may change."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from anyserve_protos import inference as pb

from anyserve.errors import InvalidArgument, Unimplemented

_TRACE = {
    "trace_file": [""],
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_mode": ["triton"],
}
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}


class Settings:
    """The replica's log level, and trace settings that stay off.

    Traces hold every request's times, so they are recorded over the admin socket (`anyserve
    trace`) and not for whoever reaches the inference port.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("anyserve")

    async def trace(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """The settings in force; asking for others is UNIMPLEMENTED."""
        for key, asked in request.settings.items():
            if key not in _TRACE:
                raise InvalidArgument(f"trace setting {key!r} is unknown")
            if asked.value and asked.value != _TRACE[key]:
                raise Unimplemented(
                    f"trace setting {key!r} can't be changed: record with `anyserve trace`"
                )
        return pb.TraceSettingResponse(
            settings={
                key: pb.TraceSettingResponseSettingValue(value=list(value))
                for key, value in _TRACE.items()
            }
        )

    async def log(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Set what is logged, and say what is in force.

        `log_info`, `log_warning` and `log_error` are booleans; `log_verbose_level` over 0 is debug.
        """
        current = self._current()
        wanted = dict(current)
        for key, setting in request.settings.items():
            if key not in current:
                raise InvalidArgument(f"log setting {key!r} is unknown")
            wanted[key] = _value(key, setting, like=current[key])
            if key in ("log_file", "log_format") and wanted[key] != current[key]:
                raise Unimplemented(f"log setting {key!r} is fixed when the replica starts")
        self._logger.setLevel(_level(wanted))
        return pb.LogSettingsResponse(
            settings={key: _setting(value) for key, value in self._current().items()}
        )

    def _current(self) -> dict[str, bool | int | str]:
        level = self._logger.getEffectiveLevel()
        return {
            "log_file": "",
            "log_format": "default",
            "log_verbose_level": 1 if level <= logging.DEBUG else 0,
            **{key: level <= threshold for key, threshold in _LEVELS.items()},
        }


def _level(wanted: Mapping[str, bool | int | str]) -> int:
    if wanted["log_verbose_level"]:
        return logging.DEBUG
    on = [threshold for key, threshold in _LEVELS.items() if wanted[key]]
    return min(on, default=logging.CRITICAL)


def _value(
    key: str, setting: pb.LogSettingsRequestSettingValue, like: bool | int | str
) -> bool | int | str:
    for value in (setting.bool_param, setting.uint32_param, setting.string_param):
        if value is not None:
            if type(value) is not type(like):
                break
            return value
    raise InvalidArgument(f"log setting {key!r} is a {type(like).__name__}")


def _setting(value: bool | int | str) -> pb.LogSettingsResponseSettingValue:
    if isinstance(value, bool):
        return pb.LogSettingsResponseSettingValue(bool_param=value)
    if isinstance(value, int):
        return pb.LogSettingsResponseSettingValue(uint32_param=value)
    return pb.LogSettingsResponseSettingValue(string_param=value)
