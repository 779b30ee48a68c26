"""Parsing command lines with tyro, with a grouped help."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rl_lnlstm.commands.words import kinds_of, normalised
from rl_lnlstm.option_types import option_docs

WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def parse_options(
    kind: type,
    arguments: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    default: Any = None,
    marks: Mapping[str, str] | None = None,
    prog: str | None = None,
) -> Any:
    """Parses the options of a command.

    Args:
        kind: a dataclass of options, each with a docstring below it.
        arguments: the command line.
        groups: names of the options by the title of their group in the help. Others keep their defaults.
        default: an instance of `kind` with the defaults; None for the defaults of the class.
        marks: for some options, a word that says where the default comes from, such as "preset".
        prog: the name of the command.

    Raises:
        UserError: an option is unknown, or a value has the wrong type or is out of range.
        SystemExit: tyro printed help.
    """
    of_kind = typing.get_type_hints(kind, include_extras=True)
    hints = {name: of_kind[name] for names in groups.values() for name in names}
    grouped = _grouped_class(kind, hints, groups, default, marks or {})
    form: Any = tyro.conf.OmitArgPrefixes
    parsed: Any = tyro.cli(
        form[grouped],
        args=normalised(arguments, hints),
        prog=prog,
        description=inspect.getdoc(kind),
    )
    values = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    for name, hint in hints.items():
        if _is_dictionary(hint) and values[name] is None:
            values[name] = _value(kind, name, default)
    return kind(**values)


def _grouped_class(
    kind: type, hints: Mapping[str, Any], groups: Mapping[str, Sequence[str]], default: Any, marks: Mapping[str, str]
) -> type:
    """Makes a dataclass with a nested dataclass for each group, because tyro groups its help in this way."""
    meanings = {name: doc.meaning for name, doc in option_docs(kind).items()}  # empty without the package's sources
    outer: list[Any] = []
    for title, names in groups.items():
        inner: list[Any] = []
        for name in names:
            value = _value(kind, name, default)
            if value is dataclasses.MISSING:
                argument = tyro.conf.arg(help=meanings.get(name, ""), metavar=name.upper(), help_behavior_hint="")
                inner.append((name, Annotated[hints[name], argument]))
                continue
            argument = tyro.conf.arg(
                help=meanings.get(name, ""),
                metavar=_word(hints[name]),
                help_behavior_hint=_describe_default(value, marks.get(name)),
            )
            if _is_dictionary(hints[name]):
                # tyro would turn a dictionary with entries into one flag for each. `parse_options` puts it back.
                inner.append((name, Annotated[hints[name] | None, argument], None))
            else:
                inner.append((name, Annotated[hints[name], argument], value))
        group = dataclasses.make_dataclass(title, inner, kw_only=True)
        group.__doc__ = ""
        required = any(len(field) == 2 for field in inner)
        outer.append((title, group) if required else (title, group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("options", outer, kw_only=True)


def _is_dictionary(hint: Any) -> bool:
    return dict in kinds_of(hint)


def _value(kind: type, name: str, default: Any) -> Any:
    """The default of an option; `dataclasses.MISSING` if it must be given."""
    if default is not None:
        return getattr(default, name)
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _describe_default(value: Any, mark: str | None) -> str:
    """Describes a default for the help."""
    if isinstance(value, tuple):
        text = " ".join(map(str, value)) or "none"
    elif isinstance(value, dict):
        text = " ".join(f"{name}={part}" for name, part in value.items()) or "none"
    else:
        text = str(value)
    return f"({mark or 'default'}: {text})"


def _word(hint: Any) -> str | None:
    """The name of a type's values in the help; None for tyro's own."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _word(arguments[0])
    if origin in (typing.Union, types.UnionType):
        words = [_word(argument) for argument in arguments if argument is not type(None)]
        return None if None in words else "|".join(map(str, words)) + ("|None" if type(None) in arguments else "")
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        word = _word(arguments[0])
        return None if word is None else f"[{word} ...]"
    if origin is dict:
        return "[KEY=VALUE ...]"
    return WORDS.get(hint)
