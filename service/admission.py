"""Who may ask an engine next, when more is asked of it than it takes at a time.

An engine gets so many requests at once, of so many adapters; the others wait here, each in the
flow of its tenant and adapter.  The flow that has been served least goes first: what counts is the
time that its requests held a place in the engine, divided by its tenant's share, as with the
virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
https://arxiv.org/abs/2401.00588) with seconds in the place of tokens.  Flows of a tenant share
what is the tenant's.  A flow whose adapter finds no slot waits until one drains; those that have a
slot may then run ahead of it by one turn and no more, so that adapters are changed rarely and none
starves.  When too many wait, the newest request of the longest flow is shed (the longest queue of
McKenney, "Stochastic Fairness Queueing", INFOCOM 1990).
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.errors import DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.settings import Settings

_FORGETTING = 0.05  # of the mean time that a request holds its place, at each new one
_BATCHES = 4.0  # an adapter's part of the engine, so many times, is one turn
_MOST_PATIENCE = 60  # seconds of Retry-After


@dataclass(eq=False)
class Turn:
    """A request that waits, or runs once `admitted` is done."""

    flow: "_Flow"
    admitted: asyncio.Future[None]
    started: float | None = None
    charged: float = 0.0  # seconds, until it is known how many it takes
    shares: int = 1  # flows among which its tenant's share was divided


@dataclass(eq=False)
class _Flow:
    """The requests of one tenant for one adapter, None for the base; `served` in seconds."""

    tenant: str
    adapter: str | None
    served: float
    waiting: deque[Turn] = field(default_factory=deque)
    running: int = 0

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)


class Queue:
    """What waits for one engine that takes `capacity` requests at once, of `slots` adapters."""

    def __init__(
        self, capacity: int, slots: int, limit: int, clock: Callable[[], float] = time.monotonic
    ):
        self._capacity = capacity
        self._slots = slots
        self._limit = limit
        self._clock = clock
        self._flows: dict[tuple[str, str | None], _Flow] = {}
        self._adapters: Counter[str] = Counter()  # that have a slot, by requests that run
        self._reached = 0.0  # what the flow had that went last
        self._seconds = 1.0  # that a request holds its place, in the mean
        self.running = self.waiting = 0

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)

    @property
    def drained_in(self) -> int:
        """Seconds until those are through who wait now."""
        seconds = math.ceil(self.waiting * self._seconds / self._capacity)
        return min(max(seconds, 1), _MOST_PATIENCE)

    def join(self, tenant: str, adapter: str | None) -> Turn:
        """Wait in line; the turn's future fails with Overloaded when it is shed."""
        flow = self._flows.get((tenant, adapter))
        if flow is None:
            flow = self._flows[tenant, adapter] = _Flow(tenant, adapter, self._reached)
        elif flow.idle:
            flow.served = max(flow.served, self._reached)
        turn = Turn(flow, asyncio.get_running_loop().create_future())
        flow.waiting.append(turn)
        self.waiting += 1
        self._dispatch()
        if self.waiting > self._limit:
            self._shed()
        return turn

    def expected_wait(self, turn: Turn) -> float:
        """Seconds until a waiting turn comes, if every flow that waits gets the same."""
        ahead = len(turn.flow.waiting) * sum(bool(f.waiting) for f in self._flows.values())
        return min(ahead, self.waiting) * self._seconds / self._capacity

    def leave(self, turn: Turn) -> None:
        """A request is over, or waits no more."""
        flow = turn.flow
        if turn.started is not None:
            seconds = self._clock() - turn.started
            self._seconds += _FORGETTING * (seconds - self._seconds)
            flow.served += (seconds - turn.charged) * turn.shares
            flow.running -= 1
            self.running -= 1
            if flow.adapter is not None:
                self._adapters[flow.adapter] -= 1
                if not self._adapters[flow.adapter]:
                    del self._adapters[flow.adapter]
        elif turn in flow.waiting:
            flow.waiting.remove(turn)
            self.waiting -= 1
        self._dispatch()
        if not self.waiting:  # nobody is behind anybody
            self._flows = {key: flow for key, flow in self._flows.items() if not flow.idle}

    def _dispatch(self) -> None:
        while self.waiting and self.running < self._capacity:
            if (flow := self._next()) is None:
                return
            turn = flow.waiting.popleft()
            self.waiting -= 1
            if not turn.admitted.cancelled():
                self._start(turn, flow)

    def _next(self) -> _Flow | None:
        """The least served flow whose adapter has a slot or finds one."""
        blocked: _Flow | None = None
        for flow in sorted((f for f in self._flows.values() if f.waiting), key=_served):
            if blocked and flow.served > blocked.served + self._turn_seconds(flow):
                return None
            if self._finds_slot(flow.adapter):
                return flow
            blocked = blocked or flow
        return None

    def _finds_slot(self, adapter: str | None) -> bool:
        return adapter is None or adapter in self._adapters or len(self._adapters) < self._slots

    def _turn_seconds(self, flow: _Flow) -> float:
        """What an adapter may have ahead of one that waits for a slot."""
        batch = max(1.0, _BATCHES * self._capacity / self._slots)
        return batch * self._seconds * self._shares(flow.tenant)

    def _start(self, turn: Turn, flow: _Flow) -> None:
        flow.running += 1
        self.running += 1
        self._reached = max(self._reached, flow.served)
        turn.started, turn.charged = self._clock(), self._seconds
        turn.shares = self._shares(flow.tenant)
        flow.served += turn.charged * turn.shares
        if flow.adapter is not None:
            self._adapters[flow.adapter] += 1
        turn.admitted.set_result(None)

    def _shares(self, tenant: str) -> int:
        return sum(flow.tenant == tenant and not flow.idle for flow in self._flows.values())

    def _shed(self) -> None:
        """Refuse the newest request of the longest flow of the tenant of whom most wait."""
        tenants: Counter[str] = Counter()
        for flow in self._flows.values():
            tenants[flow.tenant] += len(flow.waiting)
        (longest, _), *_ = tenants.most_common(1)
        own = (flow for flow in self._flows.values() if flow.tenant == longest)
        turn = max(own, key=lambda flow: len(flow.waiting)).waiting.pop()
        self.waiting -= 1
        if not turn.admitted.cancelled():
            turn.admitted.set_exception(Overloaded(retry_after=self.drained_in))


