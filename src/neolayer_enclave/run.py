"""A call of a function on its way through a cell, and who waits for it."""

import asyncio
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from neolayer_enclave.bundle import Bundle
from neolayer_enclave.protocol import Failure
from neolayer_enclave.subtle import Budget

#: Of the content of a run, where its timeout is; ms.
TIMEOUT_AT: Final = 17
_TIMEOUT: Final = struct.Struct("<I")

if TYPE_CHECKING:
    from neolayer_enclave.cell import Cell


class Caller(Protocol):
    """Who waits for a call: a connection of the host."""

    def finished(self, id: int, queue_us: bytes, result: bytes) -> None:
        """The two together are the body of a ``RESULT``."""

    def refused(self, id: int, failure: Failure) -> None:
        """The call was not started."""

    def host_call(self, run: "Run", seq: int, name: str, argument: bytes) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """A call of a function, waiting or running."""

    #: Null when its host speaks to the cell directly.
    caller: Caller | None
    #: Frame id of the caller's request.
    request: int
    bundle: Bundle
    #: Body of the cell's INVOKE frame behind the bundle: depth, execution, timeout, input.
    content: bytes
    cell: "Cell"
    #: `time.monotonic`.
    arrived: float
    #: These three once it runs.
    id: int = 0
    started: float = 0.0
    deadline: float = 0.0
    fetches: int = 0
    #: What works for the function's host calls, by their number; made when there is something, as most calls have
    #: nothing and are quick.
    working: dict[int, asyncio.Task[None]] | None = None
    computed: Budget | None = None
    #: A host call with an effect was made: the call must not be repeated blindly.
    sent: bool = False

    @property
    def nested(self) -> bool:
        return self.content[0] > 0

    @property
    def timeout_ms(self) -> int:
        """What it may take; less than its function may where its caller has less."""
        (given,) = _TIMEOUT.unpack_from(self.content, TIMEOUT_AT)
        limit = self.bundle.limits.timeout_ms
        return min(given, limit) if given else limit

    @property
    def queue_us(self) -> int:
        return int((self.started - self.arrived) * 1e6)

    def answer(self, seq: int, *, ok: bool, text: bytes, body: bytes = b"") -> None:
        """Give the function what it waits for; dropped when the call is over."""
        self.cell.deliver(self, seq, ok=ok, text=text, body=body)


def refuse(run: Run, failure: Failure) -> None:
    """Tell whoever waits for a call that it was not started."""
    if run.caller:
        run.caller.refused(run.request, failure)
