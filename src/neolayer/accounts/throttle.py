"""Slows down guessing of API keys: a shared count of failures per client address in Valkey.

While Valkey is down nothing is counted: keys have 256 bits, the throttle only saves the database from being
asked about each guess.
"""

import logging
import time
from typing import Final

from valkey.asyncio import Valkey
from valkey.exceptions import ValkeyError

from neolayer.core.errors import TooManyRequests

_log = logging.getLogger(__name__)
WINDOW_S: Final = 60
FAILURES_PER_WINDOW: Final = 60


class TooManyFailures(TooManyRequests):
    """Too many requests with a wrong API key from this address."""

    code = "too_many_failed_logins"


class FailureThrottle:
    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey

    async def check(self, client: str) -> None:
        """
        Raises:
            TooManyFailures: `FAILURES_PER_WINDOW` reached within the running window of `WINDOW_S` seconds.
        """
        try:
            failures = await self._valkey.get(_key(client))
        except (ValkeyError, OSError) as error:
            _log.warning("failed logins are not counted: %s", error)
            return
        if failures is not None and int(failures) >= FAILURES_PER_WINDOW:
            raise TooManyFailures(retry_after_s=WINDOW_S - int(time.time()) % WINDOW_S)

    async def record_failure(self, client: str) -> None:
        try:
            async with self._valkey.pipeline(transaction=True) as pipe:
                pipe.incr(_key(client))
                pipe.expire(_key(client), WINDOW_S)
                await pipe.execute()
        except (ValkeyError, OSError) as error:
            _log.warning("a failed login is not counted: %s", error)


def _key(client: str) -> str:
    return f"neolayer:failed-logins:{client}:{int(time.time()) // WINDOW_S}"