def _served(flow: _Flow) -> float:
    return flow.served


class Admission:
    """The queues of all engines."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        self._queues: dict[str, Queue] = {}
        metrics.watch_queues(lambda: {name: q.waiting for name, q in self._queues.items()})

    @asynccontextmanager
    async def turn(
        self, engine: str, tenant: str, adapter: str | None, deadline: float | None
    ) -> AsyncIterator[None]:
        """A place in an engine, for as long as the context lasts.

        `deadline` is a time of the event loop.  Raises Overloaded when too many wait, or when its
        turn would come too late; DeadlineExceeded when it did.
        """
        queue = self._queues.get(engine)
        if queue is None:
            settings = self._settings
            queue = self._queues[engine] = Queue(
                settings.engine_concurrent_requests,
                settings.engine_max_loras,
                settings.engine_queue_requests,
            )
        turn = queue.join(tenant, adapter)
        try:
            await self._wait(engine, queue, turn, deadline)
            yield
        finally:
            queue.leave(turn)

    async def _wait(self, engine: str, queue: Queue, turn: Turn, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        joined = loop.time()
        try:
            if not turn.admitted.done() and deadline is not None:
                if joined + queue.expected_wait(turn) > deadline:
                    raise Overloaded(retry_after=queue.drained_in)
            async with asyncio.timeout_at(deadline):
                await turn.admitted
        except Overloaded:
            self._metrics.observe_shed(engine, "overloaded")
            raise
        except TimeoutError as error:
            self._metrics.observe_shed(engine, "deadline")
            raise DeadlineExceeded(retry_after=queue.drained_in) from error
        self._metrics.observe_wait(engine, loop.time() - joined)
