"""`config import-legacy`: a setting.py is read and never run; each of its settings has a place or a reason."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.connection import parse_url

from dlconsole.cli import main
from dlconsole.config import flat, known_keys, load
from dlconsole.errors import ConfigError
from dlconsole.services import legacy_source, legacy_toml
from dlconsole.services.disk import DiskGuard, DiskUsage
from dlconsole.services.legacy_settings import Imported, translate
from dlconsole.services.legacy_source import read_source
from dlconsole.services.legacy_table import LAYOUTS, SETTINGS
from dlconsole.services.legacy_value import Unread
from dlconsole.settings import GuardSettings, Settings

MIGRATING = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
SECRET = "p@ss/w#rd%40 é密"

FULL = f"""\
# -*- coding:utf-8 -*-
\"\"\"配置\"\"\"
redis_ip = "192.168.0.1"
redis_port = 6379
redis_db = 3
redis_pass = {SECRET!r}

dataset_name = "laion1B-nolang"

class RedisKey:
    task_key = f"{{dataset_name}}_task"                 # 存放任务队列
    tongji_all = f"{{dataset_name}}_tongji_all"
    error_key = f"{{dataset_name}}_task_error"
    tongji_error = "%s_tongji_error" % dataset_name
    tongji_succ = dataset_name + "_tongji_succ"
    tongji_disk = "tongji_worker_disk"

metadata_dir = f"/mnt/vdb/{{dataset_name}}/meta data"
addtask_threshold = 5 * 1000 ** 2
done_path = "./done_part.txt"
monitor_disk = '/mnt/vdc'
store_dir = f"/mnt/vdc/{{dataset_name}}/data/"
stop_threshold = 5 * 1024
thread_num = 32
store_error_dir = "./error_task/"
"""

OLDER = """\
redis_ip = "10.0.0.5"
redis_port = 6379
redis_db = 0
redis_pass = ""
class RedisKey:
    task_key = "laion5b_task"
    tongji_all = "laion5b_tongji_all"
    error_key = "laion5b_task_error"
    tongji_error = "laion5b_tongji_error"
    tongji_succ = "laion5b_tongji_succ"
    tongji_disk = "tongji_worker_disk"
parquet_dir = "/mnt/vdb/laion5b/parquet"
store_dir = "/mnt/vdc/laion5b/data/"
"""

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A setting.py with this in it."""

    def write_text(text: str | bytes) -> Path:
        path = tmp_path / "setting.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return path

    return write_text


@pytest.fixture
def imported(write: Write) -> Callable[[str], Imported]:
    return lambda text: translate(read_source(write(text)))


def loaded(made: Imported, folder: Path) -> Settings:
    """What the settings file that is made gives."""
    path = folder / "made.toml"
    path.write_text(legacy_toml.as_toml(made), "utf-8")
    path.chmod(0o600)
    found = load(config=path)
    assert found.warnings == ()
    return found.settings


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_source(path)
    return str(caught.value)


# -- values ---------------------------------------------------------------------------------------


