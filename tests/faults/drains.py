"""What the tests of drains share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

Do = Callable[..., dict[str, Any]]


def until(condition: Callable[[], Any], *, within_s: float = 30) -> Any:
    """Wait until `condition` gives something true, and return it."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
    return value


def error(number: int, kind: str = "timeout", status: int = 900) -> bytes:
    """An error item as ours look."""
    fields = {"img_path": f"/ds/{number}.jpg", "img_url": f"http://h{number % 3}.example/{number}"}
    return json.dumps(fields | {"status": status, "error_msg": f"{kind}: why"}).encode()


def written(folder: Path) -> list[bytes]:
    """Every line of every file of a folder; the last of each must be whole."""
    lines: list[bytes] = []
    for path in sorted(folder.glob("*.txt")):
        content = path.read_bytes()
        assert not content or content.endswith(b"\n"), path
        lines += content.splitlines()
    return lines


def leftovers(client: redis.Redis) -> set[bytes]:
    """Keys that a finished export or requeue has no more use for."""
    found = set(client.keys("{ds_task_error}:dl:*")) - {b"{ds_task_error}:dl:source"}
    return {key for key in found if b":requeued:" not in key}
