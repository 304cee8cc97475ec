"""img2dataset beside ours, where somebody has installed it: never a dependency, in an environment of its own.

Its command as its manual has it, one process, everything on the client's core. The time is the one that
img2dataset itself notes for its shard: from reading the list to the last file, without starting Python,
importing and ending, which take it several seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import islice
from pathlib import Path
from typing import Final

from bench.contenders import Order, Result
from bench.fetch_rig import Bench, Errand, new_folder
from bench.rig import RigError, child
from bench.webs import check_pictures

VARIABLE: Final = "DLCONSOLE_BENCH_IMG2DATASET"
_RUN_S: Final = 180.0
_COMMAND: Final = (
    *("-W", "ignore", "-m", "img2dataset.main"),
    *("--resize_mode", "no", "--skip_reencode", "--output_format", "files", "--processes_count", "1"),
)


def why_not(python: str) -> str:
    """Why it cannot be run with this interpreter; empty: it can."""
    if not python:
        return f"name the Python of an environment that has it: --img2dataset PYTHON, or {VARIABLE}"
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('img2dataset') is None)"
    try:
        found = subprocess.run([python, "-c", program], check=False, capture_output=True).returncode == 0
    except OSError as error:
        return f"{python}: {error.strerror}"
    return "" if found else f"{python} has no img2dataset"


def run(bench: Bench, python: str, order: Order, *, keep: bool) -> Result:
    """Fetch the first `count` URLs with `concurrency` threads; CPU time is not known (0)."""
    with new_folder(Path(order.store), keep=keep) as out:
        urls = out / "urls.txt"
        with Path(order.urls).open("rb") as source:
            urls.write_bytes(b"".join(islice(source, order.count)))
        arguments = [
            *(python, *_COMMAND, "--url_list", urls, "--output_folder", out / "store"),
            *("--thread_count", str(order.concurrency), "--number_sample_per_shard", str(order.count)),
        ]
        environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        with (
            (out / "words").open("w+") as words,
            child(
                arguments,
                bench.cores.client,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                cwd=out,
                env=environment,
            ) as process,
        ):
            code = process.wait(_RUN_S)
            noted = out / "store" / "00000_stats.json"
            if code or not noted.exists():
                words.seek(0)
                raise RigError(f"img2dataset ended with status {code}: {words.read()[-2000:].strip()}")
        said = json.loads(noted.read_text(encoding="utf-8"))
        if said["successes"] != order.count:
            raise RigError(
                f"img2dataset stored {said['successes']:,} of {order.count:,}: {said['status_dict']}"
            )
        good = Errand(Path(order.urls), order.count).good()
        check_pictures((out / "store").rglob("*.jpg"), good, bench.pictures)
        return Result(said["end_time"] - said["start_time"], 0.0, said["successes"])
