"""A legacy `setting.py`, read without running it: which names it sets, and to what.

The file is somebody's program, and may be anything. What is read is what is plain (`legacy_value.py`);
everything else is named with its line and left alone, and what it may set counts as unknown.
"""

from __future__ import annotations

import ast
import codecs
import io
import os
import stat
import tokenize
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dlconsole.errors import ConfigError
from dlconsole.services.legacy_value import NotRead, Unread, Value, dotted, kind_of, value_of
from dlconsole.units import format_bytes

MOST_BYTES: Final = 2**16
"""The scripts' own file has 2 KB."""
MOST_TOKENS: Final = 5000
"""In one statement. Python's compiler may end the process over one that is nested without end."""
_ENCODINGS: Final = frozenset(
    {"utf-8", "utf-8-sig", "ascii", "iso8859-1", "cp1252", "gbk", "gb2312", "gb18030", "big5"}
)
"""Whatever a file may say that it is in: some others take hours to decode, or are not of text."""


@dataclass(frozen=True, slots=True)
class LegacySource:
    """What a file says. Names of a class have its name in front: `RedisKey.task_key`. `not_run` is what
    stands there besides and may change something: in words, with its line.
    """

    path: Path
    values: dict[str, Value | Unread] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)


def read_source(path: Path) -> LegacySource:
    """Raises ConfigError where there is no such file, or it is no Python 3 of a settings file's size."""
    tree = _parse(path, _text(path))
    source = LegacySource(path)
    try:
        _Reader(source).statements(tree.body, "")
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep to be read") from None
    return source


# -- bytes → syntax tree ---------------------------------------------------------------------------


def _text(path: Path) -> str:
    data = _bytes(path)
    try:
        name, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if codecs.lookup(name).name not in _ENCODINGS:
            raise ConfigError(f"{path}: is in {name[:40]!r}, which is not read here; save it as UTF-8")
        return data.decode(name)
    except SyntaxError:  # also of an encoding that does not exist
        raise ConfigError(
            f"{path}: neither UTF-8 nor in an encoding that it names; save it as UTF-8"
        ) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: is not {error.encoding}; save it as UTF-8") from None


def _bytes(path: Path) -> bytes:
    try:
        # Opening a FIFO that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: is no file; name the scripts' setting.py")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(handle)
    if len(data) > MOST_BYTES:
        size = format_bytes(max(found.st_size, len(data)))
        raise ConfigError(f"{path}: has {size}, more than {format_bytes(MOST_BYTES)}: this is no setting.py")
    return data


def _parse(path: Path, text: str) -> ast.Module:
    _check_statements(path, text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of the backslashes of a Windows path
            return ast.parse(text)
    except SyntaxError as error:  # its own words only: the line itself may be the password's
        raise ConfigError(f"{path}: line {error.lineno or 1}: not Python 3: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise ConfigError(f"{path}: nested too deep to be read") from None
    except ValueError as error:  # zero bytes
        raise ConfigError(f"{path}: not Python 3: {error}") from None


def _check_statements(path: Path, text: str) -> None:
    """Raises ConfigError where a statement is too long to be parsed in safety."""
    count = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            nests = token.type not in {tokenize.NL, tokenize.COMMENT}
            count = 0 if token.type == tokenize.NEWLINE else count + nests
            if count > MOST_TOKENS:
                line = token.start[0]
                raise ConfigError(f"{path}: line {line}: a statement of more than {MOST_TOKENS} words")
    except (tokenize.TokenError, SyntaxError):
        return  # the parser comes to the same place, and has better words for it


# -- syntax tree → values --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """Goes through the statements in their order. A `prefix` is the class they stand in, with its dot."""

    source: LegacySource

    def statements(self, nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            self._statement(node, prefix)

    def _statement(self, node: ast.stmt, prefix: str) -> None:
        match node:
            case ast.Pass() | ast.Import() | ast.AnnAssign(value=None):
                pass
            case ast.Expr(value=ast.Constant() | ast.Call(func=ast.Name(id="print"))):
                self._forget(node, prefix)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._assign(target, value, prefix)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, value, prefix)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                before = ast.copy_location(ast.Name(name, ast.Load()), target)
                self._assign(target, ast.copy_location(ast.BinOp(before, op, value), node), prefix)
            case ast.ClassDef():
                self._class(node, prefix)
            case ast.ImportFrom():
                self._import(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._set(prefix + node.name, Unread(f"line {node.lineno}: it is a function", borrowed=True))
            case _:
                self._leave(node, prefix)

    def _assign(self, target: ast.expr, value: ast.expr, prefix: str) -> None:
        match target, value:
            case ast.Tuple(elts=names), ast.Tuple(elts=values) if _pairs(names, values):
                found = [self._value(part, prefix) for part in values]  # all, before any name is set
                for name, known in zip(names, found, strict=True):
                    self._set(prefix * isinstance(name, ast.Name) + dotted(name), known)
            case ast.Name() | ast.Attribute(value=ast.Name()), _:
                self._set(prefix * isinstance(target, ast.Name) + dotted(target), self._value(value, prefix))
            case _:
                self._leave(target, prefix)
        self._forget(value, prefix)

    def _set(self, name: str, value: Value | Unread) -> None:
        self.source.values[name] = value

    def _value(self, node: ast.expr, prefix: str) -> Value | Unread:
        try:
            return value_of(node, self.source.values, prefix)
        except NotRead as error:
            return Unread(f"line {node.lineno}: {error}")

    def _class(self, node: ast.ClassDef, prefix: str) -> None:
        plain = all(isinstance(base, ast.Name) and base.id == "object" for base in node.bases)
        if not plain or node.keywords or node.decorator_list:
            self._say(node, f"what class {node.name} takes from elsewhere")
        self.statements(node.body, f"{prefix}{node.name}.")

    def _import(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self._say(node, "what `import *` brings")
            else:
                why = f"line {node.lineno}: it comes from another module"
                self._set(alias.asname or alias.name, Unread(why, borrowed=True))

    def _leave(self, node: ast.stmt | ast.expr, prefix: str) -> None:
        """Say that it is not run, and forget what it may set."""
        self._say(node, kind_of(node.value if isinstance(node, ast.Expr) else node))
        self._forget(node, prefix)

    def _say(self, node: ast.stmt | ast.expr, what: str) -> None:
        self.source.not_run.append(f"line {node.lineno}: {what}")

    def _forget(self, node: ast.AST, prefix: str) -> None:
        """Whatever is set in here is not known from now on."""
        for inner in ast.walk(node):
            match inner:
                case ast.Name(ctx=ast.Store() | ast.Del()):
                    name = prefix + inner.id
                case ast.Attribute(value=ast.Name(), ctx=ast.Store() | ast.Del()):
                    name = dotted(inner)
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    name = prefix + inner.name
                case _:
                    continue
            self._set(name, Unread(f"line {inner.lineno}: whether and how it is set there is not known"))
            below = name + "."
            for other in [key for key in self.source.values if key.startswith(below)]:
                self._set(other, self.source.values[name])


def _pairs(names: list[ast.expr], values: list[ast.expr]) -> bool:
    """Whether each name has its value."""
    plain = all(isinstance(name, ast.Name) or dotted(name).count(".") == 1 for name in names)
    return plain and len(names) == len(values) and not any(isinstance(v, ast.Starred) for v in values)
