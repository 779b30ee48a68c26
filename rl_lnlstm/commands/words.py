"""Checks the words of a command line, converts them to the forms that tyro knows, and finds some before it is parsed.

tyro describes a mistake in a box of many lines. Mistakes are found here first, and described in one line.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from rl_lnlstm.errors import UserError
from rl_lnlstm.option_types import checked, metadata
from rl_lnlstm.other_names import name_here


def normalised(arguments: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Converts a command line to the forms that tyro knows.

    Numbers such as 1e5 become integers, and `--env-kwargs length=5` becomes `--env-kwargs length 5`.

    Args:
        arguments: the command line.
        hints: the type hints of the options.

    Raises:
        UserError: an option is unknown; a value has the wrong type, is out of range, or is missing; or a word has no
            place. The message names it.
    """
    if "-h" in arguments or "--help" in arguments:
        return ["--help"]
    flags = {_flag(name): name for name, hint in hints.items() if not _is_positional(hint)}
    result, others = list[str](), list[str]()
    for flag, words, _ in _groups(arguments):
        if flag is None:
            others += words
            continue
        hint = hints[_option(flag, flags, hints)]
        count = _number_of_values(flag, words, hint)
        result += [f"--{flag}", *_values(f"--{flag}", words[:count], hint)]
        others += words[count:]
    _check_positional(others, hints)
    return [*others, *result]


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """Finds the value of one option on a command line, before parsing, because the defaults of others depend on it.

    Returns None if the option is not given, is given as None, or has no value, which `normalised` refuses later.
    """
    found = None
    for flag, words, _ in _groups(arguments):
        if flag == _flag(name):
            found = words[0] if words and words[0] not in ("", "None") else None
    return found  # the last one counts


def numbers_of(arguments: Sequence[str], names: Iterable[str]) -> dict[str, int]:
    """The values of these options, where a command line sets them to integers."""
    numbers = {}
    for name in names:
        with contextlib.suppress(ValueError):
            numbers[name] = int(without_exponent(value_of(arguments, name) or ""))
    return numbers


def given_options(arguments: Sequence[str], names: Collection[str]) -> frozenset[str]:
    """Those of the options `names` that a command line sets."""
    flags = {group.flag for group in _groups(arguments)}
    return frozenset(name for name in names if flags & {_flag(name), f"no-{_flag(name)}"})


def without(arguments: Sequence[str], *names: str) -> list[str]:
    """The command line without these options and their values."""
    dropped = {_flag(name) for name in names}
    return [argument for group in _groups(arguments) if group.flag not in dropped for argument in group.arguments]


class _Group(NamedTuple):
    flag: str | None  # without its two hyphens; None for the words before the first flag
    words: list[str]
    arguments: list[str]  # the flag and the words as they were given


def _groups(arguments: Sequence[str]) -> Iterator[_Group]:
    """The flags, and the words that follow each."""
    group = _Group(None, [], [])
    for argument in arguments:
        if argument.startswith("--"):
            yield group
            flag, equals, value = argument[2:].partition("=")
            group = _Group(_flag(flag), [value] if equals else [], [])
        else:
            group.words.append(argument)
        group.arguments.append(argument)
    yield group


def _flag(name: str) -> str:
    """The flag of an option, without its two hyphens."""
    return name.replace("_", "-")


def _option(flag: str, flags: Mapping[str, str], hints: Mapping[str, Any]) -> str:
    """The name of the option that a flag sets."""
    if flag in flags:
        return flags[flag]
    without_no = flags.get(flag.removeprefix("no-"))
    if without_no is not None and _is_switch(hints[without_no]):
        return without_no
    here = name_here(flag.replace("-", "_"), flags.values(), lambda name: "--" + _flag(name))
    near = difflib.get_close_matches(flag, flags, n=3, cutoff=0.5)
    if here:
        suggestion = f"here it is {here}"
    else:
        suggestion = (
            f"did you mean {' or '.join('--' + name for name in near)}?" if near else "--help lists all options"
        )
    raise UserError(f"unknown option --{flag}: {suggestion}")


def _number_of_values(flag: str, words: Sequence[str], hint: Any) -> int:
    """How many of the words after a flag are its values."""
    if not _is_switch(hint):
        return len(words) if kinds_of(hint) & {tuple, dict} else 1
    if words and words[0].lower() in ("true", "false"):
        name = flag.removeprefix("no-")
        raise UserError(f"--{flag} takes no value, got {words[0]}: write --{name} or --no-{name}")
    return 0


def _values(flag: str, words: Sequence[str], hint: Any) -> list[str]:
    """Checks the values of a flag, and returns them in the form that tyro knows."""
    kinds = kinds_of(hint)
    if dict in kinds:
        return list(words) if types.NoneType in kinds and list(words) == ["None"] else _pairs(flag, words)
    if list(words) in ([], [""]) and not _is_switch(hint) and tuple not in kinds:
        raise UserError(f"{flag} needs a value")
    whole = int in kinds and float not in kinds
    words = [without_exponent(word) if whole else word for word in words]
    if Path not in kinds and words:
        read = [_read(word, kinds) for word in words]
        checked(flag, tuple(read) if tuple in kinds and read != [None] else read[0], hint)
    return words


def _pairs(flag: str, words: Sequence[str]) -> list[str]:
    """Keys and values, which were written `key=value` or `key value`. The words true and false are Booleans."""
    result = list[str]()
    for word in words:  # a word after a single key is its value, and may contain a "="
        result += word.split("=", 1) if len(result) % 2 == 0 else [word]
    if len(result) % 2:
        raise UserError(f"{flag} needs pairs such as length=5, got {result[-1]!r} without a value")
    for key, value in zip(result[::2], result[1::2], strict=True):
        if value.startswith("-") and isinstance(_read(value, {float}), str):
            raise UserError(f"{flag}: the value of {key} must not begin with a hyphen, got {value!r}")
    result[1::2] = [word.title() if word in ("true", "false") else word for word in result[1::2]]  # as tyro knows them
    return result


def without_exponent(word: str) -> str:
    """The digits of an integer that was written like 1e5; other words stay as they are."""
    if re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d{1,2}", word) and float(word).is_integer():
        return str(int(float(word)))
    return word


def _read(word: str, kinds: set[Any]) -> Any:
    """The value that a word stands for; the word itself if it stands for none."""
    if types.NoneType in kinds and word == "None":
        return None
    for kind in (int, float):
        try:
            if kind in kinds:
                return kind(word)
        except ValueError:
            continue
    return word


def _check_positional(words: Sequence[str], hints: Mapping[str, Any]) -> None:
    """Raises `UserError` if there are too few or too many words for the options that have no flags."""
    places = {name: hint for name, hint in hints.items() if _is_positional(hint)}
    if missing := list(places)[len(words) :]:
        raise UserError(f"{' and '.join(name.upper() for name in missing)} must be given: --help explains it")
    if len(words) > len(places) and not any(tuple in kinds_of(hint) for hint in places.values()):
        raise UserError(f"unexpected {words[len(places)]!r}: --help lists the options")


def _is_positional(hint: Any) -> bool:
    return tyro.conf.Positional in metadata(hint)


def _is_switch(hint: Any) -> bool:
    return kinds_of(hint) == {bool}


def kinds_of(hint: Any) -> set[Any]:
    """All types in a hint. A dictionary counts as `dict`, without the types of its keys and values."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kinds_of(arguments[0])
    if origin is tuple:
        return {tuple, *kinds_of(arguments[0])}
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds_of, arguments))
    return {origin or hint} if origin is not Literal else {Literal}
