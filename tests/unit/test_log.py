"""What is logged, as JSON Lines and as text; what is not: lower levels, passwords, faults of the stream."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from dlconsole import log
from dlconsole.settings import LogSettings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail(text: str) -> None:
    raise OSError(text)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_what_belongs_to_it() -> None:
    stream = io.StringIO()
    logger = log.configure(LogSettings(), stream, worker=3)
    logger.info("stored", path="/a\nb", error=ValueError("x"))
    (line,) = lines_of(stream)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    assert line == {
        "worker": 3,
        "path": "/a\nb",
        "error": "ValueError('x')",
        "event": "stored",
        "level": "info",
    }


@pytest.mark.parametrize(("level", "count"), [("debug", 5), ("info", 4), ("warning", 3), ("error", 2)])
def test_what_is_below_the_level_is_left_out(level: str, count: int) -> None:
    stream = io.StringIO()
    logger = log.configure(LogSettings(level=level), stream)
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, name)("x")
    assert [line["level"] for line in lines_of(stream)] == [
        "debug", "info", "warning", "error", "critical",
    ][-count:]  # fmt: skip


@pytest.mark.parametrize("settings", [LogSettings(format="json"), LogSettings(format="text")])
def test_no_password_gets_in(settings: LogSettings) -> None:
    stream = io.StringIO()
    logger = log.configure(settings, stream, redis="redis://:secret@h/0")
    logger.error("no answer from redis://u:secret@h:1/0", url="rediss://u:secret@h")
    proxy = "http://me:secret@proxy"
    try:
        fail(proxy)
    except OSError:
        logger.exception("failed")
    assert "secret" not in stream.getvalue()
    assert stream.getvalue().count(":***@") == 5


def test_an_exception_is_told_with_its_trace() -> None:
    as_json, as_text = io.StringIO(), io.StringIO()
    for stream, settings in ((as_json, LogSettings()), (as_text, LogSettings(format="text"))):
        logger = log.configure(settings, stream)
        try:
            fail("odd")
        except OSError:
            logger.exception("failed", worker=1)
    (line,) = lines_of(as_json)
    assert line["level"] == "error" and line["exception"].startswith("Traceback")
    assert line["exception"].endswith("OSError: odd")
    first, *trace = as_text.getvalue().splitlines()
    assert first.endswith("[error   ] failed worker=1")
    assert trace[0].startswith("Traceback") and trace[-1] == "OSError: odd"


def test_text_is_for_a_terminal_and_coloured_only_there() -> None:
    plain, terminal = io.StringIO(), Terminal()
    log.configure(LogSettings(format="text"), plain).warning("two words", a="b", c="d e", n=1)
    assert plain.getvalue().endswith("Z [warning ] two words a=b c='d e' n=1\n")
    log.configure(LogSettings(), terminal).warning("two words", a="b", c="d e", n=1)
    assert "\x1b[33mwarning" in terminal.getvalue()
    assert re.sub(r"\x1b\[\d+m", "", terminal.getvalue())[27:] == plain.getvalue()[27:]


def test_a_stream_that_is_gone_costs_the_line_only() -> None:
    stream = io.StringIO()
    logger = log.configure(LogSettings(), stream)
    stream.close()
    logger.info("nobody reads this")


def test_each_logger_keeps_its_own_stream() -> None:
    first, second = io.StringIO(), io.StringIO()
    one, other = log.configure(LogSettings(), first), log.configure(LogSettings(level="error"), second)
    one.info("a")
    other.info("b")
    other.error("c")
    assert [line["event"] for line in lines_of(first)] == ["a"]
    assert [line["event"] for line in lines_of(second)] == ["c"]
