"""The legacy scripts' settings → ours: each has its place (`legacy_table.py`), or a reason why it has none.

The arithmetic follows what the scripts do with a value, in github.com/opendatalab/laion5b-downloader:
`downloader.py`, `add_task.py`, `monitor_disk.py`, `save_error_task.py`.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import ValidationError

from dlconsole.model import DATASET_RULE, is_dataset_name
from dlconsole.services.keys import LEGACY_DISK, Keys
from dlconsole.services.legacy_source import LegacySource
from dlconsole.services.legacy_table import KEY_MEANS, LAYOUTS, SETTINGS
from dlconsole.services.legacy_value import Unread, Value
from dlconsole.settings import Settings, rule_of

REDIS: Final = "redis"
DATASET: Final = "dataset"
_README_PROCESSES: Final = 11
"""What the scripts' readme starts on a host: `for i in {0..10}`."""
_GIB: Final = 2**30
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")


_PLACES: Final = {setting.name: setting.place for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Placed:
    """A value of ours: where it comes from, and what there is to say of it."""

    value: str | int
    source: str
    remark: str = ""


@dataclass(slots=True)
class Imported:
    """What becomes of a `setting.py`. `values` has dotted keys; the context's are `redis` and `dataset`, and
    `redis` holds the password. `reasons`: legacy name → why it has no place, or what to do with it.
    """

    path: Path
    name: str
    values: dict[str, Placed] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """What is needed and was not found."""
        return [key for key in (REDIS, DATASET) if key not in self.values]


def translate(source: LegacySource, name: str = "") -> Imported:
    """The settings of a file, for a context `name`: '' takes the dataset's."""
    return _Translator(source, Imported(source.path, name, not_run=source.not_run)).run()


class _Refused(Exception):
    """A value has no place; the text says why."""


class _Translator:
    def __init__(self, source: LegacySource, made: Imported) -> None:
        self._source = source
        self._made = made
        self._folder = source.path.absolute().parent

    def run(self) -> Imported:
        made = self._made
        self._redis()
        self._keys()
        made.name = made.name or (str(made.values[DATASET].value) if DATASET in made.values else "legacy")
        for name, change in _SIMPLE.items():
            self._simple(name, change)
        for name in ("metadata_dir", "parquet_dir"):
            self._lists(name)
        self._monitor()
        for key, (value, why) in LAYOUTS.items():
            made.values[key] = Placed(value, "", why)
        known = self._source.values
        made.unknown = [
            name
            for name, value in known.items()
            if name not in _PLACES and not (isinstance(value, Unread) and value.borrowed)
        ]
        return made

    def _read(self, name: str, fallback: Value = None) -> Value:
        """Raises _Refused where it is set to something that was not read."""
        found = self._source.values.get(name, fallback)
        if isinstance(found, Unread):
            raise _Refused(f"its value is not read: {found.why}")
        return found

    # -- the context ---------------------------------------------------------------------------

    def _redis(self) -> None:
        parts: dict[str, str] = {}
        read: dict[str, Callable[[Value], str]] = {
            "redis_ip": _host,
            "redis_port": _port,
            "redis_db": _database,
            "redis_pass": _password,
        }
        for name, change in read.items():
            try:
                parts[name] = change(self._read(name))
            except _Refused as why:
                self._made.reasons[name] = str(why)
        if len(parts) < len(read):
            return
        url = "redis://{redis_pass}{redis_ip}{redis_port}{redis_db}".format_map(parts)
        given = [name for name in read if name in self._source.values]
        try:
            self._made.values[REDIS] = Placed(_accepted(REDIS, url), ", ".join(given))
        except _Refused as why:
            self._made.reasons["redis_ip"] = str(why)

    def _keys(self) -> None:
        """The dataset, and what differs from the keys that it then has."""
        names: dict[str, str] = {}
        for attribute in (*_suffixes(), "tongji_disk"):
            try:
                found = self._read(f"RedisKey.{attribute}")
            except _Refused as why:
                self._made.reasons[f"RedisKey.{attribute}"] = str(why)
                continue
            if isinstance(found, str):
                names[attribute] = found
            elif found is not None:
                self._made.reasons[f"RedisKey.{attribute}"] = "is no text"
        dataset = self._dataset(names)
        if dataset is None:
            return
        expected = {a: dataset + suffix for a, suffix in _suffixes().items()} | {"tongji_disk": LEGACY_DISK}
        for attribute, actual in names.items():
            if actual != expected[attribute]:
                self._made.reasons[f"RedisKey.{attribute}"] = (
                    f"is {actual!r}, and dlconsole's is always {expected[attribute]!r}: "
                    f"{KEY_MEANS[attribute]}"
                )

    def _dataset(self, names: dict[str, str]) -> str | None:
        """The queue's prefix; where it has none, dataset_name; else that of another key."""
        found: dict[str, str] = {}
        suffixes = _suffixes()
        if names.get("task_key", "").endswith(suffixes["task_key"]):
            found["RedisKey.task_key"] = names["task_key"].removesuffix(suffixes["task_key"])
        said = self._said_dataset()
        if said is not None:
            found["dataset_name"] = said
        for attribute, suffix in suffixes.items():
            if names.get(attribute, "").endswith(suffix):
                found.setdefault(f"RedisKey.{attribute}", names[attribute].removesuffix(suffix))
        for name, dataset in found.items():
            if not is_dataset_name(dataset):
                self._made.reasons[name] = f"gives {dataset!r}, which is no dataset: {DATASET_RULE}"
                continue
            source, remark = name, ""
            if said == dataset:
                source = "dataset_name"
            elif said is not None:
                remark = f"dataset_name is {said!r}, but this is the queue that the scripts work on"
                self._made.reasons["dataset_name"] = (
                    f"is {said!r}, but the queue belongs to {dataset!r}; images that dlconsole feeds go "
                    "below that name, unless --path-template says another"
                )
            self._made.values[DATASET] = Placed(dataset, source, remark)
            return dataset
        self._made.reasons.setdefault("dataset_name", "is not set, and no key tells it")
        return None

    def _said_dataset(self) -> str | None:
        try:
            said = self._read("dataset_name")
        except _Refused as why:
            self._made.reasons["dataset_name"] = str(why)
            return None
        if said is not None and not isinstance(said, str):
            self._made.reasons["dataset_name"] = "is no text"
            return None
        return said

    # -- the rest ------------------------------------------------------------------------------

    def _simple(self, name: str, change: Callable[[Value, Path], tuple[str | int, str]]) -> None:
        """A setting with a place of its own."""
        if name not in self._source.values:
            return
        try:
            value, remark = change(self._read(name), self._folder)
            self._made.values[_PLACES[name]] = Placed(_accepted(_PLACES[name], value), name, remark)
        except _Refused as why:
            self._made.reasons[name] = str(why)

    def _lists(self, name: str) -> None:
        if name not in self._source.values:
            return
        try:
            folder, _ = _path(self._read(name), self._folder)
        except _Refused as why:
            self._made.reasons[name] = str(why)
            return
        remark = ""
        if name == "parquet_dir":
            remark = (
                "; images are named by the SHA-256 of their URL then, and not as add_task.py did, "
                "/LAION-5B/FOLDER/PART/HASH.SUFFIX"
            )
        self._made.reasons[name] = f"give it to the feeder: dlconsole feed {shlex.quote(folder)}{remark}"

    def _monitor(self) -> None:
        if "monitor_disk" not in self._source.values:
            return
        watched, store = self._source.values["monitor_disk"], self._made.values.get("worker.store_dir")
        why = "is not needed: each worker watches the disk of its store itself and reports it"
        if isinstance(watched, str) and store is not None:
            root = Path(self._folder, watched)
            if not Path(str(store.value)).is_relative_to(root):
                why += f"; the store is not below {str(root)!r}, which the scripts watched instead"
        self._made.reasons["monitor_disk"] = why


def _suffixes() -> dict[str, str]:
    """What stands behind the dataset in each key."""
    keys = Keys("")
    return {
        "task_key": keys.task,
        "error_key": keys.error,
        "tongji_succ": keys.stored,
        "tongji_error": keys.failed,
        "tongji_all": keys.fed,
    }


def _accepted(key: str, value: str | int) -> str | int:
    """The value, where our setting takes it. Raises _Refused with what it takes."""
    section, _, name = key.rpartition(".")
    try:
        Settings.model_validate({section: {name: value}} if section else {name: value})
    except ValidationError as error:
        model = Settings.model_fields[section].annotation if section else Settings
        taken = rule_of(getattr(model, "model_fields", {}).get(name))
        said = taken or error.errors()[0]["msg"]
        raise _Refused(f"is nothing that {key} takes: {said}") from None
    return value


# -- how each value changes: raise _Refused ---------------------------------------------------------


def _host(value: Value) -> str:
    if value is None:
        raise _Refused("is not set")
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise _Refused("is no host's name or address")
    return f"[{value}]" if ":" in value else value


def _port(value: Value) -> str:
    return f":{_whole(6379 if value is None else value, 1, 65535)}"


def _database(value: Value) -> str:
    return f"/{_whole(0 if value is None else value, 0, 2**31)}"


def _password(value: Value) -> str:
    if isinstance(value, float):
        raise _Refused("is no text")
    try:
        return f":{quote(str(value), safe='')}@" if value not in {None, ""} else ""
    except UnicodeEncodeError:
        raise _Refused("cannot be sent: it holds half a character") from None


def _whole(value: Value, least: int, most: int) -> int:
    """A whole number; redis-py takes digits as text as well."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    number = _number(value)
    if number != int(number) or not least <= number <= most:
        raise _Refused(f"is no whole number from {least} to {most}")
    return int(number)


def _number(value: Value) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Refused("is no number")
    return value


def _path(value: Value, folder: Path) -> tuple[str, str]:
    """A folder or file; the scripts take a relative one from where they are started."""
    if not isinstance(value, str) or not value or not value.isprintable() or "://" in value:
        raise _Refused("is no path")
    relative = not value.startswith("/")
    return str(Path(folder, value)), "relative: taken from setting.py's folder" if relative else ""


def _store(value: Value, folder: Path) -> tuple[str, str]:
    path, remark = _path(value, folder)
    if not str(value).endswith("/"):
        remark = _and(remark, f"no slash at its end, so the scripts wrote beside it: {path}YYYYMMDDHH/")
    return path, remark


def _errors(value: Value, folder: Path) -> tuple[str, str]:
    path, remark = _path(value, folder)
    if not str(value).endswith("/"):
        remark = _and(remark, f"no slash at its end, so the script wrote beside it: {path}YYYYMMDD_N.txt")
    return path, remark


def _and(remark: str, more: str) -> str:
    return f"{remark}; {more}" if remark else more


def _threshold(value: Value, _folder: Path) -> tuple[int, str]:
    number = math.floor(_number(value))
    if number < 0:
        raise _Refused("is below 0: add_task.py would wait for ever")
    remark = "add_task.py asked every 10 minutes and then fed a whole list"
    return max(1, number), remark  # ours takes 0 for no threshold


def _used(value: Value, _folder: Path) -> tuple[int, str]:
    number = math.floor(_number(value))
    if number < 0:
        raise _Refused("is below 0: the scripts would not download at all")
    return (number + 1) * _GIB - 1, f"the scripts stop from {number + 1} GiB used on"


def _threads(value: Value, _folder: Path) -> tuple[int, str]:
    threads = _whole(value, 1, 2**31)
    return threads, (
        f"threads of each process there, and the readme starts {_README_PROCESSES} processes a host, so "
        f"{_README_PROCESSES * threads} fetches; here one process a core is enough: set processes, and "
        "concurrency to that number divided by it"
    )


_SIMPLE: Final[dict[str, Callable[[Value, Path], tuple[str | int, str]]]] = {
    "store_dir": _store,
    "thread_num": _threads,
    "stop_threshold": _used,
    "addtask_threshold": _threshold,
    "done_path": _path,
    "store_error_dir": _errors,
}