def test_every_value_arrives_in_the_settings_that_the_made_file_gives(
    imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    made = imported(FULL)
    settings = loaded(made, tmp_path)
    ours = parse_url(settings.redis)
    assert (ours["host"], ours["port"], ours["db"]) == ("192.168.0.1", 6379, 3)
    assert ours["password"] == SECRET
    values = dict(flat(settings))
    assert values["dataset"] == values["context"] == "laion1B-nolang"
    assert {key: values[key] for key in made.values if "." in key} == {
        "worker.store_dir": "/mnt/vdc/laion1B-nolang/data",
        "worker.concurrency": 32,
        "worker.layout": "hourly",
        "guard.max_used_bytes": 5121 * 2**30 - 1,
        "feed.threshold": 5_000_000,
        "feed.done_file": str(tmp_path / "done_part.txt"),
        "feed.layout": "flat",
        "errors.dir": str(tmp_path / "error_task"),
    }
    assert made.reasons.keys() == {"metadata_dir", "monitor_disk"}
    assert "dlconsole feed '/mnt/vdb/laion1B-nolang/meta data'" in made.reasons["metadata_dir"]
    assert (made.missing, made.unknown, made.not_run) == ([], [], [])


def test_every_setting_of_the_scripts_has_its_place_or_its_reason(
    imported: Callable[[str], Imported],
) -> None:
    made = imported(FULL + 'parquet_dir = "/p"\n')
    placed = {name for value in made.values.values() for name in value.source.split(", ")}
    fixed = {setting.name for setting in SETTINGS if setting.what.startswith("always `")}
    names = {setting.name for setting in SETTINGS}
    assert placed | made.reasons.keys() | fixed | {"", "RedisKey.task_key"} == names | {""}
    assert {
        key for key, place in ((s.name, s.place) for s in SETTINGS) if place and "NAME" not in place
    } <= placed


def test_every_place_is_a_setting_of_ours() -> None:
    ours = {*known_keys(), "contexts.NAME.redis", "contexts.NAME.dataset", ""}
    assert {setting.place for setting in SETTINGS} | LAYOUTS.keys() <= ours


def test_the_older_version_tells_its_dataset_by_its_keys(
    imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    made = imported(OLDER)
    settings = loaded(made, tmp_path)
    assert (settings.dataset, settings.redis) == ("laion5b", "redis://10.0.0.5:6379/0")
    assert "dlconsole feed /mnt/vdb/laion5b/parquet; images are named" in made.reasons["parquet_dir"]


@pytest.mark.parametrize("dataset", ["a.b", "数据", "x-1"])
def test_a_context_is_named_as_its_dataset_whatever_that_is(
    dataset: str, imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    settings = loaded(imported(f"dataset_name = {dataset!r}"), tmp_path)
    assert (settings.context, settings.dataset) == (dataset, dataset)


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("redis_ip = 'h'", "redis://h:6379/0"),
        ("redis_ip = 'fd00::5'; redis_port = '7000'; redis_db = '2'", "redis://[fd00::5]:7000/2"),
        ("redis_ip = 'h'; redis_pass = None", "redis://h:6379/0"),
        ("redis_ip = 'h'; redis_pass = 123456", "redis://:123456@h:6379/0"),
        ("redis_ip = 'h'; redis_pass = '***'", "redis://:%2A%2A%2A@h:6379/0"),
    ],
)
def test_a_redis_is_one_url(line: str, url: str, imported: Callable[[str], Imported], tmp_path: Path) -> None:
    assert loaded(imported(line), tmp_path).redis == url


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("redis_ip = 'h/1?x'", "redis_ip"),
        ("redis_ip = 'u:p@h'", "redis_ip"),
        ("redis_port = 1", "redis_ip"),
        ("redis_ip = 'h'; redis_port = 0", "redis_port"),
        ("redis_ip = 'h'; redis_port = 70000", "redis_port"),
        ("redis_ip = 'h'; redis_port = True", "redis_port"),
        ("redis_ip = 'h'; redis_db = -1", "redis_db"),
        ("redis_ip = 'h'; redis_pass = 1.5", "redis_pass"),
        ("redis_ip = 'h'; redis_pass = '\\ud800'", "redis_pass"),
        ("import os\nredis_ip = 'h'; redis_pass = os.getenv('PW', 's3cret')", "redis_pass"),
    ],
)
def test_without_one_part_there_is_no_redis_and_the_reason_is_said(
    line: str, name: str, imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    made = imported(line)
    assert made.missing == ["redis", "dataset"]
    assert name in made.reasons
    text = legacy_toml.as_toml(made)
    assert "s3cret" not in text
    assert "# redis = " in text
    assert loaded(made, tmp_path).redis == ""


def test_the_queue_says_which_dataset_it_is_where_dataset_name_says_otherwise(
    imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    made = imported("dataset_name = 'a'\nclass RedisKey:\n    task_key = 'b_task'\n")
    assert loaded(made, tmp_path).dataset == "b"
    assert "the queue belongs to 'b'" in made.reasons["dataset_name"]


def test_a_key_of_another_name_is_said_with_what_it_means(imported: Callable[[str], Imported]) -> None:
    made = imported(FULL.replace('f"{dataset_name}_task"', '"todo"').replace("tongji_worker_disk", "disks"))
    assert made.values["dataset"].value == "laion1B-nolang"
    assert "'todo'" in made.reasons["RedisKey.task_key"]
    assert "neither sees nor takes" in made.reasons["RedisKey.task_key"]
    assert "keep monitor_disk.py" in made.reasons["RedisKey.tongji_disk"]


def test_a_dataset_that_is_none_is_refused_with_what_one_is(imported: Callable[[str], Imported]) -> None:
    made = imported("dataset_name = '../x'")
    assert made.missing == ["redis", "dataset"]
    assert "1 to 100 letters" in made.reasons["dataset_name"]


@pytest.mark.parametrize("threshold", [0, 1, 4, 4.5])
@pytest.mark.parametrize("used_bytes", [2**30 * n + d for n in range(7) for d in (-1, 0, 1) if n or d > -1])
def test_downloads_stop_at_the_byte_at_which_the_scripts_do(
    threshold: float, used_bytes: int, imported: Callable[[str], Imported]
) -> None:
    made = imported(f"stop_threshold = {threshold}")
    limit = int(made.values["guard.max_used_bytes"].value)
    guard = DiskGuard(GuardSettings(max_used_bytes=limit, max_used_percent=100))
    legacy_stops = int(used_bytes / 2**30) > threshold
    assert bool(guard.look(DiskUsage(2**40, used_bytes, 2**40 - used_bytes, 0, 0))) == legacy_stops


@pytest.mark.parametrize(
    "line",
    [
        "stop_threshold = -1",
        "stop_threshold = '5000'",
        "stop_threshold = 2 ** 60",
        "thread_num = 0",
        "thread_num = 100000",
        "thread_num = 1.5",
        "addtask_threshold = -1",
        "store_dir = 's3://bucket/x'",
        "store_dir = ''",
        "store_dir = 5",
        "done_path = 'a\\nb'",
        "store_error_dir = ['/x']",
        "metadata_dir = input()",
    ],
)
def test_a_value_that_has_no_place_gets_a_reason_and_the_default_stays(
    line: str, imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    made = imported(line)
    name = line.partition(" ")[0]
    assert name in made.reasons
    assert f"{name}" in legacy_toml.as_toml(made)
    assert made.values.keys() == LAYOUTS.keys()
    loaded(made, tmp_path)


def test_folders_without_a_slash_and_a_disk_elsewhere_are_said(imported: Callable[[str], Imported]) -> None:
    made = imported("store_dir = '/a/data'\nstore_error_dir = '/a/e'\nmonitor_disk = '/b'\n")
    assert "wrote beside it: /a/dataYYYYMMDDHH/" in made.values["worker.store_dir"].remark
    assert "wrote beside it: /a/eYYYYMMDD_N.txt" in made.values["errors.dir"].remark
    assert "not below '/b'" in made.reasons["monitor_disk"]


def test_a_threshold_of_nothing_does_not_become_no_threshold(imported: Callable[[str], Imported]) -> None:
    assert imported("addtask_threshold = 0").values["feed.threshold"].value == 1


# -- what is read, and what is not -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'a' 'b'", "ab"),
        ("f'{known}-{5}-{{}}'", "k-5-{}"),
        ("f'{known!s}'", "k"),
        ("'%s_%d%%' % (known, 5)", "k_5%"),
        ("'%s' % known", "k"),
        ("known + '_task'", "k_task"),
        ("C.inner + known", "ck"),
        ("-5 + 2 * 3", 1),
        ("(5 * 1024) // 2", 2560),
        ("1024 ** 3", 2**30),
        ("1 << 40", 2**40),
        ("0xff", 255),
        ("5e6", 5e6),
        ("None", None),
    ],
)
def test_plain_expressions_are_worked_out(expression: str, value: object, write: Write) -> None:
    text = f"known = 'k'\nclass C:\n    inner = 'c'\nx = {expression}\n"
    assert read_source(write(text)).values["x"] == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("os.environ.get('REDIS_PW', 'd')", "a variable of the environment, REDIS_PW"),
        ("os.getenv('A')", "a variable of the environment, A"),
        ("int(os.environ.get('THREADS', 32))", "a variable of the environment, THREADS"),
        ("int('5')", "a call of int()"),
        ("os.environ['A']", "a variable of the environment, A"),
        ("open('/etc/passwd').read()", "a call"),
        ("nobody + 'a'", "takes nobody, which is not known"),
        ("f'{1:>999999999}'", "an f-string with a format"),
        ("'%999999999d' % 1", "a format other than"),
        ("'%s%s' % 'a'", "too few"),
        ("'%s' % ('a', 'b')", "too many"),
        ("'%(a)s' % {'a': 1}", "a dict"),
        ("'a' * 10**9", "mixes text and numbers"),
        ("9 ** 9 ** 9", "beyond 2^64"),
        ("1 << 10**9", "beyond 2^64"),
        ("2 ** -1", "more than simple arithmetic"),
        ("(-1) ** 0.5", "more than simple arithmetic"),
        ("0x" + "f" * 20_000, "beyond 2^64"),
        ("1e999", "not a finite number"),
        ("1 / 0", "cannot be calculated"),
        ("'a' + 5", "mixes"),
        ("1 + None", "with None"),
        ("b'a'", "neither text nor a number"),
        ("'a' if 1 else 'b'", "an expression"),
        ("[1]", "a list"),
        ("(y := 5)", "an expression"),
    ],
)
def test_what_would_have_to_be_run_is_not_read_and_said(expression: str, why: str, write: Write) -> None:
    found = read_source(write(f"y = 1\nx = {expression}\n")).values
    assert isinstance(found["x"], Unread)
    assert found["x"].why.startswith("line 2: ")
    assert why in found["x"].why
    assert isinstance(found["y"], Unread) == (":=" in expression)


