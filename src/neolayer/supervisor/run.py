"""One life of a system: take the home, end leftovers, start, wait for a signal, stop."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence

from neolayer.supervisor import leftovers
from neolayer.supervisor.part import Part
from neolayer.supervisor.places import Places
from neolayer.supervisor.stack import Event, Stack

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run(
    places: Places,
    plan: Callable[[], Sequence[Part]],
    *,
    watch: Callable[[Event], None],
    on_leftovers: Callable[[list[str]], None],
    on_ready: Callable[[], None],
    on_stopping: Callable[[], None],
) -> None:
    """Returns after a clean stop that a signal asked for. The second signal kills the parts, the third ourselves.

    Args:
        plan: called once the home is ours and its leftovers are gone, so that it may look at ports.

    Raises:
        ServiceError: something does not start; all that did start is stopped.
    """
    with places.locked():
        asked = _listen()
        if ended := await leftovers.end(places.home):
            on_leftovers(ended)
        stack = Stack(plan(), watch)
        asked.stack = stack
        try:
            start = asyncio.create_task(stack.start())
            stop = asyncio.create_task(asked.stop.wait())
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                on_ready()
                await stop
            else:
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)
            on_stopping()
        finally:
            await stack.stop()
            await leftovers.end(places.home)
            places.tidy()


class _Asked:
    """What signals asked for so far."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.stack: Stack | None = None
        self._count = 0

    def __call__(self) -> None:
        self._count += 1
        self.stop.set()
        if self._count == 2 and self.stack:
            self.stack.kill()
        elif self._count > 2:
            os._exit(130)


def _listen() -> _Asked:
    asked = _Asked()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, asked)
    return asked
