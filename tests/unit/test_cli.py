"""The command line: one line for each mistake, exit statuses, and no secrets anywhere."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlconsole import cli
from dlconsole.cli import COMMANDS, main
from dlconsole.settings import Settings
from dlconsole.units import parse_bytes, parse_seconds

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process: (exit status, stdout, stderr)."""

    def run_words(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_common_options_and_explains_itself(command: str, run: Run) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    for option in ("--config", "--context", "--redis", "--dataset"):
        assert option in out
    module = importlib.import_module(f"dlconsole.commands.{command.replace('-', '_')}")
    assert module.__doc__.splitlines()[0] in out


WORKER_SECTIONS = ("worker", "fetch", "dns", "retry", "ledger", "guard")


@pytest.mark.parametrize("section", WORKER_SECTIONS)
def test_the_help_of_the_worker_explains_every_setting_that_it_obeys(section: str, run: Run) -> None:
    """A limit, with or without a flag, says what it is and, in its unit, what it is where nothing is set."""
    parser, _ = cli._parser_for(["--worker"])
    flags = {action.dest: action.help or "" for action in parser._actions}
    _, out, _ = run("--worker", "--help")
    below = " ".join(out[out.index("settings without a flag") :].split())
    for name, field in type(getattr(Settings(), section)).model_fields.items():
        key = f"{section}.{name}"
        help_text = flags.get(key) or below.partition(f" {key} ")[2]
        assert len(help_text.split()) >= 3, key
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            found = re.findall(r"\(([^()]*)\)", help_text.partition(f" {section}.")[0])
            assert any(amount(name, text) == field.default for text in found), (key, found)
        elif isinstance(field.default, str) and key in flags:
            assert f"({field.default or 'none'})" in help_text, key


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("fetch.per_host", ["at once", "redirects included", "each process", "robots.txt"]),
        ("fetch.per_host_per_s", ["a second", "redirects included", "each process", "robots.txt"]),
        ("fetch.park_s", ["429", "503", "fleet", "doubled up to retry.max_s", "given up", "attempts"]),
        ("fetch.max_redirects", ["redirects", "each checked"]),
        ("fetch.max_bytes", ["whatever its length is said to be", "nothing is unpacked"]),
        ("fetch.max_header_bytes", ["trailers included"]),
        ("fetch.proxy", ["not the environment's"]),
    ],
)
def test_the_help_of_the_worker_says_what_counts_for_a_limit_and_what_follows(
    setting: str, facts: list[str]
) -> None:
    parser, _ = cli._parser_for(["--worker"])
    (help_text,) = (action.help or "" for action in parser._actions if action.dest == setting)
    assert [fact for fact in facts if fact not in help_text] == []


def amount(name: str, text: str) -> float | None:
    """The number that a help text gives as a default, read as the setting would be."""
    parse = parse_seconds if name.endswith("_s") else parse_bytes if "bytes" in name else float
    try:
        return parse(text.partition(":")[0])
    except ValueError:
        return None


@pytest.mark.parametrize(
    "words",
    ["--worker --dead 5", "--worker --max-byte 5", "errors export --foll", "--data x", "config show --js"],
)
def test_half_a_flag_is_wrong_use(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser, rest = cli._parser_for(words.split())
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(rest)
    assert stop.value.code == 2
    assert "unrecognized arguments: --" in capsys.readouterr().err


def test_help_lists_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in COMMANDS)


