"""One Settings model: defaults ← TOML file ← environment ← flags.

A context (`[contexts.NAME]`) supplies its values just below whatever chose it: chosen by `--context`
they beat the environment, chosen by the file they do not.
"""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dlconsole.errors import ConfigError
from dlconsole.model import DATASET_RULE, is_dataset_name
from dlconsole.units import parse_bytes, parse_seconds

ENV_PREFIX: Final = "DLCONSOLE_"
_NESTED: Final = "__"

Colour = Literal["default", "red", "orange", "yellow", "green", "cyan", "blue", "magenta"]
REDIS_RULE: Final = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///path/to/socket"
_TEMPLATE_FIELDS: Final = ("ds", "sha256", "ab", "cd", "ext")
TEMPLATE_RULE: Final = "a relative path with {sha256} in it, made of " + " ".join(
    f"{{{f}}}" for f in _TEMPLATE_FIELDS
)


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004  (pydantic reports ValueError only)
    return value


def _check_redis_url(url: str) -> str:
    if not url:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    else:
        usable = usable or (parts.scheme == "unix" and bool(parts.path))
    if not usable:
        raise ValueError(f"expected {REDIS_RULE}")
    return url


def _check_dataset(name: str) -> str:
    if not is_dataset_name(name):
        raise ValueError(f"expected {DATASET_RULE}")
    return name


def _check_template(template: str) -> str:
    try:
        filled = template.format_map(dict.fromkeys(_TEMPLATE_FIELDS, "x"))
    except (KeyError, ValueError, IndexError, AttributeError):
        raise ValueError(f"expected {TEMPLATE_RULE}") from None
    parts = filled.lstrip("/").split("/")
    if "{sha256}" not in template or any(p in {"", ".", ".."} for p in parts) or not filled.isprintable():
        raise ValueError(f"expected {TEMPLATE_RULE}")
    return template


def _check_proxy(url: str) -> str:
    if url and (urlsplit(url).scheme not in {"http", "https", "socks5h"} or not urlsplit(url).hostname):
        raise ValueError("expected http://HOST:PORT, https://HOST:PORT or socks5h://HOST:PORT")
    return url


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError("expected a network such as '10.0.0.0/8' or 'fd00::/8'") from None


def _expand(path: Path) -> Path:
    return path.expanduser()


Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Count = Annotated[int, BeforeValidator(_not_bool)]
Folder = Annotated[Path, AfterValidator(_expand)]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
Dataset = Annotated[str, AfterValidator(_check_dataset)]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_check_network)], ...], NoDecode, BeforeValidator(_split_list)
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ContextSettings(_Section):
    """A named connection, `[contexts.NAME]`; what it leaves out comes from the top of the file."""

    redis: RedisUrl | None = None
    """The Redis server of this context."""
    dataset: Dataset | None = None
    """The dataset of this context."""
    read_only: bool | None = None
    """Look, but change nothing."""
    colour: Colour | None = None
    """The colour of the header, so that prod looks like prod."""


class WorkerSettings(_Section):
    """`[worker]`: the headless downloaders."""

    store_dir: Folder = Path("store")
    """Folder that the images go to; each task's path is taken from here."""
    processes: Count = Field(default=1, ge=1, le=256)
    """Worker processes on this host."""
    concurrency: Count = Field(default=64, ge=1, le=4096)
    """Fetches at the same time, in each process."""
    batch: Count = Field(default=200, ge=1, le=5000)
    """Most tasks in one claim, and most outcomes in one ack."""
    lease_s: Seconds = Field(default=30.0, ge=2, le=3600)
    """How long a session may be silent before its tasks are given to others."""
    heartbeat_s: Seconds = Field(default=5.0, ge=0.1, le=600)
    """How often a session renews its lease and reports its statistics."""
    drain_s: Seconds = Field(default=20.0, ge=0, le=3600)
    """How long running fetches may still take after SIGTERM; the rest goes back to the queue."""
    host_name: str = ""
    """The name this host goes by; empty: its host name."""
    host_ip: str = ""
    """The address it goes by in the legacy disk hash; empty: the one that reaches Redis."""


class FetchSettings(_Section):
    """`[fetch]`: limits of one fetch."""

    deadline_s: Seconds = Field(default=30.0, gt=0, le=3600)
    """Hard limit on one task, redirects included."""
    connect_timeout_s: Seconds = Field(default=10.0, gt=0, le=600)
    """Limit on DNS, TCP and TLS together."""
    max_bytes: Bytes = Field(default=32 * 2**20, ge=1, le=2**31 - 1)
    """Largest body that is stored; more is `too_large`."""
    max_redirects: Count = Field(default=5, ge=0, le=20)
    """Most redirects followed."""
    user_agent: str = Field(default="dlconsole (dataset downloader)", pattern=r"^[ -~]{1,400}$")
    """What the worker calls itself; name a contact here."""
    proxy: Annotated[str, AfterValidator(_check_proxy)] = ""
    """Forward proxy for every fetch; empty: none. Proxy variables of the environment are ignored."""
    allow_networks: Networks = ()
    """Networks that may be fetched from although they are not public."""


