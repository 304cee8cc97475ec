"""Where settings come from: layers, contexts, and refusals that name the source, the key and what it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlconsole.config import Loaded, config_path, flat, load
from dlconsole.errors import ConfigError

Configure = Callable[[str], Path]


@pytest.fixture
def configure(home: Path) -> Configure:
    """Write the settings file that is found without any option."""

    def write(text: str) -> Path:
        path = home / ".config/dlconsole/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    return write


def refusal(flags: dict[str, Any] | None = None, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags, config)
    return str(caught.value)


# -- the four layers ------------------------------------------------------------------------------


def test_without_anything_every_value_is_a_default(home: Path) -> None:
    loaded = load()
    assert loaded.settings.redis == ""
    assert loaded.settings.dataset == "default"
    assert loaded.settings.worker.concurrency == 64
    assert loaded.settings.state_dir == home / ".local/state/dlconsole"
    assert (loaded.origins, loaded.warnings, loaded.config_exists) == ({}, (), False)


def test_each_layer_beats_the_one_before_and_the_origin_says_which(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configure("dataset = 'file'\n[worker]\nconcurrency = 10\nprocesses = 2\nbatch = 20\n")
    monkeypatch.setenv("DLCONSOLE_WORKER__CONCURRENCY", "11")
    monkeypatch.setenv("DLCONSOLE_WORKER__PROCESSES", "3")
    loaded = load({"worker.concurrency": 12})
    worker = loaded.settings.worker
    assert (loaded.settings.dataset, worker.batch, worker.processes, worker.concurrency) == (
        "file",
        20,
        3,
        12,
    )
    assert loaded.origins == {
        "dataset": str(path),
        "worker.batch": str(path),
        "worker.processes": "environment",
        "worker.concurrency": "command line",
    }


def test_a_flag_that_was_not_given_changes_nothing(configure: Configure) -> None:
    configure("dataset = 'file'\n")
    assert load({"dataset": None}).settings.dataset == "file"


def test_a_named_file_replaces_the_usual_one(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("dataset = 'usual'\n")
    for name in ("flag", "environment"):
        (tmp_path / name).write_text(f"dataset = '{name}'\n", encoding="utf-8")
    assert load().settings.dataset == "usual"
    monkeypatch.setenv("DLCONSOLE_CONFIG", str(tmp_path / "environment"))
    assert load().settings.dataset == "environment"
    assert load(config=tmp_path / "flag").settings.dataset == "flag"


def test_the_usual_place_follows_xdg_and_ignores_a_relative_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/elsewhere")
    assert config_path() == Path("/etc/elsewhere/dlconsole/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert config_path() == home / ".config/dlconsole/config.toml"


def test_units_are_read_in_every_layer(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure("[fetch]\ndeadline_s = '500ms'\n")
    monkeypatch.setenv("DLCONSOLE_FETCH__MAX_BYTES", "10MB")
    settings = load({"worker.lease_s": "1m"}).settings
    assert (settings.fetch.deadline_s, settings.fetch.max_bytes, settings.worker.lease_s) == (
        0.5,
        10**7,
        60.0,
    )


def test_a_list_from_the_environment_is_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCONSOLE_FETCH__ALLOW_NETWORKS", "10.1.2.3/8, fd00::/8,")
    assert load().settings.fetch.allow_networks == ("10.0.0.0/8", "fd00::/8")


def test_an_empty_variable_empties_what_can_be_empty(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("redis = 'redis://h'\n[fetch]\nallow_networks = ['10.0.0.0/8']\n")
    monkeypatch.setenv("DLCONSOLE_REDIS", "")
    monkeypatch.setenv("DLCONSOLE_FETCH__ALLOW_NETWORKS", "")
    settings = load().settings
    assert (settings.redis, settings.fetch.allow_networks) == ("", ())


@pytest.mark.parametrize("key", ["DATASET", "WORKER__PROCESSES", "WORKER__LEASE_S", "STATE_DIR", "READ_ONLY"])
def test_an_empty_variable_is_refused_where_a_value_is_needed(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DLCONSOLE_{key}", "")
    assert refusal().startswith(f"environment: key 'DLCONSOLE_{key}': accepted: ")


def test_folders_are_absolute_so_that_processes_started_elsewhere_agree(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load().settings.worker.store_dir == tmp_path / "store"
    assert load({"worker.store_dir": "images"}).settings.worker.store_dir == tmp_path / "images"
    assert load({"worker.store_dir": "~/images"}).settings.worker.store_dir == home / "images"


# -- contexts -------------------------------------------------------------------------------------

CONTEXTS = """
redis = "redis://top/0"
[contexts.prod]
redis = "redis://prod/0"
dataset = "laion5b"
colour = "red"
read_only = true
[contexts.bare]
"""


def chosen(loaded: Loaded) -> tuple[str, str, str]:
    return loaded.settings.redis, loaded.settings.dataset, loaded.origins.get("redis", "default")


def test_a_context_supplies_all_of_its_values(configure: Configure) -> None:
    configure(CONTEXTS)
    settings = load({"context": "prod"}).settings
    assert (settings.dataset, settings.colour, settings.read_only) == ("laion5b", "red", True)


def test_a_context_chosen_by_the_file_beats_the_file_and_gives_way_to_the_environment(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("context = 'prod'\n" + CONTEXTS)
    assert chosen(load()) == ("redis://prod/0", "laion5b", "context prod")
    monkeypatch.setenv("DLCONSOLE_REDIS", "redis://env/0")
    assert chosen(load()) == ("redis://env/0", "laion5b", "environment")


def test_a_context_chosen_by_the_environment_gives_way_to_the_environments_own_values(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(CONTEXTS)
    monkeypatch.setenv("DLCONSOLE_CONTEXT", "prod")
    monkeypatch.setenv("DLCONSOLE_REDIS", "redis://env/0")
    assert chosen(load()) == ("redis://env/0", "laion5b", "environment")


def test_a_context_chosen_by_a_flag_beats_the_environment_and_gives_way_to_flags(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("context = 'bare'\n" + CONTEXTS)
    monkeypatch.setenv("DLCONSOLE_CONTEXT", "bare")
    monkeypatch.setenv("DLCONSOLE_REDIS", "redis://env/0")
    assert chosen(load({"context": "prod"})) == ("redis://prod/0", "laion5b", "context prod")
    assert chosen(load({"context": "prod", "redis": "redis://flag/0"}))[0] == "redis://flag/0"


def test_what_a_context_leaves_out_comes_from_the_top_of_the_file(configure: Configure) -> None:
    configure(CONTEXTS)
    assert chosen(load({"context": "bare"}))[:2] == ("redis://top/0", "default")


def test_an_empty_context_is_none_also_where_the_file_names_one(configure: Configure) -> None:
    configure("context = 'prod'\n" + CONTEXTS)
    assert chosen(load({"context": ""}))[0] == "redis://top/0"


def test_an_unknown_context_is_refused_with_those_that_exist(configure: Configure) -> None:
    configure(CONTEXTS)
    assert refusal({"context": "pord"}) == "command line: unknown context 'pord'; accepted: bare, prod"


def test_an_unknown_context_without_any_says_where_to_define_one() -> None:
    assert "add [contexts.NAME] to the config file" in refusal({"context": "prod"})


def test_the_environment_can_define_and_change_contexts(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(CONTEXTS)
    monkeypatch.setenv("DLCONSOLE_CONTEXTS__PROD__DATASET", "other")
    assert chosen(load({"context": "prod"}))[:2] == ("redis://prod/0", "other")


def test_a_wrong_value_in_the_chosen_context_is_refused_once_and_where_it_is_written(
    configure: Configure,
) -> None:
    path = configure("[contexts.prod]\ncolour = 'pink'\n")
    message = refusal({"context": "prod"})
    assert message.startswith(f"{path}: key 'contexts.prod.colour': accepted: 'default', 'red'")
    assert len(message.splitlines()) == 1


# -- refusals -------------------------------------------------------------------------------------

WRONG = {
    "datset = 'x'": "unknown key 'datset'; did you mean 'dataset'?",
    "_env_file = 'x'": "unknown key '_env_file'",
    "_cli_parse_args = true": "unknown key '_cli_parse_args'",
    "[worker]\nlease = 3": "unknown key 'worker.lease'; did you mean 'lease_s'?",
    "[contexts.a]\ncolor = 'red'": "unknown key 'contexts.a.color'; did you mean 'colour'?",
    "worker = 5": "key 'worker': accepted: a table",
    "contexts = 5": "key 'contexts': accepted: a table",
    "[contexts]\na = 5": "key 'contexts.a': accepted: a table",
    "context = []": "key 'context': accepted: text",
    "dataset = 5": "key 'dataset': accepted: 1 to 100 letters",
    "dataset = 'a b'": "key 'dataset': accepted: 1 to 100 letters",
    "dataset = '../x'": "key 'dataset': accepted: 1 to 100 letters",
    "read_only = 'perhaps'": "key 'read_only': accepted: true or false",
    "[log]\nlevel = 'loud'": "key 'log.level': accepted: 'debug', 'info', 'warning', 'error'",
    "[worker]\nprocesses = true": "key 'worker.processes': accepted: a whole number from 1 to 256",
    "[worker]\nprocesses = 1.5": "key 'worker.processes': accepted: a whole number from 1 to 256",
    "[worker]\nprocesses = -1": "key 'worker.processes': accepted: a whole number from 1 to 256",
    "[worker]\nprocesses = 1000000000000000000000": "key 'worker.processes': accepted: a whole number",
    "[worker]\nprocesses = nan": "key 'worker.processes': accepted: a whole number from 1 to 256",
    "[worker]\nlease_s = true": "key 'worker.lease_s': accepted: a number of seconds",
    "[worker]\nlease_s = nan": "key 'worker.lease_s': accepted: a number of seconds",
    "[worker]\nlease_s = inf": "'500ms', '20s', '5m', '1h'; from 2 to 3600",
    "[worker]\nlease_s = 1e999": "key 'worker.lease_s': accepted: a number of seconds",
    "[worker]\nlease_s = '1s'": "'500ms', '20s', '5m', '1h'; from 2 to 3600",
    "[worker]\nlease_s = '20 parsecs'": "key 'worker.lease_s': accepted: a number of seconds",
    "[fetch]\ndeadline_s = 0": "above 0 and up to 3600",
    "[fetch]\nmax_bytes = inf": "key 'fetch.max_bytes': accepted: a number of bytes",
    "[fetch]\nmax_bytes = '10 mb'": "'512KiB', '10MB', '4GiB'",
    "[fetch]\nallow_networks = ['10.0.0.0/8', 'here']": "key 'fetch.allow_networks': accepted: a network such as",
    "[fetch]\nallow_networks = [5]": "key 'fetch.allow_networks': accepted: a list, each a network such as",
    "[fetch]\nallow_networks = 5": "key 'fetch.allow_networks': accepted: a list, each a network such as",
    '[fetch]\nuser_agent = "a\\nb"': "accepted: 1 to 400 printable ASCII characters",
    '[fetch]\ncontact = "nobody"': "accepted: a mail address or an http(s) URL",
    '[fetch]\ncontact = "a@example.org) (x"': "accepted: a mail address or an http(s) URL",
    "[fetch]\nper_host = 0": "accepted: a whole number from 1 to 4096",
    "[fetch]\nproxy = 'ftp://h'": "key 'fetch.proxy': accepted: http://HOST:PORT",
    "[fetch]\nproxy = 'http://[::1'": "key 'fetch.proxy': accepted: http://HOST:PORT",
    "[worker]\nhost_ip = 'here'": "key 'worker.host_ip': accepted: an address such as",
    "[worker]\nstore_dir = ''": "key 'worker.store_dir': accepted: a path",
    "[worker]\nstore_dir = '~no-such-user/x'": "this ~user has no home directory",
    '[worker]\nstore_dir = "a\\u0000b"': "key 'worker.store_dir': accepted: a path",
    "[feed]\npath_template = '{ds}.jpg'": "accepted: a path below the store with {sha256} in it",
    "[feed]\npath_template = '{{sha256}}'": "accepted: a path below the store with {sha256} in it",
    "[feed]\npath_template = '../{sha256}'": "accepted: a path below the store with {sha256} in it",
    "[feed]\npath_template = '//{sha256}'": "accepted: a path below the store with {sha256} in it",
    "[feed]\npath_template = '{sha256.__class__}'": "accepted: a path below the store with {sha256} in it",
    "[feed]\npath_template = '{sha256:>999999999999}'": "accepted: a path below the store with {sha256} in it",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_key_type_or_unit_is_refused_with_file_key_and_what_is_accepted(
    text: str, configure: Configure
) -> None:
    path = configure(text)
    message = refusal()
    assert message.startswith(f"{path}: ")
    assert WRONG[text] in message
    assert len(message.splitlines()) == 1


def test_every_wrong_key_is_reported_at_once(configure: Configure) -> None:
    configure("datset = 'x'\n[worker]\nprocesses = 0\n")
    assert len(refusal({"dataset": "a b"}).splitlines()) == 3


def test_a_wrong_flag_is_named_by_its_key() -> None:
    assert refusal({"worker.processes": "many"}).startswith(
        "command line: key 'worker.processes': accepted: a whole"
    )


@pytest.mark.parametrize(
    "name",
    [
        "DLCONSOLE_DATSET",
        "DLCONSOLE_WORKER__LEASE",
        "DLCONSOLE_CONTEXTS",
        "DLCONSOLE_CONTEXTS__A",
        "DLCONSOLE_",
    ],
)
def test_an_unknown_variable_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert refusal().startswith(f"environment: unknown variable {name};")


def test_a_misspelled_variable_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCONSOLE_DATSET", "x")
    assert "did you mean 'DLCONSOLE_DATASET'?" in refusal()


@pytest.mark.parametrize(
    "text",
    [b"dataset = ", b"\xff\xfe", b"a = 1\na = 2", b"a = " + b"9" * 5000, b"a = " + b"[" * 10_000],
    ids=["cut off", "not UTF-8", "key twice", "endless number", "deep"],
)
def test_what_is_not_toml_is_refused_with_the_file(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text)
    assert refusal(config=path).startswith(f"{path}: not valid TOML: ")


def test_a_named_file_that_is_missing_or_unreadable_is_refused(tmp_path: Path) -> None:
    assert refusal(config=tmp_path / "none.toml") == f"{tmp_path}/none.toml: no such file"
    assert refusal(config=tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert refusal(config=Path("~no-such-user/c.toml")).endswith("no such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(configure: Configure) -> None:
    path = configure("")
    path.chmod(0)
    assert refusal() == f"{path}: cannot be read: Permission denied"


# -- passwords -------------------------------------------------------------------------------------


def test_no_shown_setting_has_a_password(configure: Configure) -> None:
    configure(
        "redis = 'redis://u:s3cret@h'\n[contexts.a]\nredis = 'redis://h?password=s3cret'\n"
        "[fetch]\nproxy = 'http://u:s3cret@h:1'\n"
    )
    shown = json.dumps(dict(flat(load().settings)))
    assert "s3cret" not in shown
    assert shown.count("***") == 3


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
@pytest.mark.parametrize(
    "text",
    [
        "redis = 'redis://:p@h'",
        "[contexts.a]\nredis = 'redis://h?password=p'",
        "[fetch]\nproxy = 'http://u:p@h'",
    ],
)
def test_a_file_with_a_password_that_others_can_read_gets_a_warning(
    text: str, mode: int, configure: Configure
) -> None:
    path = configure(text)
    assert load().warnings == ()
    path.chmod(mode)
    assert load().warnings == (f"{path}: holds a password and can be read by others; run: chmod 600 {path}",)


def test_a_file_without_a_password_may_be_read_by_all(configure: Configure) -> None:
    configure("redis = 'redis://user@h/0?'\n").chmod(0o644)
    assert load().warnings == ()


def test_a_password_on_the_command_line_gets_a_warning() -> None:
    (warning,) = load({"redis": "redis://:s3cret@h"}).warnings
    assert "process list" in warning
    assert "s3cret" not in warning


# -- settings that contradict each other ----------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "first", "second"),
    [
        ({"fetch.connect_timeout_s": "60"}, "fetch.connect_timeout_s", "fetch.deadline_s"),
        (
            {"fetch.deadline_s": "5", "fetch.min_rate_window_s": "6"},
            "fetch.min_rate_window_s",
            "fetch.deadline_s",
        ),
        ({"fetch.deadline_s": "2", "dns.timeout_s": "30"}, "dns.timeout_s", "fetch.deadline_s"),
        ({"dns.min_ttl_s": "100", "dns.max_ttl_s": "10"}, "dns.min_ttl_s", "dns.max_ttl_s"),
        ({"dns.max_ttl_s": "10"}, "dns.min_ttl_s", "dns.max_ttl_s"),
        ({"dns.min_ttl_s": "2h"}, "dns.min_ttl_s", "dns.max_ttl_s"),
    ],
)
def test_a_contradiction_is_refused_and_both_settings_are_named(
    flags: dict[str, str], first: str, second: str
) -> None:
    (line,) = refusal(flags).splitlines()
    assert line.startswith(f"settings: key '{first}' (")
    assert f"is above '{second}' (" in line
    for key in (first, second):
        assert ("command line" if key in flags else "the default") in line.partition(f"'{key}'")[2]


def test_a_default_gives_way_to_a_shorter_deadline() -> None:
    assert load({"fetch.deadline_s": "1"}).settings.fetch.connect_timeout_s == 10
    assert load({"fetch.min_rate_window_s": "60", "fetch.min_bytes_per_s": "0"})  # there is no window
    assert load({"dns.min_ttl_s": "0", "dns.max_ttl_s": "0"})
