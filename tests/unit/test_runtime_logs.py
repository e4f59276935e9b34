"""Log lines: the same fields as JSON and as text."""

from __future__ import annotations

import json
import logging

from bandkeeper.runtime.logs import JsonFormatter, TextFormatter


def record(**fields: object) -> logging.LogRecord:
    """A record as `logger.info("decision", extra=fields)` makes it."""
    made = logging.makeLogRecord({"name": "bandkeeper.policy", "levelno": 20, "levelname": "INFO", "msg": "decision"})
    made.created = 0.0
    vars(made).update(fields)
    return made


def test_json_carries_the_fields() -> None:
    line = json.loads(JsonFormatter().format(record(policy="serving/chat", replicas=3)))
    assert line == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "logger": "bandkeeper.policy",
        "message": "decision",
        "policy": "serving/chat",
        "replicas": 3,
    }


def test_text_quotes_what_has_spaces() -> None:
    line = TextFormatter().format(record(policy="serving/chat", why="the queue grows", empty=""))
    assert line == '00:00:00 INFO    decision policy=serving/chat why="the queue grows" empty=""'


def test_text_stays_on_one_line() -> None:
    line = TextFormatter().format(record(error="first\nsecond", pair="a=b"))
    assert line == '00:00:00 INFO    decision error="first\\nsecond" pair="a=b"'