def test_text_that_doubles_in_every_line_ends_at_a_bound(write: Write) -> None:
    found = read_source(write("a = 'xxxxxxxxxxxxxxxx'\n" + "a = a + a\n" * 60)).values["a"]
    assert isinstance(found, Unread)
    assert "more than 10000 characters" in found.why or "takes a, which" in found.why


def test_names_are_followed_through_statements(write: Write) -> None:
    text = (
        "a: str = 'x'\na += 'y'\nb, c = c0, d0 = 1, a\ne: int\nclass K(object):\n    t = a + '_task'\n"
        "K.t2 = K.t + '2'\nb, c = c, b\n"
    )
    assert read_source(write(text)).values == {
        "a": "xy", "b": "xy", "c": 1, "c0": 1, "d0": "xy", "K.t": "xy_task", "K.t2": "xy_task2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("if 1:\n    a = 'other'\n", "line 2: the statement `if`"),
        ("for a in 'b':\n    pass\n", "line 2: the statement `for`"),
        ("del a\n", "line 2: the statement `delete`"),
        ("try:\n    a = 'b'\nexcept Exception:\n    pass\n", "line 2: the statement `try`"),
        ("a, *b = 'bc'\n", "line 2: a tuple"),
        ("from other import a\n", ""),
        ("def a(): pass\n", ""),
        ("print(a := 'b')\n", ""),
    ],
)
def test_what_may_be_set_in_something_that_is_not_run_is_not_known_any_more(
    more: str, said: str, write: Write
) -> None:
    source = read_source(write("a = 'known'\n" + more))
    assert isinstance(source.values["a"], Unread)
    assert [said] == [text[: len(said)] for text in source.not_run] if said else source.not_run == []


