"""How far a stage is, told to whoever started it."""

from collections.abc import Callable
from typing import Self

Progress = Callable[[float, str], None]  # fraction done, 0..1, and a short message


class Measured(str):
    """A message with the numbers that it tells of; such a one is never left out."""

    data: dict[str, float]

    def __new__(cls, message: str, **data: float) -> Self:
        made = super().__new__(cls, message)
        made.data = data
        return made


def numbers(message: str) -> dict[str, float]:
    """Those of a message, if it has any."""
    return message.data if isinstance(message, Measured) else {}


def part(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work that spans `start` to `end` of the whole."""
    return lambda fraction, message: progress(start + fraction * (end - start), message)
