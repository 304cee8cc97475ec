"""Where the settings come from: defaults ← TOML file ← environment ← flags.

A context (`[contexts.NAME]`) supplies its values just below whatever chose it: chosen by `--context`
they beat the environment, chosen by the file they do not.
"""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from annotated_types import Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dlconsole.errors import ConfigError
from dlconsole.settings import (
    ENV_PREFIX,
    NESTED,
    ContextSettings,
    Section,
    Settings,
    mask_url,
    rule_of,
    xdg_dir,
)

_CONTEXT_LAYER: Final = "context "
_ORDERED: Final = (
    ("fetch.connect_timeout_s", "fetch.deadline_s"),
    ("fetch.min_rate_window_s", "fetch.deadline_s"),
    ("dns.timeout_s", "fetch.deadline_s"),
)
"""Limits that are never reached where the second is smaller; a default gives way to it without harm."""


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
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        lines = [_explain(detail, layers) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(filter(None, lines)))) from None
    _check_order(settings, origins)
    warnings = _warnings(path, file_values, flags or {})
    return Loaded(settings, origins, path, file_values is not None, warnings)


def _check_order(settings: Settings, origins: Mapping[str, str]) -> None:
    """Raises ConfigError where what was set contradicts another setting."""
    values = dict(_leaves(settings.model_dump()))
    contradictions = [(low, high) for low, high in _ORDERED if low in origins and values[low] > values[high]]
    if settings.dns.min_ttl_s > settings.dns.max_ttl_s:
        contradictions.append(("dns.min_ttl_s", "dns.max_ttl_s"))
    if not settings.fetch.min_bytes_per_s:  # there is no window
        contradictions = [pair for pair in contradictions if pair[0] != "fetch.min_rate_window_s"]

    def shown(key: str) -> str:
        return f"'{key}' ({values[key]:g} s, {origins.get(key, 'the default')})"

    if contradictions:
        lines = [f"key {shown(low)} is above {shown(high)}" for low, high in contradictions]
        raise ConfigError(
            "\n".join(f"settings: {line}: lower the first or raise the second" for line in lines)
        )


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
    known = {variable(key) for key in known_keys()} | {ENV_PREFIX + "CONFIG"}
    for name in os.environ:
        if not name.startswith(ENV_PREFIX) or name in known or _context_variable(name):
            continue
        raise ConfigError(f"environment: unknown variable {name}{_did_you_mean(name, known)}")
    # As text: a wrong value then fails validation, with its key and what is accepted.
    values: dict[str, Any] = {}
    for key in known_keys():
        text = os.environ.get(variable(key))
        if text is not None:
            _put(values, key, text)
    for name, text in os.environ.items():
        if found := _context_variable(name):
            _put(values, f"contexts.{found[0].lower()}.{found[1].lower()}", text)
    return values


def _context_variable(name: str) -> tuple[str, str] | None:
    """(PROD, REDIS) of DLCONSOLE_CONTEXTS__PROD__REDIS."""
    head, *parts = name.split(NESTED)
    if head != ENV_PREFIX + "CONTEXTS" or len(parts) != 2 or not all(parts):
        return None
    return parts[0], parts[1]


def variable(key: str) -> str:
    """The environment variable of a dotted key: `worker.batch` → `DLCONSOLE_WORKER__BATCH`."""
    return ENV_PREFIX + key.upper().replace(".", NESTED)


def known_keys() -> Iterator[str]:
    """The dotted key of every setting, without those of contexts."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
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
    name = variable(key) if source == "environment" else key
    if detail["type"] == "extra_forbidden":
        accepted = sorted(model.model_fields) if model else []
        return f"{source}: unknown key '{name}'{_did_you_mean(location[-1], accepted)}"
    rule = detail["msg"].removeprefix("Value error, ").removeprefix("expected ")
    if detail["type"] in {"dict_type", "model_type"}:
        rule = "a table"
    elif detail["type"] != "value_error" or (field and any(isinstance(m, Le) for m in field.metadata)):
        rule = rule_of(field) or rule.removeprefix("Input should be ")
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
        if isinstance(annotation, type) and issubclass(annotation, Section) and index < len(location) - 1:
            model = annotation
            continue
        return (field if index == len(location) - 1 else None), model
    return None, model


def _did_you_mean(name: str, known: Iterable[str]) -> str:
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
