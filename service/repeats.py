"""Exact sums that are asked for again and again, which are to become one plain adapter each."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from service.composition_store import CompositionStore
from service.models import Model
from service.settings import Settings

_REMEMBERED = 4096  # sums whose requests are counted
_WAITING = 16  # sums that wait for their turn


class Repeats:
    """Tells what has been asked for `times` times within `seconds`."""

    def __init__(self, times: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._times = times
        self._seconds = seconds
        self._clock = clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()  # least recently asked for first

    def due(self, digest: str) -> bool:
        """Count a request; whether it makes the number full.  Never, where that is 0."""
        if not self._times:
            return False
        now = self._clock()
        asked = self._seen.setdefault(digest, deque(maxlen=self._times))
        asked.append(now)
        self._seen.move_to_end(digest)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return len(asked) == self._times and now - asked[0] <= self._seconds


class Merges:
    """Which sums are to be merged, wait for it, and have been."""

    def __init__(self, settings: Settings, store: CompositionStore):
        self._store = store
        self._repeats = Repeats(settings.composition_repeats, settings.composition_repeat_seconds)
        self._due: asyncio.Queue[Model] = asyncio.Queue(_WAITING)
        self._merged = store.digests() if settings.composition_repeats else set()
        self._barred: set[str] = set()  # those that wait, and those that cannot be merged

    def count(self, model: Model) -> None:
        """Count a request for a sum; one that is due waits for its turn, if few others do."""
        assert model.composed is not None
        digest = model.composed.digest
        if digest in self._barred or self._has(digest) or not model.composed.composition.exact:
            return
        if self._repeats.due(digest) and not self._due.full():
            self._barred.add(digest)
            self._due.put_nowait(model)

    def form(self, model: Model) -> Model:
        """A sum as one plain adapter, once it has been merged; everything else as it is."""
        assert model.composed is not None
        exact = model.composed.composition.exact
        return model.merged if exact and self._has(model.composed.digest) else model

    async def next(self) -> Model:
        """The sum whose turn it is, once there is one."""
        return await self._due.get()

    def done(self, model: Model) -> None:
        """From now on a sum is asked for in its merged form."""
        assert model.composed is not None
        self._merged.add(model.composed.digest)
        self._barred.discard(model.composed.digest)

    def postpone(self, model: Model) -> None:
        """Let a sum wait until it is due again."""
        assert model.composed is not None
        self._barred.discard(model.composed.digest)

    def _has(self, digest: str) -> bool:
        return digest in self._merged and self._store.has(digest)
