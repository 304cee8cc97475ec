"""From a list to a table: a real list with its captions is fed, fetched by workers that are killed on the way,
and exported. One row a task comes out, its caption byte for byte the source's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from faults_support import FULL, KEYS, Fleet, counts, until

from dlconsole.demo.web import SimulatedWeb, WebConfig
from dlconsole.services.private_redis import PrivateRedis

parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is not installed")


def dlconsole(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "dlconsole", *words, "--dataset", "ds"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    return out


@pytest.mark.parametrize("rows", [600, pytest.param(10_000, marks=FULL)])
def test_a_list_with_captions_becomes_a_table_although_everybody_is_killed_on_the_way(
    rows: int, shared_data: Path, server: PrivateRedis, client: redis.Redis, fleet: Fleet, tmp_path: Path
) -> None:
    source = tmp_path / "list.parquet"
    wanted = parquet.read_table(shared_data / "urls/laion-10k.parquet").slice(0, rows)
    parquet.write_table(wanted, source, row_group_size=700)
    words = ("feed", str(source), "--redis", server.url, "--block", "100")
    feeder = dlconsole(tmp_path, *words)
    until(lambda: client.llen(KEYS.task) or feeder.poll() is not None)
    feeder.send_signal(signal.SIGKILL)
    feeder.communicate()
    finished(dlconsole(tmp_path, *words))
    assert client.llen(KEYS.task) == int(client.get(KEYS.fed) or 0) == rows

    with SimulatedWeb(WebConfig(latency_s=0.002)) as web:
        to_web = {"FETCH__PROXY": f"http://{web.address}", "FETCH__CA_FILE": str(web.ca_path)}
        to_web |= {"FETCH__MAX_BYTES": "1MiB", "FETCH__DEADLINE_S": "2", "WORKER__BATCH": "50"}
        for part in (4, 2):
            fleet.start(**to_web)
            until(lambda part=part: counts(client)["stored"] >= rows // part)
            fleet.end()
        last = fleet.start("--until-empty", **to_web)
        assert last.wait(100) == 0

    table = tmp_path / "out.parquet"
    finished(
        dlconsole(
            tmp_path,
            "ledger",
            "export",
            "--to",
            "parquet",
            "--output",
            str(table),
            "--store",
            str(fleet.store),
        )
    )
    found = parquet.read_table(table).to_pylist()
    now = counts(client)
    assert len(found) == rows == now["stored"] + now["failed"]
    assert [(row["url"], row["caption"]) for row in found] == [
        (row["URL"], row["TEXT"]) for row in wanted.to_pylist()
    ]
    assert [row["__index_level_0__"] for row in found] == [
        row["__index_level_0__"] for row in wanted.to_pylist()
    ]
    stored = [row for row in found if row["outcome"] == "stored"]
    assert len(stored) == now["stored"]
    for row in stored:
        assert (fleet.store / row["path"].lstrip("/")).stat().st_size == row["bytes"]
    assert all(row["kind"] and row["message"] for row in found if row["outcome"] == "failed")
