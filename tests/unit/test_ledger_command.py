"""`dlconsole ledger`: what it says, to people and to machines, and what it refuses."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from ledger_support import LIST, ledger, line

from dlconsole.cli import main
from dlconsole.commands import ledger as command
from dlconsole.services import ledger_merge
from dlconsole.services.ledger_stats import Sizes

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `dlconsole ledger` for 'pets' in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run_words(*words: str) -> tuple[int, str, str]:
        status = main(["ledger", *words, "--dataset", "pets"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_words


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """`./store`, with a ledger of three tasks, one of them done twice, a torn line and one that is none."""
    image = {"status": 200, "format": "JPEG", "started_ms": 1_700_000_000_000, "ended_ms": 1_700_000_002_000}
    lines = [
        line(f"{LIST}-1", **image, bytes=1000, width=640, height=480, caption="a cat"),
        line(f"{LIST}-2", outcome="failed", kind="timeout", message="too slow", ended_ms=1_700_000_003_000),
        line(
            f"{LIST}-2",
            **image | {"ended_ms": 1_700_000_062_000},
            bytes=3000,
            width=100,
            height=50,
            attempts=2,
        ),
        line(
            f"{LIST}-3",
            outcome="failed",
            kind="dns",
            started_ms=1_700_000_001_000,
            ended_ms=1_700_000_002_000,
        ),
        b"half a \x1b[2Jli",
    ]
    store = ledger(tmp_path / "store", {"web-1.jsonl": lines})
    with (store / "pets" / "ledger" / "web-1.jsonl").open("ab") as file:
        file.write(b'{"key":"torn')
    return store


STATS = """\
tasks        3
stored       2, 66.7 %
failed       1, 33.3 %
  dns                             1
formats      JPEG 2
bytes        3.91 KiB
                    p5       p50       p95       max
  an image    0.98 KiB  0.98 KiB  2.93 KiB  2.93 KiB
  width, px        100       100       640       640
  height, px        50        50       480       480
