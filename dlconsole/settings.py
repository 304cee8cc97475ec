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
from ipaddress import ip_address, ip_network
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

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
from dlconsole.units import BYTES_RULE, SECONDS_RULE, parse_bytes, parse_seconds

ENV_PREFIX: Final = "DLCONSOLE_"
_NESTED: Final = "__"
_CONTEXT_LAYER: Final = "context "

Colour = Literal["default", "red", "orange", "yellow", "green", "cyan", "blue", "magenta"]
_REDIS_OPTIONS: Final = (
    "db",
    "username",
    "password",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
REDIS_RULE: Final = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///path/to/socket, with user and password as "
    f"USER:PASSWORD@ (their special characters as %XX) and options ?name=value of {', '.join(_REDIS_OPTIONS)}"
)
PROXY_RULE: Final = "http://HOST:PORT, https://HOST:PORT or socks5h://HOST:PORT"
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
        # '#' and a second '@' are a password's that was not written as %XX: it would be shown.
        usable = parts.port != 0 and not parts.fragment and "@" not in parts.path + parts.query
        options = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    except ValueError:  # a port that is no number, a bracket that is not closed
        raise ValueError(f"expected {REDIS_RULE}") from None
    if parts.scheme == "unix":
        usable = usable and parts.path.startswith("/")
    else:
        database = parts.path.strip("/")
        usable = usable and parts.scheme in {"redis", "rediss"} and bool(parts.hostname)
        usable = usable and (not database or (database.isascii() and database.isdecimal()))
    if not usable or not options <= set(_REDIS_OPTIONS) or not url.isprintable():
        raise ValueError(f"expected {REDIS_RULE}")
    return url


def _check_dataset(name: str) -> str:
    if not is_dataset_name(name):
        raise ValueError(f"expected {DATASET_RULE}")
    return name


def _check_template(template: str) -> str:
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        raise ValueError(f"expected {TEMPLATE_RULE}") from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    plain = all(name in _TEMPLATE_FIELDS and not spec and not conversion for name, spec, conversion in fields)
    filled = "".join(text + ("x" if name is not None else "") for text, name, _, _ in pieces)
    usable = plain and any(name == "sha256" for name, _, _ in fields) and filled.isprintable()
    if not usable or any(part in {"", ".", ".."} for part in filled.removeprefix("/").split("/")):
        raise ValueError(f"expected {TEMPLATE_RULE}")
    return template


def _check_proxy(url: str) -> str:
    if not url:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and parts.scheme in {"http", "https", "socks5h"} and bool(parts.hostname)
        usable = usable and not parts.query and not parts.fragment and parts.path in {"", "/"}
    except ValueError:
        usable = False
    if not usable or not url.isprintable():
        raise ValueError(f"expected {PROXY_RULE}, with user and password as USER:PASSWORD@")
    return url


def _check_user_agent(text: str) -> str:
    if not (1 <= len(text) <= 400 and text.isascii() and text.isprintable()):
        raise ValueError("expected 1 to 400 printable ASCII characters")
    return text


def _check_ip(text: str) -> str:
    try:
        return str(ip_address(text)) if text else text
    except ValueError:
        raise ValueError("expected an address such as '10.1.2.3'") from None


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError("expected a network such as '10.0.0.0/8' or 'fd00::/8'") from None


def _absolute(value: object) -> object:
    """A folder, `~` expanded; a relative one is taken from where the program was started."""
    if not isinstance(value, (str, Path)):
        return value
    if not str(value) or not str(value).isprintable():
        raise ValueError("expected a path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise ValueError("expected a path; this ~user has no home directory") from None


_RULES: Final[dict[object, str]] = {
    parse_seconds: f"{SECONDS_RULE};",
    parse_bytes: f"{BYTES_RULE};",
    _check_redis_url: REDIS_RULE,
    _check_proxy: PROXY_RULE,
    _check_dataset: DATASET_RULE,
    _check_template: TEMPLATE_RULE,
}

Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Count = Annotated[int, BeforeValidator(_not_bool)]
Folder = Annotated[Path, BeforeValidator(_absolute)]
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

    store_dir: Folder = Field(default_factory=lambda: Path("store").absolute())
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
    host_ip: Annotated[str, AfterValidator(_check_ip)] = ""
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
    user_agent: Annotated[str, AfterValidator(_check_user_agent)] = "dlconsole (dataset downloader)"
    """What the worker calls itself; name a contact here."""
    proxy: Annotated[str, AfterValidator(_check_proxy)] = ""
    """Forward proxy for every fetch; empty: none. Proxy variables of the environment are ignored."""
    ca_file: Folder | None = None
    """File of certificate authorities to trust for https; none: certifi's."""
    allow_networks: Networks = ()
    """Networks that may be fetched from although they are not public."""


class FeedSettings(_Section):
    """`[feed]`: URL lists to tasks."""

    path_template: Annotated[str, AfterValidator(_check_template)] = "/{ds}/images/{sha256}.jpg"
    """Where an image goes; {ab} and {cd} are the first and second two characters of {sha256}."""
    block: Count = Field(default=2000, ge=1, le=100_000)
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
    worker: WorkerSettings = Field(default_factory=WorkerSettings)  # its folder depends on where we are
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
    named = explicit or os.environ.get(ENV_PREFIX + "CONFIG")
    if named:
        return Path(os.path.expanduser(named))  # an unknown ~user stays: then there is no such file
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
    for name in merged:
        if name.startswith("_"):  # BaseSettings would take these for options of its own
            source = next(layer.name for layer in layers if name in layer.values)
            raise ConfigError(f"{source}: unknown key '{name}'{_did_you_mean(name, Settings.model_fields)}")
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        lines = [_explain(detail, layers) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(filter(None, lines)))) from None
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
        f"{item.partition('=')[0]}=***" if "pass" in unquote(item.partition("=")[0]).lower() else item
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
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, numbers without end
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _read_environment() -> dict[str, Any]:
    known = {_variable(key) for key in _known_keys()} | {ENV_PREFIX + "CONFIG"}
    for name in os.environ:
        if not name.startswith(ENV_PREFIX) or name in known or _context_variable(name):
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
        if found := _context_variable(name):
            _put(values, f"contexts.{found[0].lower()}.{found[1].lower()}", text)
    return values


