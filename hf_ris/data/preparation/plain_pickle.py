"""Legacy pickles (`refs(unc).p`) read without unpickling them.

A pickle is a program, and Python's own loader runs whatever it says. This interpreter knows the instructions that build
lists, dicts, tuples, texts and numbers, and no other: one that names or calls anything is refused where it stands. It
also streams: of the list that such a file holds, one item is in memory at a time.
"""

import pickletools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO


_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_BYTE_TEXTS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})  # Python 2's str
_MAKERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_FROM_MARK: dict[str, Callable[[list], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "DICT": lambda items: dict(_pairs(items)),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_DAMAGE = (ValueError, TypeError, LookupError, OverflowError, MemoryError, AttributeError)


class _Refused(Exception):
    pass


class _Machine:
    """Stack, marks and memo of one pass; `recalled` are the memo keys that the pickle ever asks for: others go."""

    def __init__(self, recalled: set[int]):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.recalled, self.stored = recalled, 0

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _PUTS:
            self.put(self.stored if name == "MEMOIZE" else argument)
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name in _BYTE_TEXTS:
            stack.append(argument if argument.isascii() else argument.encode("latin-1").decode("utf-8"))
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _FROM_MARK:
            stack.append(_FROM_MARK[name](self.since_mark()))
        elif name in _TUPLES:
            items = tuple(stack[-_TUPLES[name] :])
            del stack[-len(items) :]
            stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                self.marks.append(len(stack) - 2)
            items = self.since_mark()
            _expect(stack[-1], dict).update(_pairs(items))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(name)

    def put(self, key: int) -> None:
        self.stored += 1
        if key in self.recalled:
            if len(self.stack) == 1 and isinstance(self.stack[0], list):
                raise ValueError("the list holds itself")
            self.memo[key] = self.stack[-1]

    def since_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    """Keys and values; a key of nested tuples that repeat each other would take for ever to be hashed."""
    for key in items[::2]:
        if not isinstance(key, (str, int, float, type(None))):
            raise TypeError(f"a {type(key).__name__} is the key of a dict")
    return zip(items[::2], items[1::2], strict=True)


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} was expected where a {type(value).__name__} is")
    return value


def iterate_pickled_list(open_stream: Callable[[], BinaryIO], name: str) -> Iterator[Any]:
    """The items of the one list that a pickle holds, in order; nothing in it is ever executed.

    Args:
        open_stream: opens the file from its beginning; called twice.
        name: of the file, for messages.

    Raises ValueError at an instruction that builds anything but plain containers, texts and numbers, and for a file
    that is no whole pickle of a list.
    """
    with open_stream() as stream:
        recalled = {argument for instruction, argument in _instructions(stream, name) if instruction in _GETS}
    machine = _Machine(recalled)
    with open_stream() as stream:
        for instruction, argument in _instructions(stream, name):
            try:
                machine.step(instruction, argument)
            except _DAMAGE as error:
                raise ValueError(f"{name} is a damaged pickle: {error}") from error
            except _Refused as error:
                raise ValueError(
                    f"{name} is refused: it holds the pickle instruction {instruction}, which can run code, where "
                    "annotations are plain lists, dicts, texts and numbers; nothing of the file was executed"
                ) from error
            done = instruction == "STOP"
            at_root = instruction in ("APPEND", "APPENDS") and len(machine.stack) == 1
            if (done or at_root) and not machine.marks:
                if len(machine.stack) != 1 or not isinstance(machine.stack[0], list):
                    raise ValueError(f"{name} holds no list: a list of references was expected")
                yield from machine.stack[0]
                machine.stack[0].clear()


def _instructions(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            yield opcode.name, argument
    except _DAMAGE as error:
        raise ValueError(f"{name} is no whole pickle: {error}") from error