class FeedSettings(_Section):
    """`[feed]`: URL lists to tasks."""

    path_template: Annotated[str, AfterValidator(_check_template)] = "/{ds}/images/{sha256}.jpg"
    """Where an image goes; {ab} and {cd} are the first and second two characters of {sha256}."""
    block: Count = Field(default=5000, ge=1, le=100_000)
    """Tasks pushed in one call."""
    max_url_bytes: Bytes = Field(default=8192, ge=16, le=2**20)
    """Longer lines are refused as bad rows."""


class ConsoleSettings(_Section):
    """`[console]`: the terminal."""

    refresh_s: Seconds = Field(default=2.0, ge=0.25, le=3600)
    """How often the picture is renewed."""


class LogSettings(_Section):
    """`[log]`: what is written, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text on a terminal, JSON Lines elsewhere."""


class Settings(BaseSettings):
    """Everything that can be set. Every field can be given in the file, by environment
    (`DLCONSOLE_DATASET`, `DLCONSOLE_WORKER__CONCURRENCY`) and most by a flag.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=_NESTED,
        use_attribute_docstrings=True,
    )

    redis: RedisUrl = ""
    """The Redis server; empty: dlconsole starts one of its own on this machine."""
    dataset: Dataset = "default"
    """The dataset: the prefix of the Redis keys."""
    context: str = ""
    """The context to use when none is named."""
    read_only: bool = False
    """Look, but change nothing."""
    colour: Colour = "default"
    """The colour of the console's header."""
    state_dir: Folder = Field(default_factory=lambda: xdg_dir("XDG_STATE_HOME", ".local/state"))
    """Where the own Redis keeps its data, and logs go."""
    contexts: dict[str, ContextSettings] = {}
    """Named connections."""
    worker: WorkerSettings = WorkerSettings()
    fetch: FetchSettings = FetchSettings()
    feed: FeedSettings = FeedSettings()
    console: ConsoleSettings = ConsoleSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands over: it merges the sources itself, to know where each value is from."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with where each came from: dotted key → source, for the keys that are not defaults."""

    settings: Settings
    origins: Mapping[str, str]
    config_path: Path
    config_exists: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One source: nested values, and the words that name it in a message."""

    name: str
    values: dict[str, Any]

    def leaves(self) -> Iterator[tuple[str, Any]]:
        return _leaves(self.values)


def xdg_dir(variable: str, fallback: str) -> Path:
    """`$variable/dlconsole`, or `~/fallback/dlconsole`; a relative value is ignored, as XDG says."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / fallback) / "dlconsole"


def config_path(explicit: Path | None = None) -> Path:
    """The TOML file: `--config`, else `$DLCONSOLE_CONFIG`, else the XDG place."""
    if explicit is not None:
        return explicit.expanduser()
    named = os.environ.get(ENV_PREFIX + "CONFIG")
    if named:
        return Path(named).expanduser()
    return xdg_dir("XDG_CONFIG_HOME", ".config") / "config.toml"


