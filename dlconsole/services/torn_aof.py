"""An append-only file that its machine's death tore inside a transaction: found, and mended.

Redis cuts such a file off behind its last whole command, also inside a transaction, whose beginning then
stays. The restart after that takes it for a part of the transaction that was written behind it, and a
block is pushed twice, or a task popped and lost. (Valkey's fix: https://github.com/valkey-io/valkey/pull/4342.)
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from dlconsole.services import connection

_POLL_S: Final = 0.02
_MAX_LOG_BYTES: Final = 2**20


def was_cut(log: Path, start: int) -> bool:
    """Whether the server, whose log of this start begins at the offset `start`, cut its file off."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(start)
        return b"Truncating the AOF" in file.read(_MAX_LOG_BYTES)
    return False


def mend(url: str) -> None:
    """Have the server write its file anew, and wait until it has. Raises RedisUnavailable."""
    with connection.translated(url), connection.connect(url, name="dlconsole-redis") as client:
        client.bgrewriteaof()
        while any(client.info("persistence")[f"aof_rewrite_{it}"] for it in ("in_progress", "scheduled")):
            time.sleep(_POLL_S)
