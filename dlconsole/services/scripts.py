"""The Lua scripts of `lua/`: loaded from their files, run by digest, loaded again where unknown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError


@dataclass(frozen=True, slots=True)
class Script:
    """One file of `lua/`; its header has the keys, arguments and return value."""

    source: bytes
    sha: str

    def run(self, client: redis.Redis, keys: list[str], *args: str | bytes | int) -> Any:
        """Run by digest; a server that lost its scripts (restart, failover) is sent the source.

        NOSCRIPT is answered before anything runs, so this never runs a script twice.
        """
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return client.execute_command("EVAL", self.source, len(keys), *keys, *args)  # type: ignore[no-untyped-call]


@cache
def script(name: str) -> Script:
    """The script in `lua/<name>.lua`, behind what `lua/common.lua` defines."""
    folder = files("dlconsole.services").joinpath("lua")
    source = b"\n".join(folder.joinpath(f"{part}.lua").read_bytes() for part in ("common", name))
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
