"""What each way to start dlconsole loads: a module too many costs every start of every worker."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("textual", "redis", "pydantic", "pycurl", "rich", "msgspec", "numpy", "PIL", "psutil", "asyncio")
WORKER = ("dlconsole.workers.child", "dlconsole.commands.worker", "dlconsole.services.supervisor")


def loaded_by(code: str) -> set[str]:
    """The top-level packages in `sys.modules` of a fresh interpreter behind `code`."""
    report = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    words = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_none_of_the_libraries() -> None:
    code = "from dlconsole.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    loaded = loaded_by(code)
    assert "dlconsole" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_worker_loads_neither_textual_nor_what_only_the_demo_needs() -> None:
    loaded = loaded_by("".join(f"import {name}\n" for name in WORKER))
    assert {"dlconsole", "redis"} <= loaded
    assert loaded.isdisjoint({"textual", "numpy", "PIL", "rich", "pydantic_settings"})


def test_a_supervisor_of_a_redis_that_it_was_told_loads_no_more_than_its_settings_need() -> None:
    """It only starts workers, and is started as often."""
    code = "from dlconsole.cli import main\n"
    code += "main(['--worker', '--redis', 'redis://127.0.0.1:1/0', '--context', 'none'])"
    begun = "from dlconsole.commands import worker\nfrom dlconsole import config, log\n"
    begun += "from dlconsole.services import supervisor\n"
    loaded = loaded_by(begun + code)
    assert {"dlconsole", "pydantic"} <= loaded
    assert loaded.isdisjoint({"redis", "asyncio", "psutil", "rich", "textual", "pycurl", "PIL", "numpy"})


def test_a_decoder_begins_with_nothing_of_ours() -> None:
    loaded = loaded_by("import dlconsole.workers.decoder")
    assert "dlconsole" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("engine", "its_own", "the_other"), [("curl", "pycurl", "requests"), ("requests", "requests", "pycurl")]
)
def test_a_worker_loads_the_library_of_its_engine_only(engine: str, its_own: str, the_other: str) -> None:
    code = "".join(f"import {name}\n" for name in WORKER)
    code += (
        "from dlconsole.settings import Settings\nfrom dlconsole.workers.downloader import Store, _engine\n"
    )
    code += f"settings = Settings(worker={{'engine': {engine!r}}})\n"
    loaded = loaded_by(f"{code}_engine(settings, bool, Store(settings.worker.store_dir)).close()")
    assert its_own in loaded
    assert the_other not in loaded


@pytest.mark.parametrize("robots", [False, True])
def test_what_reads_robots_txt_is_loaded_where_that_counts(robots: bool) -> None:
    name = "dlconsole.workers.fetch.robots"
    code = "from pathlib import Path\nfrom dlconsole.settings import Settings\n"
    code += "from dlconsole.workers.downloader import _engine\nfrom dlconsole.workers.files import Store\n"
    code += f"_engine(Settings(fetch={{'robots': {robots}}}), bool, Store(Path('.'))).close()\n"
    loaded_by(f"{code}import sys\nassert ({name!r} in sys.modules) is {robots}")


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "dlconsole", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: dlconsole [COMMAND]")


def test_a_feeder_of_plain_text_loads_nothing_that_only_other_lists_need() -> None:
    code = "import pathlib, tempfile\nfrom dlconsole.services import feed_run, feeder\n"
    code += "from dlconsole.settings import Settings\n"
    code += "path = pathlib.Path(tempfile.mkdtemp(), 'urls.txt')\npath.write_text('http://a.example/')\n"
    code += "assert feeder.count(path, Settings()).tasks == 1\npath.unlink()\npath.parent.rmdir()"
    loaded = loaded_by(code)
    assert "redis" in loaded
    assert loaded.isdisjoint({"pyarrow", "zstandard", "requests", "numpy"})
