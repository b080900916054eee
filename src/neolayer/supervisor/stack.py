"""Brings parts up in the order of their needs, keeps them running, and stops them in reverse."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from neolayer.core.errors import ServiceError
from neolayer.supervisor.errors import PartFailed
from neolayer.supervisor.part import NotReady, Part
from neolayer.supervisor.process import Child

State = Literal["starting", "ready", "failed", "exited", "restarting", "stopping", "stopped"]

#: Between two looks at a part that is starting; seconds.
_POLL: Final = 0.025
#: Wait before the first restart; doubled up to the longest while a part does not stay up; seconds.
_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 15.0
#: A part that ran for so long was well; its next restart waits the shortest time; seconds.
_WELL_AFTER: Final = 60.0


@dataclass(frozen=True)
class Event:
    """A part changed its state."""

    part: str
    state: State
    #: Since the part began to start or to stop; seconds.
    seconds: float = 0.0
    #: The address when ready; else the cause.
    detail: str = ""
    pid: int | None = None
    external: bool = False


class Stack:
    """Some parts as one. Start it once, stop it once."""

    def __init__(self, parts: Sequence[Part], watch: Callable[[Event], None]) -> None:
        names = {part.name for part in parts}
        assert len(names) == len(parts), "two parts of one name"
        assert all(part.after <= names for part in parts), "a part needs one that is not there"
        self._parts = parts
        self._watch = watch
        self._children: dict[str, Child] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._ready = {part.name: asyncio.Event() for part in parts}
        self._stopped = {part.name: asyncio.Event() for part in parts}

    async def start(self) -> None:
        """Returns when all parts are ready. When it raises or is cancelled, some may run: call `stop`.

        Raises:
            ServiceError: the first part that failed, with what to do.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for part in self._parts:
                    group.create_task(self._start_in_turn(part))
        except* ServiceError as failed:
            # The first is the cause, the others follow from it.
            raise failed.exceptions[0] from None

    async def stop(self) -> None:
        """Stop everything, each part after those that need it."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(self._stop_in_turn(part))

    def kill(self) -> None:
        """End all children at once, without waiting for anything."""
        for child in self._children.values():
            child.kill()

    async def _start_in_turn(self, part: Part) -> None:
        for name in part.after:
            await self._ready[name].wait()
        began = time.monotonic()
        try:
            await self._bring_up(part)
        except ServiceError as error:
            self._watch(Event(part.name, "failed", time.monotonic() - began, error.detail))
            raise
        self._ready[part.name].set()
        if part.launch:
            self._watchers.append(asyncio.create_task(self._keep_up(part)))

    async def _bring_up(self, part: Part) -> None:
        """Start a part once and wait until it is ready."""
        began = time.monotonic()
        self._watch(Event(part.name, "starting", external=part.external is not None))
        child = None
        if part.launch:
            child = self._children[part.name] = await Child.start(await part.launch())
        reason = "it was not asked in time"
        while (elapsed := time.monotonic() - began) < part.start_seconds:
            if child and child.returncode is not None:
                cause = f"{_status(child.returncode)}: {_brief(child)}; see {child.log}"
                raise PartFailed(f"{part.name} ended at its start, {cause}")
            try:
                detail = await part.ready(child)
            except NotReady as not_ready:
                reason = str(not_ready)
                await asyncio.sleep(_POLL)
            else:
                pid = child.pid if child else None
                took = time.monotonic() - began
                self._watch(Event(part.name, "ready", took, detail, pid, part.external is not None))
                return
        if child:
            raise PartFailed(
                f"{part.name} was not ready within {elapsed:.0f} s: {reason}: {_brief(child)}; see {child.log}"
            )
        hint = f"; check {part.external}" if part.external else ""
        raise PartFailed(f"{part.name} was not reached within {elapsed:.0f} s: {reason}{hint}")

    async def _keep_up(self, part: Part) -> None:
        """Start a child again whenever it ends."""
        wait = _BACKOFF
        while True:
            child, began = self._children[part.name], time.monotonic()
            code = await child.wait()
            lasted = time.monotonic() - began
            wait = _BACKOFF if lasted > _WELL_AFTER else wait
            # Who was killed from outside has nothing to say about it.
            words = "" if code < 0 else f": {_brief(child)}"
            self._watch(Event(part.name, "exited", lasted, f"{_status(code)}{words}; see {child.log}"))
            child.kill()
            while True:
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_BACKOFF)
                self._watch(Event(part.name, "restarting"))
                try:
                    await self._bring_up(part)
                    break
                except (ServiceError, OSError) as error:
                    self._watch(Event(part.name, "failed", detail=f"{error}; again in {wait:.0f} s"))
                    await self._children[part.name].stop()

    async def _stop_in_turn(self, part: Part) -> None:
        for other in self._parts:
            if part.name in other.after:
                await self._stopped[other.name].wait()
        child = self._children.get(part.name)
        if child:
            began = time.monotonic()
            self._watch(Event(part.name, "stopping"))
            await child.stop()
            self._watch(Event(part.name, "stopped", time.monotonic() - began))
        self._stopped[part.name].set()


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _brief(child: Child) -> str:
    """Its last words as one line."""
    with contextlib.suppress(OSError):
        return " | ".join(child.last_words(4).splitlines()) or "it said nothing"
    return "its log is gone"