def _context_variable(name: str) -> tuple[str, str] | None:
    """(PROD, REDIS) of DLCONSOLE_CONTEXTS__PROD__REDIS."""
    head, *parts = name.split(_NESTED)
    if head != ENV_PREFIX + "CONTEXTS" or len(parts) != 2 or not all(parts):
        return None
    return parts[0], parts[1]


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
    chooser = next((layer for layer in reversed(layers) if "context" in layer.values), None)
    name = chooser.values["context"] if chooser else ""
    if chooser is None or not name or not isinstance(name, str):  # '' is «none»; validation refuses the rest
        return layers
    tables = [c for layer in layers if isinstance(c := layer.values.get("contexts"), dict)]
    if not any(name in contexts for contexts in tables):
        names = sorted({known for contexts in tables for known in contexts})
        known = ", ".join(names) if names else "none is defined; add [contexts.NAME] to the config file"
        raise ConfigError(f"{chooser.name}: unknown context {name!r}; accepted: {known}")
    found: dict[str, Any] = {}
    for contexts in tables:
        if isinstance(contexts.get(name), dict):
            _merge(found, contexts[name])
    values = {key: value for key, value in found.items() if key in ContextSettings.model_fields}
    index = layers.index(chooser)
    if chooser is layers[0]:  # the file's own top-level values give way to its context
        return [chooser, _Layer(_CONTEXT_LAYER + name, values), *layers[1:]]
    return [*layers[:index], _Layer(_CONTEXT_LAYER + name, values), *layers[index:]]


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
    """One validation error as `source: key: what is accepted`. Never shows the value: it may be secret.

    '' for what a context supplies: it is refused once, where it is written, under contexts.NAME.
    """
    location = [str(part) for part in detail["loc"] if part != "[key]"]
    field, model = _field_at(location)
    depth = len(location)
    while depth > 1 and field is None and location[depth - 1].isdigit():  # an item of a list
        depth -= 1
        field, model = _field_at(location[:depth])
    key = ".".join(location[:depth])
    source = next((la.name for la in reversed(layers) if _has(la.values, location[:depth])), "settings")
    if source.startswith(_CONTEXT_LAYER):
        return ""
    name = _variable(key) if source == "environment" else key
    if detail["type"] == "extra_forbidden":
        accepted = sorted(model.model_fields) if model else []
        return f"{source}: unknown key '{name}'{_did_you_mean(location[-1], accepted)}"
    rule = detail["msg"].removeprefix("Value error, ").removeprefix("expected ")
    if detail["type"] in {"dict_type", "model_type"}:
        rule = "a table"
    elif detail["type"] != "value_error" or (field and any(isinstance(m, Le) for m in field.metadata)):
        rule = _accepted(field) or rule.removeprefix("Input should be ")
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
    annotation, metadata = field.annotation, list(field.metadata)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is Annotated:
        annotation, *inner = typing.get_args(annotation)
        metadata += inner
    if typing.get_origin(annotation) is Literal:
        return ", ".join(repr(value) for value in typing.get_args(annotation))
    if annotation is bool:
        return "true or false"
    low = next((m.ge for m in metadata if isinstance(m, Ge)), None)
    high = next((m.le for m in metadata if isinstance(m, Le)), None)
    noun = {int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(annotation, "")  # type: ignore[arg-type]
    checks = [m.func for m in metadata if isinstance(m, (BeforeValidator, AfterValidator))]
    noun = next((_RULES[check] for check in checks if check in _RULES), noun)
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
    return isinstance(url, str) and "://" in url and "***" in mask_url(url)


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
