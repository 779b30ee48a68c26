"""Reads pickles that hold arrays and plain data. Nothing in the file is executed, imported or instantiated.

The unpicklers of Python's library call what the file names, and build NumPy arrays by NumPy's own code. This module
interprets the opcodes itself instead: a pickle is a program for a stack machine, and the few instructions that describe
data need no more than the table below. Names of known classes become `Reference`, and their instances become
`Instance`, which only hold what the file says about them. Everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import read_regular
from rl_lnlstm.importing.plain_values import FUNCTIONS, Instance, NotPlainData, Reference, complete, reference

MAX_BYTES = 256 << 20
MAX_OPERATIONS = 100_000  # each takes some microseconds and at most some hundred bytes
ENTRY_BYTES = 200  # of an entry of a container, roughly


def read_pickle(path: Path) -> Any:
    """Reads a pickle of arrays and plain containers, which need not be trusted.

    Returns:
        Numbers, strings, bytes, None, lists, tuples and dicts as themselves; arrays as `Array`; classes and instances
        of the known classes as `Reference` and `Instance`.

    Raises:
        UserError: the file cannot be read, is damaged or too large, or contains anything else.
    """
    try:
        return plain_pickle(read_regular(path, MAX_BYTES))
    except (OSError, NotPlainData) as error:
        raise UserError(f"{path} cannot be read: {printable(error)}") from None


def plain_pickle(content: bytes) -> Any:
    """Reads a pickle from bytes; see `read_pickle`.

    Raises:
        NotPlainData: it contains anything else.
    """
    try:
        return _Machine(content).run()
    except NotPlainData:
        raise
    except Exception as error:  # a malicious file can cause any error; blame the file
        raise NotPlainData(f"it is damaged, or not a pickle, {type(error).__name__}: {error}") from error


class _Machine:
    """The stack machine of the pickle protocol, without the instructions that could do anything."""

    def __init__(self, content: bytes) -> None:
        self._instructions: Iterator[tuple[Any, Any, int | None]] = pickletools.genops(content)
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # A call may copy what it is given. An honest file gives every value once, a malicious one a thousand times.
        self._left = 2 * len(content) + (1 << 20)

    def run(self) -> Any:
        for number, (instruction, argument, _) in enumerate(self._instructions):
            name = instruction.name
            if number > MAX_OPERATIONS:
                raise NotPlainData(f"it has more than {MAX_OPERATIONS:,} instructions")
            if name == "STOP":
                break
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise NotPlainData(f"its instruction {name} is not one of arrays and plain data")
        if len(self._stack) != 1:
            raise NotPlainData("it is damaged: it does not leave one value")
        return self._stack[0]

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def pop(self, _: Any = None) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise NotPlainData("it is damaged: it takes values that are not there")
        return self._stack.pop()

    def put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else int(index)] = self._stack[-1]

    def get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    def make_tuple(self, size: int) -> None:
        self._stack.append(tuple(reversed([self.pop() for _ in range(size)])))

    def tuple_since_mark(self, _: Any) -> None:
        self._stack.append(tuple(self.since_mark()))

    def list_since_mark(self, _: Any) -> None:
        self._stack.append(self.since_mark())

    def dict_since_mark(self, _: Any) -> None:
        items = self.since_mark()
        self._stack.append({})
        self._set(items)

    def append(self, _: Any) -> None:
        value = self.pop()
        self._extend([value])

    def appends(self, _: Any) -> None:
        self._extend(self.since_mark())

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise NotPlainData("it appends to something that is no list")
        self._stack[-1].extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.since_mark())

    def _set(self, items: Sequence[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise NotPlainData("it sets entries of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Python hashes nested tuples by recursion, without a limit.
            if not isinstance(key, str | int | float):
                raise NotPlainData(f"the keys of its dicts must be strings or numbers, got {type(key).__name__}")
            target[key] = value

    def name(self, argument: str) -> None:
        self._stack.append(reference(argument.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._stack.append(reference(f"{module}.{name}"))

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Reference) or not isinstance(arguments, tuple):
            raise NotPlainData("it calls something that is no function")
        self._charge(arguments)
        known = FUNCTIONS.get(function.name)
        self._stack.append(Instance(function.name) if known is None else known(*arguments))

    def build(self, _: Any) -> None:
        state = self.pop()
        if isinstance(state, tuple):
            self._charge(state)
        complete(self._stack[-1], state)

    def _charge(self, values: tuple[Any, ...]) -> None:
        for value in values:
            if isinstance(value, str | bytes | bytearray):
                self._left -= len(value)
            elif isinstance(value, list | tuple):
                self._left -= ENTRY_BYTES * len(value)
        if self._left < 0:
            raise NotPlainData("it uses the same data too often, and would take more memory than the file")


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.make_tuple(0),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "TUPLE": _Machine.tuple_since_mark,
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "LIST": _Machine.list_since_mark,
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "DICT": _Machine.dict_since_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
