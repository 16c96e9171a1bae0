"""Pickles carried out without unpickling: no class is looked up and nothing is called.

The instructions of a pickle work on a stack of plain values here, whatever a file asks for: what a
name in it means, a derived machine says, and refuses all others.
"""

from __future__ import annotations

import contextlib
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError
from l3prune.files import not_allowed


class Refused(ValueError):
    """What is wrong with a file, in words for its user.

    Examples
    --------
    >>> isinstance(Refused("is empty"), ValueError)
    True
    """


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong in the block as an `L3PruneError` that names the file.

    Examples
    --------
    >>> with reading(Path("a.pkl"), "list of arrays"):
    ...     raise KeyError("a")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: a.pkl is no list of arrays, or is damaged: KeyError('a')
    """
    try:
        yield
    except L3PruneError:
        raise
    except Refused as error:
        raise L3PruneError(f"{path}: {error}") from error
    except PermissionError as error:
        raise not_allowed(path) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError) as error:
        raise L3PruneError(f"{path} is damaged: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        # Instructions that find other values than they need.
        raise L3PruneError(f"{path} is no {kind}, or is damaged: {error!r}") from error
    except (OverflowError, MemoryError) as error:
        raise L3PruneError(f"{path} is damaged: {error!r}") from error


class Machine:
    """A pickle's stack and memo. Values are plain: dictionaries, lists, texts, numbers.

    Examples
    --------
    >>> import io
    >>> Machine().load(io.BytesIO(b"]K\x01a."))
    [1]
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self, stream: Any) -> Any:
        """The value of the pickle at a stream's place; moves on behind it."""
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "STOP":
                return self.stack.pop()
            self.do(instruction.name, argument)
        raise Refused("its pickle has no end")

    def meaning(self, module: str, name: str) -> Any:
        """What stands for an object that a pickle names."""
        raise Refused(f"its pickle names {module}.{name}, which could be any code; nothing was run")

    def reduce(self, arguments: Any) -> None:
        """Put what stands for a call of the value on the stack in its place."""
        raise TypeError(f"{described(self.stack.pop())} is called")

    def build(self) -> None:
        """Take attributes off the stack, of the value below them."""
        self.stack.pop()
        raise TypeError(f"attributes are set of {described(self.stack[-1])}")

    def persistent(self, given: Any) -> None:
        """Put what stands for a value that is kept elsewhere on the stack."""
        raise TypeError("a value is kept elsewhere")

    def do(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            self.stack.append(self.meaning(module, attribute))
        elif name == "STACK_GLOBAL":
            module, attribute = self.take(2)
            self.stack.append(self.meaning(str(module), str(attribute)))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"its pickle has the instruction {name}, which is not needed here")

    def since_mark(self) -> list[Any]:
        """Take all values above the last mark off the stack."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def take(self, count: int) -> list[Any]:
        """Take so many values off the stack."""
        values = self.stack[len(self.stack) - count :]
        if len(values) < count or (self.marks and len(self.stack) - count < self.marks[-1]):
            raise ValueError("a stack that is too short")
        del self.stack[len(self.stack) - count :]
        return values

    def put(self, number: int | None) -> None:
        """Note the value on the stack, under the next number if there is none."""
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        """Append values to the list on the stack."""
        if not isinstance(self.stack[-1], list):
            raise TypeError("values are appended to no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Set keys and values of the dictionary on the stack."""
        if not isinstance(self.stack[-1], dict):
            raise TypeError("items are set of no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Tuples of tuples, each twice the one before, would take for ever to be hashed.
            if not isinstance(key, str | int | float):
                raise TypeError("a key that cannot be one")
            self.stack[-1][key] = value


def described(value: Any) -> str:
    """A value of a pickle in words.

    Examples
    --------
    >>> described([1])
    'a list'
    """
    return f"a {type(value).__name__.strip('_')}"


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}

_ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.since_mark(),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.take(3))),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "APPEND": lambda m, _: m.append(m.take(1)),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "PUT": lambda m, number: m.put(number),
    "BINPUT": lambda m, number: m.put(number),
    "LONG_BINPUT": lambda m, number: m.put(number),
    "MEMOIZE": lambda m, _: m.put(None),
    "GET": lambda m, number: m.stack.append(m.memo[number]),
    "BINGET": lambda m, number: m.stack.append(m.memo[number]),
    "LONG_BINGET": lambda m, number: m.stack.append(m.memo[number]),
    "REDUCE": lambda m, _: m.reduce(m.take(1)[0]),
    "NEWOBJ": lambda m, _: m.reduce(m.take(1)[0]),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(m.take(1)[0]),
}
