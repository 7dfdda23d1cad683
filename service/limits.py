"""What a tenant may ask at a time: token buckets and a count of open requests.

The state is exact within one gateway process, and starts afresh with it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import handlers, usage
from service.errors import TooManyRequests
from service.quotas import Quota
from service.tenants import Principal
from service.usage import Meter

_MINUTE = 60.0
_KEPT_SECONDS = 5.0  # how long a change of a quota may go unnoticed


@dataclass
class Bucket:
    """Holds up to `capacity` of something, and as much runs in within a minute; starts full.

    More may be taken than there is, where what a request takes is known only after it: the bucket
    is in debt then, and nothing can be had before that is paid.
    """

    capacity: int
    level: float = field(init=False)
    filled: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.level = self.capacity

    def fill(self, capacity: int) -> None:
        """Let run in what has come since the last time, up to this capacity from now on."""
        now = time.monotonic()
        self.capacity = capacity
        self.level = min(capacity, self.level + (now - self.filled) * self.rate)
        self.filled = now

    def has(self, amount: float) -> bool:
        """Whether there is so much."""
        self.fill(self.capacity)
        return self.level >= amount

    def take(self, amount: float = 1) -> None:
        """Take so much, whether it is there or not."""
        self.level -= amount

    @property
    def rate(self) -> float:
        """What runs in, per second."""
        return self.capacity / _MINUTE

    def seconds_to(self, level: float) -> float:
        """How long until it holds this much, if nobody takes any."""
        missing = max(0.0, level - self.level)
        if not self.capacity:
            return _MINUTE  # never; a quota may change until then
        return missing / self.rate

    def headers(self, what: str) -> dict[str, str]:
        """As OpenAI names them."""
        return {
            f"x-ratelimit-limit-{what}": str(self.capacity),
            f"x-ratelimit-remaining-{what}": str(max(0, int(self.level))),
            f"x-ratelimit-reset-{what}": f"{self.seconds_to(self.capacity):.3f}s",
        }


@dataclass
class _Tenant:
    """What one tenant has open, and its buckets by what they hold."""

    quota: Quota
    read: float
    open: int = 0
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def hold_to(self, quota: Quota) -> None:
        """Take the quota as it is now."""
        self.quota, self.read = quota, time.monotonic()
        for what, most in (
            ("requests", quota.requests_per_minute),
            ("tokens", quota.tokens_per_minute),
        ):
            if most is None:
                self.buckets.pop(what, None)
            else:
                self.buckets.setdefault(what, Bucket(most)).fill(most)

    def admit(self, generates: bool) -> None:
        """Let a request in; TooManyRequests above a limit."""
        if (most := self.quota.concurrent_requests) is not None and self.open >= most:
            raise TooManyRequests(
                f"{most} requests are open already; wait for one to end", retry_after=1
            )
        for what, bucket in self.buckets.items():
            if (what == "requests" or generates) and not bucket.has(1):
                raise TooManyRequests(
                    f"more than {bucket.capacity} {what} in a minute",
                    retry_after=math.ceil(bucket.seconds_to(1)),
                )
        if "requests" in self.buckets:
            self.buckets["requests"].take()

    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for what, bucket in self.buckets.items():
            found |= bucket.headers(what)
        return found


class Limits:
    """Hold every tenant to its quota of requests and tokens.  What takes no key is not counted."""

    def __init__(self, app: ASGIApp, *, quota_of: Callable[[str], Quota]):
        """`quota_of(tenant)` may wait for the database."""
        self._app = app
        self._quota_of = quota_of
        self._tenants: dict[str, _Tenant] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get("state", {}).get("principal")
        if principal is None or not principal.tenant:
            await self._app(scope, receive, send)
            return
        tenant = await self._tenant(principal.tenant)
        generates = scope["path"] in usage.PATHS
        answer = _Answer(send, tenant)
        try:
            tenant.admit(generates)
        except TooManyRequests as error:
            await handlers.response(error)(scope, receive, answer.send)
            return
        if generates and "tokens" in tenant.buckets:
            answer.meter = Meter(receive)
            receive = answer.meter.receive
        tenant.open += 1
        try:
            await self._app(scope, receive, answer.send)
        finally:
            tenant.open -= 1
            answer.charge()

    async def _tenant(self, name: str) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None or time.monotonic() - tenant.read > _KEPT_SECONDS:
            try:
                quota = await anyio.to_thread.run_sync(self._quota_of, name)
            except SQLAlchemyError:
                if tenant is None:
                    raise
                quota = tenant.quota  # as it was, while the database does not answer
            tenant = self._tenants.setdefault(name, _Tenant(quota, time.monotonic()))
            tenant.hold_to(quota)
        return tenant


class _Answer:
    """Marks an answer with what remains, and takes from the tenant what it took."""

    def __init__(self, send: Send, tenant: _Tenant):
        self.meter: Meter | None = None
        self._send = send
        self._tenant = tenant
        self._start: Message | None = None  # held back until it is known what the answer took
        self._charged = False

    async def send(self, message: Message) -> None:
        if self.meter is not None:
            message = self.meter.hear(message)
        if message["type"] == "http.response.start":
            self._start = message
            if self.meter is not None and not self.meter.streams:
                return
        elif self._start is not None and self.meter is not None:
            self.charge()
        if self._start is not None:
            start, self._start = self._start, None
            MutableHeaders(scope=start).update(self._tenant.headers())
            await self._send(start)
        if message["type"] != "http.response.start":
            await self._send(message)

    def charge(self) -> None:
        """Take what the request took, once."""
        bucket = self._tenant.buckets.get("tokens")
        if self.meter is not None and bucket is not None and not self._charged:
            self._charged = True
            bucket.take(self.meter.total)
