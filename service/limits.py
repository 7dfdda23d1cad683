"""What a tenant may ask at a time: token buckets and a count of open requests.

The state is exact within one gateway process, and starts afresh with it.
"""

import math
import time
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import handlers
from service.errors import TooManyRequests
from service.tenants import Principal

_MINUTE = 60.0


@dataclass
class Bucket:
    """Holds up to `capacity` tokens, and as many run in within a minute; starts full."""

    capacity: int
    level: float = field(init=False)
    filled: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.level = self.capacity

    def take(self) -> bool:
        """Take a token, if there is one."""
        now = time.monotonic()
        self.level = min(self.capacity, self.level + (now - self.filled) * self.rate)
        self.filled = now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    @property
    def rate(self) -> float:
        """Tokens that run in, per second."""
        return self.capacity / _MINUTE

    def seconds_to(self, level: float) -> float:
        """How long until it holds this much, if nobody takes any."""
        return max(0.0, level - self.level) / self.rate

    @property
    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        return {
            "x-ratelimit-limit-requests": str(self.capacity),
            "x-ratelimit-remaining-requests": str(int(self.level)),
            "x-ratelimit-reset-requests": f"{self.seconds_to(self.capacity):.3f}s",
        }


class Limits:
    """Hold every tenant to so many requests per minute, and so many open at a time.

    None stands for no limit.  What takes no key is not counted.
    """

    def __init__(self, app: ASGIApp, *, per_minute: int | None, concurrent: int | None):
        self._app = app
        self._per_minute = per_minute
        self._concurrent = concurrent
        self._buckets: dict[str, Bucket] = {}
        self._open: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get("state", {}).get("principal")
        if principal is None or not principal.tenant:
            await self._app(scope, receive, send)
            return
        headers: dict[str, str] = {}

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        tenant = principal.tenant
        try:
            headers |= self._admit(tenant)
        except TooManyRequests as error:
            if tenant in self._buckets:
                headers |= self._buckets[tenant].headers
            await handlers.response(error)(scope, receive, marked)
            return
        self._open[tenant] = self._open.get(tenant, 0) + 1
        try:
            await self._app(scope, receive, marked)
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]

    def _admit(self, tenant: str) -> dict[str, str]:
        """The headers of an answer; TooManyRequests above a limit."""
        if self._concurrent is not None and self._open.get(tenant, 0) >= self._concurrent:
            raise TooManyRequests(
                f"{self._concurrent} requests are open already; wait for one to end", retry_after=1
            )
        if self._per_minute is None:
            return {}
        bucket = self._buckets.setdefault(tenant, Bucket(self._per_minute))
        if not bucket.take():
            raise TooManyRequests(
                f"more than {self._per_minute} requests in a minute",
                retry_after=math.ceil(bucket.seconds_to(1)),
            )
        return bucket.headers
