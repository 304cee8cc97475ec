"""Runs exports and requeues in children that die, or fail, at a chosen step; orders come on standard input.

A step is a call to the system that changes something, or a command sent to Redis. The calls are wrapped
here, in the child; the program knows nothing of it. One order a line, as JSON:

    {"do": "export", "settings": {…}, "at": 7, "how": "kill", …}

`at` 0 is never. `how`: "kill" before the step; "half" after half of a write; "fail" makes the call raise
EIO. The answer, one line: {"status": exit status or minus the signal, "steps": [...], "report": {...}}.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import redis.connection

from dlconsole.errors import DlconsoleError
from dlconsole.services import error_export, error_requeue, spool
from dlconsole.services.error_items import Filter
from dlconsole.settings import Settings

WRAPPED = ("write", "pwrite", "fsync", "rename", "ftruncate", "unlink", "mkdir")


class Steps:
    """Counts steps, and strikes at the chosen one."""

    def __init__(self, at: int, how: str) -> None:
        self.names: list[str] = []
        self._at, self._how = at, how

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            self.names.append(name)
            if len(self.names) == self._at:
                if self._how == "fail" and name != "redis":
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                if self._how == "half" and name == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                if self._how != "fail":
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return step


def work(order: dict[str, Any]) -> dict[str, Any]:
    """In the child: do what was ordered; the answer where it lives to give one."""
    settings = Settings.model_validate(order["settings"])
    if "file_size" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))
    if "silent_ms" in order:
        spool.SILENT_MS = order["silent_ms"]
    steps = Steps(order.get("at", 0), order.get("how", "kill"))
    for name in WRAPPED:
        setattr(os, name, steps.wrap(name, getattr(os, name)))
    connection = redis.connection.AbstractConnection
    connection.send_packed_command = steps.wrap("redis", connection.send_packed_command)
    stop = threading.Event()
    try:
        if order["do"] == "export":
            watcher = error_export.Watcher(stop, lambda _text: None, lambda _report: None)
            report: Any = error_export.export(settings, watcher, limit=order.get("limit"))
        else:
            chosen = Filter(**order.get("filter", {}))
            paths = [error_requeue.Path(path) for path in order.get("paths", ())]
            wanted = error_requeue.Order(
                chosen, stop, lambda _text: None, lambda _report: None, order.get("limit")
            )
            report = error_requeue.requeue(settings, wanted, paths)
    except DlconsoleError as error:
        return {"status": 1, "steps": steps.names, "error": str(error)}
    return {"status": 0, "steps": steps.names, "report": asdict(report)}


def main() -> None:
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = json.dumps(work(json.loads(line))).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        ended = {"status": os.waitstatus_to_exitcode(status), "steps": []}
        print(said.decode() if said else json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
