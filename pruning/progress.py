"""How far a stage is, told to whoever started it."""

from collections.abc import Callable

Progress = Callable[[float, str], None]  # fraction done, 0..1, and a short message


def part(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work that spans `start` to `end` of the whole."""
    return lambda fraction, message: progress(start + fraction * (end - start), message)