def test_an_unknown_command_is_wrong_use(run: Run) -> None:
    status, _, err = run("fed", "urls.txt")
    assert status == 2
    assert "unknown command 'fed' (commands: console, worker, feed, " in err


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("datset = 'x'", "{path}: unknown key 'datset'; did you mean 'dataset'?"),
        ("[worker]\nlease_s = '20 q'", "{path}: key 'worker.lease_s': accepted: a number of seconds"),
        ("dataset =", "{path}: not valid TOML: "),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(toml: str, line: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "c.toml"
    path.write_text(toml)
    status, out, err = run("config", "show", "--config", str(path))
    assert (status, out) == (2, "")
    assert err.startswith("dlconsole: " + line.format(path=path))
    assert len(err.splitlines()) == 1


def test_the_real_program_shows_no_traceback_unless_asked() -> None:
    words = [sys.executable, "-m", "dlconsole", "config", "show", "--dataset", "a b"]
    quiet = subprocess.run(words, capture_output=True, text=True, check=False)
    assert quiet.returncode == 2
    assert len(quiet.stderr.splitlines()) == 1
    loud = subprocess.run([*words, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in loud.stderr


def test_a_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dlconsole", "config", "show", "--json"],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words",
    [
        ("redis://u:s3cret@h/0",),
        ("config", "show", "redis://u:s3cret@h/0"),
        ("config", "show", "redis://h/0?password=s3cret"),
        ("config", "show", "--redis", "redis://u:s3cret@h/x"),
        ("config", "show", "--redis", "redis://u:s3cret@h/0"),
        ("config", "show", "--json", "--redis", "redis://h?password=s3cret"),
        ("redis", "status", "--redis", "redis://u:s3cret@h/0"),
        ("redis", "status", "--json", "--redis", "redis://u:s3cret@h/0"),
    ],
    ids=" ".join,
)
def test_no_output_shows_a_password(words: tuple[str, ...], run: Run) -> None:
    _, out, err = run(*words)
    assert out + err
    assert "s3cret" not in out + err


# -- dlconsole config -----------------------------------------------------------------------------


def test_config_show_says_where_each_value_comes_from(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[contexts.prod]\ndataset = 'laion5b'\n[worker]\nbatch = 7\n")
    monkeypatch.setenv("DLCONSOLE_WORKER__PROCESSES", "3")
    words = ("--config", str(path), "--context", "prod", "--redis", "redis://h/0")
    status, out, _ = run("config", "show", "--json", *words)
    assert status == 0
    found = {key: (item["value"], item["from"]) for key, item in json.loads(out)["settings"].items()}
    assert found["dataset"] == ("laion5b", "context prod")
    assert found["redis"] == ("redis://h/0", "command line")
    assert found["worker.batch"] == (7, str(path))
    assert found["worker.processes"] == (3, "environment")
    assert found["worker.lease_s"] == (30.0, "default")
    _, table, _ = run("config", "show", *words)
    assert re.search(r"^dataset +\"laion5b\" +context prod *$", table, re.MULTILINE)
    assert all(key in table for key in found)


def test_config_show_without_a_file_says_where_it_would_be(run: Run, home: Path) -> None:
    _, out, _ = run("config", "show")
    assert f"There is no settings file yet; it would be {home}/.config/dlconsole/config.toml" in out


def test_config_path_prints_only_the_path_also_for_a_wrong_file(run: Run, home: Path, tmp_path: Path) -> None:
    assert run("config", "path") == (0, f"{home}/.config/dlconsole/config.toml\n", "does not exist yet\n")
    (tmp_path / "c.toml").write_text("wrong = [")
    assert run("config", "path", "--config", str(tmp_path / "c.toml")) == (
        0,
        f"{tmp_path}/c.toml\n",
        "exists\n",
    )


@pytest.mark.parametrize(
    ("words", "name", "rest"),
    [
        (["feed", "f"], "feed", ["f"]),
        (["--redis", "R", "feed", "f"], "feed", ["--redis", "R", "f"]),
        (["--dataset", "feed"], "console", ["--dataset", "feed"]),
        (["--worker", "--store", "demo"], "worker", ["--store", "demo"]),
        (["--redis", "R", "--worker"], "worker", ["--redis", "R"]),
        (["config", "show", "--config", "F"], "config", ["show", "--config", "F"]),
        (["--help"], "", ["--help"]),
        ([], "console", []),
    ],
)
def test_the_command_is_found_among_its_options(words: list[str], name: str, rest: list[str]) -> None:
    assert cli._split_command(words) == (name, rest)
