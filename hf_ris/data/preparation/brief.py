"""Values of a stranger's file in messages: a few signs, however large, deep or self-repeating the value is."""

import reprlib
from typing import Any


class _Brief(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 5, 5, 8
        self.maxstring, self.maxother = 80, 80

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out very long numbers
        return f"a number of {value.bit_length()} bits" if value.bit_length() > 200 else repr(value)


_BRIEF = _Brief()


def brief(value: Any) -> str:
    """`repr` of a value of plain containers, texts and numbers, at most some hundred signs long."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
