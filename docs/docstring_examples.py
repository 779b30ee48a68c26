"""Lets Griffe, which reads the docstrings, see the examples in them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Rewrites `Example:`, as Keras writes it, to the section `Examples:` that Griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:\n\n((?:(?:>>>|\.\.\.|\S).*\n?)+)",
                _section,
                inspect.cleandoc(obj.docstring.value),
                flags=re.MULTILINE,
            )


def _section(example: re.Match[str]) -> str:
    return "Examples:\n" + "".join(f"    {line}\n" for line in example[1].splitlines())
