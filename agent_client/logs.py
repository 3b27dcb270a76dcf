"""Structured log lines of agent and service: time, level, logger, message, and every `extra` field by name."""

import json
import logging
import sys
from typing import Any

_PLAIN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


class StructuredFormatter(logging.Formatter):
    """Writes `message key=value ...`, or one JSON object a line."""

    def __init__(self, *, as_json: bool = False) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; a traceback follows on lines of its own, or in the field `error`."""
        extra = {key: value for key, value in vars(record).items() if key not in _PLAIN and not key.startswith("_")}
        head = {"at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname, "logger": record.name}
        error = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            fields = {**head, "message": record.getMessage(), **extra} | ({"error": error} if error else {})
            return json.dumps(fields, default=str)
        words = [*head.values(), record.getMessage(), *(f"{key}={_quoted(value)}" for key, value in extra.items())]
        return " ".join(words) + (f"\n{error}" if error else "")


def log_to_stderr(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Send every log line of this process to standard error, structured."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(StructuredFormatter(as_json=as_json))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or not text else text
