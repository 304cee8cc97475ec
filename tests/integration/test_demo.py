"""The demo as a user runs it: everything accounted for, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from integration_support import until
from PIL import Image

from dlconsole.demo.behaviour import Shares, behaviour_of

ENDLESS = "30000"
"""More tasks than are done before somebody interrupts; of many more, making the list would take longest."""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the demo puts what must be gone afterwards."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def demo(temporary: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dlconsole", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
            start_new_session=True,
        )

    return start


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes whose arguments or working directory are below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([*process.cmdline(), process.cwd()]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_without_a_terminal_it_prints_a_summary(
    demo: Callable[..., subprocess.Popen[str]], temporary: Path
) -> None:
    process = demo("--tasks", "300")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Every task is accounted for" in out
    assert "stored" in out
    assert list(temporary.iterdir()) == []
    assert processes_in(temporary) == []


def test_real_urls_run_through_the_proxy_to_whole_images(
    demo: Callable[..., subprocess.Popen[str]], temporary: Path, tmp_path: Path, shared_data: Path
) -> None:
    lines = (shared_data / "urls/laion-10k.txt").read_text("utf-8").splitlines()[2800:3300]
    assert "UNLIKELY" in lines
    urls = tmp_path / "urls.txt"
    urls.write_text("\n".join(lines))
    kept = tmp_path / "kept"
    process = demo("--json", "--urls", str(urls), "--store", str(kept))
    out, err = process.communicate(timeout=80)
    assert process.returncode == 0, err
    result = json.loads(out)
    expected = Counter(
        "bad_task" if line == "UNLIKELY" else behaviour_of(line, Shares(), 0).failure_kind for line in lines
    )
    assert result["stored"] == expected.pop(None)
    assert result["kinds"] == expected
    assert result["stored"] + result["failed"] == len(lines) == result["tasks"]
    assert result["legacy_counters"] == {
        "demo_tongji_succ": result["stored"],
        "demo_tongji_error": result["failed"],
        "demo_tongji_all": len(lines),
    }
    files = [path for path in kept.rglob("*") if path.is_file() and "ledger" not in path.parts]
    assert len(files) == result["files"] == result["stored"]
    for path in files:
        with Image.open(path) as image:
            image.load()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_everything_and_leaves_nothing(
    number: signal.Signals, demo: Callable[..., subprocess.Popen[str]], temporary: Path
) -> None:
    process = demo("--tasks", ENDLESS)
    until(lambda: len(psutil.Process(process.pid).children()) >= 4)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    until(lambda: not any(child.is_running() for child in children))
    assert list(temporary.iterdir()) == []
    assert processes_in(temporary) == []


def test_started_by_a_shell_with_ctrl_c_ignored_it_still_hears_sigterm(
    demo: Callable[..., subprocess.Popen[str]], temporary: Path
) -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = demo("--tasks", ENDLESS)
    finally:
        signal.signal(signal.SIGINT, old)
    until(lambda: len(psutil.Process(process.pid).children()) >= 4)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(temporary.iterdir()) == []


def test_killed_it_takes_its_children_with_it(
    demo: Callable[..., subprocess.Popen[str]], temporary: Path
) -> None:
    process = demo("--tasks", ENDLESS)
    until(lambda: len(psutil.Process(process.pid).children()) >= 4)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    until(
        lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), within_s=60
    )
    until(lambda: processes_in(temporary) == [], within_s=60)
    until(lambda: list(temporary.iterdir()) == [], within_s=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--redis", "redis://h/0"], "private Redis"),
        (["--tasks", "0"], "--tasks"),
        (["--shares", "404=2"], "404"),
        (["--urls", "/nowhere.txt"], "/nowhere.txt"),
        (["--store", "."], "not empty"),
        (["--store", "/dev/null/x"], "--store"),
        (["--urls", "/nowhere.txt", "--tasks", "5"], "--tasks"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], said: str, demo: Callable[..., subprocess.Popen[str]], temporary: Path
) -> None:
    process = demo("--headless", *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode in {1, 2}
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert list(temporary.iterdir()) == []


def test_the_users_own_settings_do_not_reach_the_demo(
    demo: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLCONSOLE_FETCH__PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("DLCONSOLE_FEED__MAX_URL_BYTES", "16")
    monkeypatch.setenv("DLCONSOLE_READ_ONLY", "true")
    process = demo("--json", "--tasks", "50", "--shares", "good")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["stored"] == 50


def test_a_web_that_always_fails_is_accounted_for_too(demo: Callable[..., subprocess.Popen[str]]) -> None:
    process = demo("--json", "--tasks", "50", "--shares", "good,404=1.0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["stored"], result["kinds"]) == (0, {"http_status": 50})
