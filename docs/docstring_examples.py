"""Lets Griffe, which reads the docstrings, understand two forms that Keras uses and Griffe does not know."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:\n\n((?:\S.*\n?)+)", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Makes `Example:` a section, and `::` before a block a colon."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that has been read."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(_section, inspect.cleandoc(obj.docstring.value))
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _section(example: re.Match[str]) -> str:
    return "Examples:\n" + "".join(f"    {line}\n" for line in example[1].splitlines())