attempts     1: 2, 2: 1
time         2023-11-14 22:13:20 UTC to 2023-11-14 22:14:22 UTC, 1 m 2 s
read         4 lines in 1 file, {size} B; 1 superseded by later ones
"""


def test_stats_count_each_task_once_and_say_what_was_left_out(run: Run, store: Path) -> None:
    status, out, err = run("stats")
    path = store / "pets" / "ledger" / "web-1.jsonl"
    assert (status, out) == (0, STATS.format(size=path.stat().st_size))
    assert err.splitlines() == [
        f"dlconsole: {path}: the last line is unfinished (still being written, or cut off); dropped",
        "dlconsole: warning: 1 line is no ledger's, and left out:",
        f"dlconsole:   {path} line 5: no JSON object: half a ·[2Jli",
    ]


def test_stats_for_machines(run: Run, store: Path) -> None:
    status, out, err = run("stats", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert {key: found[key] for key in ("tasks", "stored", "failed", "kinds", "formats", "attempts")} == {
        "tasks": 3,
        "stored": 2,
        "failed": 1,
        "kinds": {"dns": 1},
        "formats": {"JPEG": 2},
        "attempts": {"1": 2, "2": 1},
    }
    assert found["width"] == {"p5": 100, "p50": 100, "p95": 640, "max": 640, "total": 740, "count": 2}
    assert (found["first_ms"], found["last_ms"]) == (1_700_000_000_000, 1_700_000_062_000)
    assert {key: found["read"][key] for key in ("lines", "bad", "superseded")} == {
        "lines": 4,
        "bad": 1,
        "superseded": 1,
    }


def test_stats_of_a_ledger_without_lines(run: Run, tmp_path: Path) -> None:
    ledger(tmp_path / "store", {"a.jsonl": []})
    status, out, _ = run("stats")
    assert (status, out.splitlines()[0]) == (0, "tasks        0")
    assert json.loads(run("stats", "--json")[1])["success_ratio"] is None


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 5000), min_size=1), st.integers(1, 100))
def test_percentiles_are_exact_to_a_2000th(values: list[int], percent: int) -> None:
    sizes = Sizes()
    for value in values:
        sizes.add([value])
    true = sorted(values)[max(1, -(-len(values) * percent // 100)) - 1]
    found = sizes.percentile(percent)
    assert found == true if true < 4096 else abs(found - true) <= true / 2000
    assert (sizes.total, sizes.greatest, sizes.count) == (sum(values), max(values), len(values))


def test_an_export_says_what_it_wrote(run: Run, store: Path, tmp_path: Path) -> None:
    status, out, _ = run("export", "--output", "pets.jsonl", "--columns", "key,caption", "--only", "stored")
    size = (tmp_path / "pets.jsonl").stat().st_size
    assert (status, out.splitlines()[0]) == (0, f"pets.jsonl: 2 rows of 3 tasks of 2 columns, {size} B")
    assert (tmp_path / "pets.jsonl").read_text().splitlines() == [
        f'{{"key":"{LIST}-1","caption":"a cat"}}',
        f'{{"key":"{LIST}-2","caption":null}}',
    ]
    found = json.loads(run("export", "--output", "o.csv", "--columns", "key,bytes", "--json")[1])
    assert found["columns"] == [{"name": "key", "type": "string"}, {"name": "bytes", "type": "int64"}]
    assert (found["rows"], found["read"]["tasks"]) == (3, 3)


def test_a_merge_can_be_read_as_a_ledger(run: Run, store: Path) -> None:
    assert run("merge", "--output", "m.jsonl.zst")[1].startswith("m.jsonl.zst: 3 lines, ")
    assert run("stats", "--file", "m.jsonl.zst")[1].splitlines()[:-1] == STATS.splitlines()[:-1]


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(run: Run, store: Path, tmp_path: Path) -> None:
    status, out, _ = run("merge", "--output", "m.jsonl", "--dry-run")
    assert status == 0
    assert f"  {store}/pets/ledger/web-1.jsonl\n" in out
    assert "\nlines        about 5\ntemporary    none: it fits into memory\nwould write  m.jsonl\n" in out
    assert json.loads(run("stats", "--dry-run", "--json")[1])["temp_bytes"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export", "`ledger export` needs --output FILE"),
        ("merge", "`ledger merge` needs --output FILE"),
        ("stats --output o.csv", "`ledger stats` takes no --output"),
        ("merge --output m.jsonl --only stored", "`ledger merge` takes no --only"),
        ("merge --output m.csv", "m.csv: a merged ledger's name ends in .jsonl, .jsonl.gz, .jsonl.zst"),
        (
            "export --output o.xls",
            "o.xls: its name says no format: end it in .parquet, .csv or .jsonl, or give --to",
        ),
        (
            "export --output store/o.csv --file a.jsonl --store b",
            "--file and --store do not go together: name",
        ),
        ("export --output gone/o.csv", "gone: there is no such folder"),
        ("export --output store --to csv", "store: is a folder; name a file in it"),
        ("export --output there.csv", "there.csv: is there already; --force replaces it"),
    ],
)
def test_wrong_use_is_one_line(run: Run, store: Path, tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "there.csv").touch()
    status, out, err = run(*words.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"dlconsole: {message}")
    assert len(err.splitlines()) == 1


def test_an_output_is_replaced_only_with_force(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("old")
    assert run("export", "--output", "o.csv")[0] == 2
    assert (tmp_path / "o.csv").read_text() == "old"
    assert run("export", "--output", "o.csv", "--force")[0] == 0
    assert (tmp_path / "o.csv").read_text().startswith("key,outcome,")


def test_no_ledger_there_is_said_with_its_folder(run: Run, tmp_path: Path) -> None:
    status, _, err = run("stats", "--store", "here")
    assert status == 1
    assert err.startswith("dlconsole: here/pets/ledger: there is no ledger; --store names the folder")


def test_without_room_nothing_is_written(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_merge, "room", lambda _size, _count: 1 << 60)
    status, _, err = run("merge", "--output", "m.jsonl")
    assert status == 1
    assert "sorting takes about 1024.0 PiB there; --temp names another folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert "temporary    about 1024.0 PiB in " in run("merge", "--output", "m.jsonl", "--dry-run")[1]


def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    """A real process and a real signal, while it writes its temporary runs."""
    random.seed(1)
    lines = [line(f"{LIST}-{row}", sha256=f"{random.getrandbits(256):064x}" * 8) for row in range(15_000)]
    ledger(tmp_path / "store", {f"{number}.jsonl": lines for number in range(4)})
    words = ["ledger", "merge", "--output", "m.jsonl.gz", "--store", "store", "--dataset", "pets"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlconsole", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob(".m.jsonl.gz.*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "dlconsole: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_bar_shows_each_phase_with_its_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(command, "_DRAW_EVERY_S", 0.0)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with command._progress(quiet=False) as tell:
        tell("reading", 0, 200, 0)
        tell("reading", 100, 200, 1234)
        time.sleep(0.15)
        tell("writing", 0, 50, 0)
        tell("writing", 50, 50, 77)
        time.sleep(0.15)
    err = capsys.readouterr().err
    assert "1,234 rows" in err
    assert "77 rows" in err
