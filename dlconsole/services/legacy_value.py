"""The value of an expression in a legacy `setting.py`, worked out without running it.

Literals, names and `Class.name` set before, f-strings, `+` and `%` of text, and arithmetic; all of it within
bounds, so that no expression takes time or memory. Anything else is said with what it is.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Value = str | int | float | None
"""What a setting can be; `bool` is an `int`."""

_MOST_CHARACTERS: Final = 10_000
_LARGEST: Final = 2**64
_MOST_BITS: Final = 4096
"""Of what a power or a shift may have before it is looked at."""
_SUMS: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_DIRECTIVE: Final = re.compile(r"%(.?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Unread:
    """In a value's place: why it is not known. `borrowed`: the name is no setting that stands here."""

    why: str
    borrowed: bool = False


class NotRead(Exception):
    """An expression is not worked out; the text says why, behind `its value is not read: `."""


def value_of(node: ast.expr, known: Mapping[str, Value | Unread], prefix: str = "") -> Value:
    """The value; `prefix` is the class that the expression stands in, with its dot. Raises NotRead."""
    return _Worker(known, prefix).out(node)


def kind_of(node: ast.AST) -> str:
    """What a piece of a program is, in words; never its text, which may hold a password."""
    if isinstance(node, ast.Call):
        name = dotted(node.func)
        if name in {"int", "float", "str"} and len(node.args) == 1:
            inner = kind_of(node.args[0])
            return inner if "environment" in inner else f"a call of {name}()"
        if name in {"os.environ.get", "os.getenv", "environ.get", "getenv"}:
            return f"a variable of the environment{_first(node.args)}"
        return f"a call of {name}()" if name else "a call"
    if isinstance(node, ast.Subscript) and dotted(node.value) in {"os.environ", "environ"}:
        return f"a variable of the environment{_first([node.slice])}"
    if isinstance(node, (ast.Dict, ast.List, ast.Set, ast.Tuple)):
        return f"a {type(node).__name__.lower()}"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).lower()
    return f"the statement `{words}`" if isinstance(node, ast.stmt) else f"an expression ({words})"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of names and attributes, '' of others."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join((node.id, *reversed(parts))) if isinstance(node, ast.Name) else ""


def _first(nodes: list[ast.expr]) -> str:
    name = nodes[0].value if nodes and isinstance(nodes[0], ast.Constant) else None
    return f", {name}" if isinstance(name, str) and re.fullmatch(r"\w{1,60}", name) else ""


@dataclass(frozen=True, slots=True)
class _Worker:
    known: Mapping[str, Value | Unread]
    prefix: str

    def out(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=value):
                return _bounded(value)
            case ast.Name(id=name):
                return self._look_up(name, self.prefix + name)
            case ast.Attribute():
                return self._look_up(dotted(node), kind=kind_of(node))
            case ast.JoinedStr(values=parts):
                return self._joined(parts)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                number = _number(self.out(operand))
                return -number if isinstance(sign, ast.USub) else number
            case ast.BinOp(left=left, op=op, right=right):
                return self._combined(self.out(left), op, right)
            case _:
                raise NotRead(f"it is {kind_of(node)}")

    def _look_up(self, name: str, first: str = "", kind: str = "") -> Value:
        found = self.known.get(first, self.known.get(name, Unread("")))
        if not isinstance(found, Unread):
            return found
        raise NotRead(f"it takes {name}, which is not known here" if name else f"it is {kind}")

    def _joined(self, parts: list[ast.expr]) -> str:
        texts = []
        for part in parts:
            if isinstance(part, ast.FormattedValue):
                if part.conversion not in {-1, ord("s")} or part.format_spec is not None:
                    raise NotRead("it is an f-string with a format")
                part = part.value  # noqa: PLW2901
            texts.append(str(self.out(part)))
            _bounded("".join(texts))
        return "".join(texts)

    def _combined(self, left: Value, op: ast.operator, right: ast.expr) -> Value:
        if isinstance(left, str) and isinstance(op, ast.Mod):
            several = right.elts if isinstance(right, ast.Tuple) else [right]
            return _bounded(_filled(left, [self.out(node) for node in several]))
        other = self.out(right)
        if isinstance(left, str) and isinstance(other, str) and isinstance(op, ast.Add):
            return _bounded(left + other)
        return _sum(_number(left), op, _number(other))


def _filled(text: str, values: list[Value]) -> str:
    """`text % values`, of which only `%s`, `%d`, `%i` and `%%` are understood."""
    left = iter(values)

    def fill(found: re.Match[str]) -> str:
        if found[1] == "%":
            return "%"
        if found[1] not in {"s", "d", "i"}:
            raise NotRead("it has a format other than %s and %d")
        try:
            value = next(left)
        except StopIteration:
            raise NotRead("it has too few values for its format") from None
        return str(value) if found[1] == "s" else str(int(_number(value)))

    filled = _DIRECTIVE.sub(fill, text)
    if any(True for _ in left):
        raise NotRead("it has too many values for its format")
    return filled


def _sum(left: float, op: ast.operator, right: float) -> Value:
    try:
        if isinstance(op, (ast.Pow, ast.LShift)):
            return _bounded(_raised(left, op, right))
        if type(op) in _SUMS:
            return _bounded(_SUMS[type(op)](left, right))
    except (ArithmeticError, ValueError):
        raise NotRead("it cannot be calculated") from None
    raise NotRead("it is more than simple arithmetic")


def _raised(left: float, op: ast.operator, right: float) -> float:
    whole = isinstance(left, int) and isinstance(right, int)
    if not whole or right < 0:
        raise NotRead("it is more than simple arithmetic")
    base, exponent = int(left), int(right)
    bits = base.bit_length() * exponent if isinstance(op, ast.Pow) else exponent
    if bits > _MOST_BITS:
        raise NotRead("it is a number beyond 2^64")
    return int(base**exponent) if isinstance(op, ast.Pow) else base << exponent


def _number(value: Value) -> int | float:
    if isinstance(value, (int, float)):
        return value
    raise NotRead("it mixes text and numbers" if isinstance(value, str) else "it calculates with None")


def _bounded(value: object) -> Value:
    """The value, where it is one and no giant. Raises NotRead."""
    if isinstance(value, str):
        if len(value) > _MOST_CHARACTERS:
            raise NotRead(f"it is text of more than {_MOST_CHARACTERS} characters")
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise NotRead("it is a number beyond 2^64")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise NotRead("it is not a finite number")
    elif value is not None:
        raise NotRead("it is neither text nor a number")
    return value