def load(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Loaded:
    """Merge all sources. `flags` maps dotted keys (`worker.concurrency`) to what was given.

    Raises ConfigError naming the source, the key and the accepted values.
    """
    path = config_path(config)
    named = config is not None or bool(os.environ.get(ENV_PREFIX + "CONFIG"))
    file_values = _read_toml(path, must_exist=named)
    layers = [
        _Layer(str(path), file_values or {}),
        _Layer("environment", _read_environment()),
        _Layer("command line", _nest(flags or {})),
    ]
    layers = _with_context(layers)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _merge(merged, layer.values)
        origins.update({key: layer.name for key, _ in layer.leaves()})
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        lines = [_explain(detail, layers) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    warnings = _warnings(path, file_values, flags or {})
    return Loaded(settings, origins, path, file_values is not None, warnings)


def mask_url(url: str) -> str:
    """The URL with its password, also one in the query, replaced by `***`."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "***"
    netloc = parts.netloc
    if password is not None:
        netloc = f"{parts.username or ''}:***@{netloc.rpartition('@')[2]}"
    query = "&".join(
        f"{item.partition('=')[0]}=***" if "pass" in item.partition("=")[0].lower() else item
        for item in parts.query.split("&")
    )
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


def flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted key, value), passwords masked."""
    for key, value in _leaves(settings.model_dump(mode="json")):
        is_url = isinstance(value, str) and "://" in value
        yield key, mask_url(value) if is_url else value


def _read_toml(path: Path, *, must_exist: bool) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{path}: no such file") from None
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _read_environment() -> dict[str, Any]:
    known = {_variable(key) for key in _known_keys()} | {ENV_PREFIX + "CONFIG", ENV_PREFIX + "CONTEXTS"}
    for name in os.environ:
        if not name.startswith(ENV_PREFIX) or name in known or name.startswith(ENV_PREFIX + "CONTEXTS__"):
            continue
        raise ConfigError(f"environment: unknown variable {name}{_did_you_mean(name, known)}")
    # As text, not through EnvSettingsSource's JSON decoding: a wrong value then fails validation,
    # with its key and what is accepted, instead of a decoder's message.
    source = EnvSettingsSource(Settings, case_sensitive=True)
    values: dict[str, Any] = {}
    for key in _known_keys():
        text = source.env_vars.get(_variable(key))
        if text is not None:
            _put(values, key, text)
    for name, text in os.environ.items():
        if name.startswith(ENV_PREFIX + "CONTEXTS__") and name.count(_NESTED) == 2:
            _, context, field = name.split(_NESTED)
            _put(values, f"contexts.{context.lower()}.{field.lower()}", text)
    return values


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", _NESTED)


def _known_keys() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        elif name != "contexts":
            yield name


def _nest(flags: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in flags.items():
        if value is not None:
            _put(values, key, value)
    return values


def _with_context(layers: list[_Layer]) -> list[_Layer]:
    """Insert the chosen context's values below the layer that chose it."""
    chooser = next((layer for layer in reversed(layers) if layer.values.get("context")), None)
    if chooser is None:
        return layers
    name = chooser.values["context"]
    found: dict[str, Any] = {}
    for layer in layers:
        contexts = layer.values.get("contexts")
        if isinstance(contexts, dict) and isinstance(contexts.get(name), dict):
            _merge(found, contexts[name])
    if not found:
        names = sorted({n for la in layers if isinstance(c := la.values.get("contexts"), dict) for n in c})
        known = ", ".join(names) if names else "none is defined; add [contexts.NAME] to the config file"
        raise ConfigError(f"{chooser.name}: unknown context {name!r}; accepted: {known}")
    values = {key: value for key, value in found.items() if key in ContextSettings.model_fields}
    index = layers.index(chooser)
    if chooser is layers[0]:  # the file's own top-level values give way to its context
        return [chooser, _Layer(f"context {name}", values), *layers[1:]]
    return [*layers[:index], _Layer(f"context {name}", values), *layers[index:]]


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _explain(detail: ErrorDetails, layers: list[_Layer]) -> str:
    """One validation error as `source: key: what is accepted`. Never shows the value: it may be secret."""
    location = [str(part) for part in detail["loc"] if part != "[key]"]
    field, model = _field_at(location)
    depth = len(location)
    while depth > 1 and field is None and location[depth - 1].isdigit():  # an item of a list
        depth -= 1
        field, model = _field_at(location[:depth])
    key = ".".join(location[:depth])
    source = next((la.name for la in reversed(layers) if _has(la.values, location[:depth])), "settings")
    name = _variable(key) if source == "environment" else key
    if detail["type"] == "extra_forbidden":
        accepted = sorted(model.model_fields) if model else []
        return f"{source}: unknown key '{name}'{_did_you_mean(location[-1], accepted)}"
    rule = detail["msg"].removeprefix("Value error, ").removeprefix("expected ")
    if detail["type"] != "value_error":
        rule = _accepted(field) or detail["msg"]
    return f"{source}: key '{name}': accepted: {rule}"


def _has(values: Any, location: list[str]) -> bool:
    for part in location:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _field_at(location: list[str]) -> tuple[FieldInfo | None, type[BaseModel] | None]:
    """The field that a dotted location names, and the model that it belongs (or would belong) to."""
    model: type[BaseModel] = Settings
    for index, part in enumerate(location):
        if part == "contexts" and index == 0:
            if len(location) <= 2:
                return None, ContextSettings
            return ContextSettings.model_fields.get(location[2]), ContextSettings
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, _Section) and index < len(location) - 1:
            model = annotation
            continue
        return (field if index == len(location) - 1 else None), model
    return None, model


def _accepted(field: FieldInfo | None) -> str:
    """What a field takes, in words, from its type and its bounds."""
    if field is None:
        return ""
    annotation = field.annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        return ", ".join(repr(value) for value in typing.get_args(annotation))
    if annotation is bool:
        return "true or false"
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return "a table"
    low = next((m.ge for m in field.metadata if isinstance(m, Ge)), None)
    high = next((m.le for m in field.metadata if isinstance(m, Le)), None)
    noun = {int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(annotation, "")  # type: ignore[arg-type]
    if low is not None and high is not None:
        return f"{noun} from {low} to {high}"
    return f"{noun} above 0 and up to {high}" if high is not None else noun


def _did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'? Accepted: {', '.join(names)}"
    return f"; accepted: {', '.join(names)}" if names else ""


def _has_password(url: object) -> bool:
    return isinstance(url, str) and "://" in url and mask_url(url) != url


def _warnings(path: Path, file_values: dict[str, Any] | None, flags: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    if any(_has_password(flags.get(key)) for key in ("redis", "fetch.proxy")):
        found.append(
            "a password on the command line can be read in the process list: "
            "put it into the config file or the environment"
        )
    if file_values is not None and any(_has_password(value) for _, value in _leaves(file_values)):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o044:
            found.append(f"{path}: holds a password and can be read by others; run: chmod 600 {path}")
    return tuple(found)
