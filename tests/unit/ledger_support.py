"""Ledgers for the tests of their reader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIST = "0a1b2c3d0a1b"


def line(key: str = f"{LIST}-1", **fields: Any) -> bytes:
    """A line as a worker writes it, without its newline."""
    record = {"key": key, "outcome": "stored", "url": f"https://pets.example/{key}.jpg"} | fields
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def ledger(store: Path, files: dict[str, Sequence[bytes]], dataset: str = "pets") -> Path:
    """A store with these files in the dataset's ledger: their lines, each with a newline."""
    folder = store / dataset / "ledger"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_bytes(b"".join(one + b"\n" for one in lines))
    return store