def test_calls_and_star_imports_are_said_and_change_nothing(write: Write) -> None:
    source = read_source(write("from base import *\nexec('a = 1')\nglobals()['b'] = 2\na = 3\nprint(a)\n"))
    assert source.values == {"a": 3}
    assert [line.partition(":")[0] for line in source.not_run] == ["line 1", "line 2", "line 3"]
    made = translate(source)
    assert made.unknown == ["a"]
    assert sum("not run" in remark for remark in legacy_toml.remarks(made)) == 3


def test_nothing_is_run(write: Write, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')"
    text = f'import os\n{code}\na = {code}\nb = f"{{{code}}}"\nclass C({code}):\n    {code}\n    x = {code}\n'
    text += (
        f"@{code}\ndef f(x={code}):\n    {code}\nwith {code}: pass\n[{code} for _ in 'a']\nx: {code} = 1\n"
    )
    read_source(write(text))
    assert not mark.exists()


def test_a_module_beside_it_is_not_imported(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    read_source(write("import base\nfrom base import *\n"))
    assert not (tmp_path / "mark").exists()


BAD: dict[str, tuple[bytes, str]] = {
    "Python 2": (b'a = 1\nprint "x"\n', "line 2: not Python 3: "),
    "syntax": (b"redis_pass = 's3cret\n", "line 1: not Python 3: "),
    "not UTF-8": (b"a = 1\n\n\nb = '\xff'\n", "UTF-8"),
    "late not UTF-8": (b"a = 1\n" * 10 + b"b = '\xff'\n", "line 11: is not utf-8"),
    "no such encoding": (b"# coding: nonsense\n", "save it as UTF-8"),
    "an encoding that takes hours": (b"# coding: punycode\n" + b"a" * 50_000, "is in 'punycode'"),
    "zero bytes": (b"a = 1\0\n", "not Python 3"),
    "brackets": (b"a = " + b"(" * 50_000, ""),
    "balanced brackets": (b"a = " + b"[" * 2000 + b"]" * 2000, "nested"),
    "signs": (b"a = " + b"-" * 4500 + b"1\n", "nested too deep"),
    "a sum": (b"a = 1" + b"+1" * 25_000 + b"\n", "line 1: a statement of more than 5000 words"),
    "attributes": (b"a = b" + b".c" * 25_000 + b"\n", "a statement of more than"),
    "a short sum": (b"a = 1" + b"+1" * 2400 + b"\n", "nested too deep"),
    "digits": (b"a = " + b"9" * 50_000 + b"\n", "not Python 3"),
    "blocks": (b"".join(b" " * n + b"if 1:\n" for n in range(200)), "not Python 3"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", BAD)
def test_a_file_with_tricks_is_refused_in_one_clear_line(what: str, write: Write) -> None:
    data, said = BAD[what]
    path = write(data)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert len(message.splitlines()) == 1
    assert "s3cret" not in message


@pytest.mark.timeout(20)
def test_what_is_no_small_file_is_refused_without_being_read(tmp_path: Path) -> None:
    large = tmp_path / "large.py"
    with large.open("wb") as file:
        file.truncate(100 * 2**20)
    assert "has 100 MiB, more than 64.0 KiB" in refusal(large)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        assert "is no file" in refusal(path)
    assert refusal(tmp_path / "none.py").endswith("none.py: no such file")


def test_a_file_of_the_largest_size_is_read_in_a_moment(write: Write) -> None:
    source = read_source(write(b"a = 1\n" * (legacy_source.MOST_BYTES // 6)))
    assert source.values == {"a": 1}


def test_many_blank_lines_and_comments_are_no_statement(write: Write) -> None:
    assert read_source(write("\n# x\n" * 6000 + "a = 1\n")).values == {"a": 1}


def test_another_encoding_that_the_file_names_is_read(write: Write) -> None:
    path = write("# -*- coding: gbk -*-\nstore_dir = '/数据/'\n".encode("gbk"))
    assert read_source(path).values == {"store_dir": "/数据/"}


@pytest.mark.parametrize("name", ["dataset_name", "store_dir", "redis_ip", "other"])
def test_no_text_of_the_file_ends_a_comment_of_the_made_one(name: str, write: Write, tmp_path: Path) -> None:
    """Nor breaks out of a string."""
    for text in ("x\n[worker]\nprocesses = 99\n#", 'x"\nprocesses = 99', "x\u2028\x7f\x00\ud800", "x" * 9000):
        made = translate(read_source(write(f"{name} = {text!r}\nmetadata_dir = {text!r}\n")))
        assert loaded(made, tmp_path).worker.processes == 1
        assert all(text.isprintable() for text in legacy_toml.remarks(made))


def test_no_folder_of_the_file_ends_a_comment_either(tmp_path: Path) -> None:
    folder = tmp_path / "a\n[worker]\nprocesses = 99\n#"
    folder.mkdir()
    (folder / "setting.py").write_text("store_dir = './data'\nmetadata_dir = 'lists'\n")
    made = translate(read_source(folder / "setting.py"))
    assert made.reasons.keys() >= {"store_dir", "metadata_dir"}
    assert loaded(made, tmp_path).worker.processes == 1
    assert all(text.isprintable() for text in legacy_toml.remarks(made))


# -- the command -----------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_words(*words: object) -> tuple[int, str, str]:
        status = main(["config", "import-legacy", *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_words


def test_the_made_file_goes_to_standard_output_and_the_reasons_beside_it(run: Run, write: Write) -> None:
    status, out, err = run(write(FULL), "--name", "prod")
    assert status == 0
    assert tomllib.loads(out)["contexts"]["prod"]["dataset"] == "laion1B-nolang"
    for name in ("monitor_disk", "metadata_dir"):
        assert f"# - {name}" in out
        assert f"dlconsole: {name}" in err
    assert "w%23rd" in out
    assert "w%23rd" not in err


def test_a_terminal_is_not_shown_the_password(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, err = run(write(FULL))
    assert 'redis = "redis://:***@192.168.0.1:6379/3"' in out
    assert "--output FILE writes it" in err
    assert "ss" + "%2Fw" not in out + err
    _, _, err = run(write(OLDER))  # which has none
    assert "--output" not in err


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_written_file_is_for_its_owner_only(umask: int, run: Run, write: Write, tmp_path: Path) -> None:
    target = tmp_path / "out.toml"
    before = os.umask(umask)
    try:
        status, out, err = run(write(FULL), "--output", target)
    finally:
        os.umask(before)
    assert (status, out) == (0, "")
    assert target.stat().st_mode & 0o777 == 0o600
    assert f"dlconsole config show --config {target}" in err
    assert "%2Fw" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.toml", "setting.py"]
    assert parse_url(load(config=target).settings.redis)["password"] == SECRET


def test_what_exists_is_not_written_over(run: Run, write: Write, tmp_path: Path) -> None:
    source = write(FULL)
    there, dangling = tmp_path / "there.toml", tmp_path / "dangling.toml"
    there.write_text("kept")
    dangling.symlink_to(tmp_path / "nowhere")
    for target, said in (
        (there, "exists"),
        (dangling, "exists"),
        (tmp_path, "exists"),
        (tmp_path / "a/b", "No such"),
    ):
        status, out, err = run(source, "--output", target)
        assert (status, out) == (2, "")
        assert said in err
    assert there.read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"setting.py", "there.toml", "dangling.toml"}


def test_what_is_missing_is_status_1_and_the_file_is_made_all_the_same(run: Run, write: Write) -> None:
    status, out, err = run(write("thread_num = 7\n"))
    assert status == 1
    assert tomllib.loads(out)["worker"]["concurrency"] == 7
    assert "not found, fill it in: redis, dataset" in err


def test_as_json_it_has_everything_but_the_password(run: Run, write: Write, tmp_path: Path) -> None:
    status, out, _ = run(write(FULL + "extra = 1\n"), "--json", "--output", tmp_path / "o.toml")
    found: dict[str, Any] = json.loads(out)
    assert status == 0
    assert found["settings"]["redis"]["value"] == "redis://:***@192.168.0.1:6379/3"
    assert found["settings"]["worker.concurrency"]["from"] == "thread_num"
    assert found["missing"] == []
    assert any("extra" in remark for remark in found["remarks"])
    assert (tmp_path / "o.toml").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["import-legacy"],
        ["import-legacy", "x.py", "--name", "a b"],
        ["show", "x.py"],
        ["path", "--output", "x"],
        ["show", "--name", "x"],
    ],
)
def test_words_that_do_not_go_together_are_wrong_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- the page of migrating -------------------------------------------------------------------------


def test_the_page_has_each_setting_as_the_code_has_it() -> None:
    text = MIGRATING.read_text("utf-8")
    rows = re.findall(
        r"^\| `([\w.]+)` \| (.*) \| (.*) \|$", text.partition("## Each setting")[2], re.MULTILINE
    )
    assert rows == [(s.name, f"`{s.place}`" if s.place else "–", s.what) for s in SETTINGS]
    for key, (value, _) in LAYOUTS.items():
        assert f'`{key} = "{value}"`' in text
