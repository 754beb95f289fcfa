"""Wrong codes and passwords: how many one address, and whoever tries one account, may still have.

Promises: counted in Redis for all API processes together, exactly, in a moving window; what is right costs nothing, so
a class that joins at once is not slowed; a try is refused before it is looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError

from nbpulse.cluster import Cluster
from nbpulse.errors import AccessDenied, TooMuch, Unavailable
from nbpulse.metrics import Limit, limited_requests, redis_query_durations

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import MovingWindowRateLimiter

WINDOW_MINUTES: Final = 10
ACCOUNT_HOURS: Final = 1
ACCOUNT_MAX: Final = 100
"""Of one account from all addresses in an hour; NIST SP 800-63B-4, section 3.2.2, allows 100 in a row."""
_AT_ONCE: Final = 4
_DEADLINE_S: Final = 1.0


class Guesses:
    """The counts. `of_address`, `of_account` (from one address): wrong ones let pass in 10 minutes."""

    def __init__(self, redis: Redis | Cluster, *, of_address: int, of_account: int) -> None:
        self._redis = redis
        self._of_address, self._of_account = of_address, of_account
        self._windows: MovingWindowRateLimiter | None = None
        self._rooms: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def guarding(self, address: str, account: str | None = None) -> AsyncIterator[None]:
        """
        A code or password is tried inside; AccessDenied that comes out of it was a wrong one, and is counted.

        Raises TooMuch (NB-1180 the address, NB-1181 the account), Unavailable (NB-2001).
        """
        limits = await self._list_limits(address, account)
        async with AsyncExitStack() as stack:
            # So that many tries at once do not all come before the first of them is counted.
            for _, _, key in limits:
                await stack.enter_async_context(self._rooms.setdefault(key, asyncio.Semaphore(_AT_ONCE)))
            for name, item, key in limits:
                await self._check(name, item, key, address)
            try:
                yield
            except AccessDenied:
                for _, item, key in limits:
                    await self._count(item, key)
                raise

    async def _list_limits(self, address: str, account: str | None) -> list[tuple[Limit, RateLimitItem, str]]:
        if self._windows is None:
            self._windows = await asyncio.to_thread(self._open)  # its imports take 0.14 s, once
        from limits import RateLimitItemPerHour, RateLimitItemPerMinute

        found: list[tuple[Limit, RateLimitItem, str]] = [
            ("address_guesses", RateLimitItemPerMinute(self._of_address, WINDOW_MINUTES), f"address:{address}")
        ]
        if account is not None:
            # The name itself is nobody's to read in the cache.
            known_as = hashlib.sha256(account.encode()).hexdigest()[:32]
            of_account = RateLimitItemPerMinute(self._of_account, WINDOW_MINUTES)
            found.append(("account_guesses", of_account, f"account:{known_as}:{address}"))
            found.append(("account_guesses", RateLimitItemPerHour(ACCOUNT_MAX, ACCOUNT_HOURS), f"account:{known_as}"))
        return found

    async def _check(self, name: Limit, item: RateLimitItem, key: str, address: str) -> None:
        assert self._windows is not None  # noqa: S101 - `_list_limits` opened it
        async with _asking():
            if await self._windows.test(item, key):
                return
            reset_at = (await self._windows.get_window_stats(item, key)).reset_time
        limited_requests.labels(name).inc()
        code = "NB-1180" if name == "address_guesses" else "NB-1181"
        raise TooMuch(
            code,
            policy=name,
            limit=item.amount,
            retry_after_s=max(1, math.ceil(reset_at - time.time())),
            window_s=item.get_expiry(),
            minutes=item.get_expiry() // 60,
            who=address,
        )

    async def _count(self, item: RateLimitItem, key: str) -> None:
        assert self._windows is not None  # noqa: S101 - as above
        async with _asking():
            await self._windows.hit(item, key)

    def _open(self) -> MovingWindowRateLimiter:
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        redis = self._redis

        class Storage(RedisStorage):
            def configure_bridge(self) -> None:
                bridge: Any = self.bridge
                bridge.connection_getter = lambda _: redis

        # (Its address is not used: the client knows where.)
        storage = Storage("async+redis://localhost:6379", implementation="redispy", key_prefix="nbpulse:guesses")
        return MovingWindowRateLimiter(storage)


@asynccontextmanager
async def _asking() -> AsyncIterator[None]:
    try:
        with redis_query_durations["other"].time():
            async with asyncio.timeout(_DEADLINE_S):
                yield
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable("NB-2001") from error
