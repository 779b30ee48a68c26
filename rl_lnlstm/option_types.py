"""Types and ranges of options, and the check of a value against them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from rl_lnlstm.errors import UserError, one_line


class Range(NamedTuple):
    """The values that an option may have, and how an error describes them."""

    holds: Callable[[Any], bool]
    expected: str


Count = Annotated[int, Range(lambda value: value >= 1, "an integer of at least 1")]
Index = Annotated[int, Range(lambda value: value >= 0, "an integer of at least 0")]
Fraction = Annotated[float, Range(lambda value: 0 <= value <= 1, "between 0 and 1")]
Positive = Annotated[float, Range(lambda value: 0 < value < math.inf, "greater than 0")]
NonNegative = Annotated[float, Range(lambda value: 0 <= value < math.inf, "at least 0")]
SampleFrequency = Annotated[int, Range(lambda value: value == -1 or value >= 1, "an integer of at least 1, or -1")]
Finite = Annotated[float, Range(math.isfinite, "a finite number")]


def checked(name: str, value: Any, hint: Any) -> Any:
    """Returns the value of the option `name` as plain Python, with tuples instead of lists.

    Raises:
        UserError: the value does not have the type `hint`, or is out of range.
    """
    value = _plain(value)
    if not _is_of_type(value, hint):
        raise UserError(f"{name} must be {_expected(hint)}, got {_shortened(value)}")
    return value


def tuple_if_list(value: Any) -> Any:
    """Options have tuples where JSON has lists."""
    return tuple(value) if isinstance(value, list) else value


def from_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they were before they were written to JSON."""
    return {name: tuple_if_list(value) for name, value in options.items()}


def metadata(hint: Any) -> tuple[Any, ...]:
    """What a type hint is annotated with."""
    return getattr(hint, "__metadata__", ())


class OptionDoc(NamedTuple):
    """What the source of a dataclass says about an option."""

    default: str  # an expression; "required" if the option must be given
    meaning: str  # the docstring below the field, in one line


def option_docs(kind: type) -> dict[str, OptionDoc]:
    """The options of a dataclass and of its bases that have a docstring, by their names.

    Empty if the package was installed without its sources.
    """
    bases = [base for base in kind.__mro__ if dataclasses.is_dataclass(base)]
    try:
        sources = [inspect.getsource(base) for base in reversed(bases)]
    except OSError:
        return {}
    docs: dict[str, OptionDoc] = {}
    for source in sources:
        (definition,) = ast.parse(textwrap.dedent(source)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                default = "required" if field.value is None else ast.unparse(field.value)
                docs[ast.unparse(field.target)] = OptionDoc(default, one_line(text.value.value))
    return docs


def describe_options(kind: type) -> str:
    """Lists the options of a dataclass and its bases, with defaults and meanings, for a docstring."""
    entries = [f"{name} ({doc.default}): {doc.meaning}" for name, doc in option_docs(kind).items()]
    return "\n".join(line for entry in entries for line in textwrap.wrap(entry, width=116, subsequent_indent="    "))


def _plain(value: Any) -> Any:
    """Converts NumPy scalars to Python numbers, so that options can be saved, and lists to tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(part) for part in value)
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") and value.ndim == 0 else value


def _is_of_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [entry for entry in metadata(hint) if isinstance(entry, Range)]
        return _is_of_type(value, arguments[0]) and all(entry.holds(value) for entry in ranges)
    if origin is Literal:
        return any(value == known and type(value) is type(known) for known in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(part, arguments[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of_type(part, kind) for item in value.items() for part, kind in zip(item, arguments, strict=True)
        )
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, argument) for argument in arguments)
    if hint is float:
        # Accept only integers that a float represents exactly. A file may contain larger ones.
        return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return type(value) is hint and (hint is not int or abs(value) < 2**63)


def _expected(hint: Any) -> str:
    """Describes the expected values, for an error message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [entry.expected for entry in metadata(hint) if isinstance(entry, Range)]
        return " and ".join(ranges) or _expected(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return f"a sequence, each {_expected(arguments[0])}"
    if origin is dict:
        return f"a dictionary, each key {_expected(arguments[0])} and each value {_expected(arguments[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_expected(argument) for argument in arguments)
    names = {int: "an integer", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
