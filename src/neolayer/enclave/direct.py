"""Ways to cells past the enclave process: a call to a warm function then passes one process less, there and back.

The enclave stays in charge. It hands over a connection of ours to the cell of one tenant, keeps watch over the
cell, serves what functions fetch, and tells afterwards what became of calls in a cell that ended.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.enclave.connection import Call, Connection, tell
from neolayer.enclave.errors import EnclaveRefused, OutcomeUnknown
from neolayer_enclave import protocol

_log = logging.getLogger(__name__)
#: A cell that could not be had directly is asked for again after this time at the earliest; seconds.
AGAIN_S: Final = 0.25
#: Refusals of a cell that mean: ask the enclave.
_ELSEWHERE: Final = frozenset({"not_loaded", "leaving"})
#: After one of these a call must not be repeated blindly.
_EFFECTS: Final = frozenset({"neo.send", "functions.invoke"})
#: The answer of a quick function is there in a third of this; seconds.
POLL_S: Final = 0.0001
#: After so many vain polls in a row, each of which doubles it, a thousand calls are not polled for.
MAX_VAIN: Final = 10
#: After calls that were not alone so many are not polled for, as others are likely to come just now.
CROWD: Final = 16
READ_BYTES: Final = 65_536
#: More than the kernel holds of a connection.
MAX_REST_READS: Final = 64
#: Bits in the least id of a connection.
_FIRSTS: Final = protocol.DIRECT_BIT | (protocol.DIRECT_CONNECTIONS - 1) * protocol.DIRECT_IDS
_encode_json: Final = msgspec.json.Encoder().encode

#: Calls by id: when they are given up, who waits, and the body of their frame.
type Sent = dict[int, tuple[float, Call, bytes]]


@dataclass(slots=True, eq=False)
class Way:
    """How calls of one tenant reach its cell, if not through the enclave."""

    #: Open.
    cell: "CellConnection | None" = None
    #: One is being opened.
    opening: bool = False
    #: By the event loop's time.
    not_before: float = 0.0
    #: It is forgotten: none is to be opened any more.
    dropped: bool = False


class Enclave(Protocol):
    """The connection to the enclave, beside those to its cells."""

    def resend(self, body: bytes, call: Call, deadline: float) -> None:
        """Send a call through the enclave which a cell has not begun."""

    async def fates(self, request: protocol.Fate) -> protocol.Fates:
        """
        Raises:
            ServiceError: it cannot be asked.
        """
        ...

    def later(self, work: Coroutine[Any, Any, None]) -> None: ...

    @property
    def cells(self) -> "set[CellConnection]":
        """All that are open."""
        ...

    @property
    def closing(self) -> bool: ...

    @property
    def busy_poll(self) -> bool: ...


class CellConnection(Connection):
    """To one cell, once `granted`."""

    def __init__(self, way: Way, enclave: Enclave) -> None:
        super().__init__()
        self._way = way
        self._enclave = enclave
        self._cell = 0
        self._first = 0
        #: Ids of calls that asked for something with an effect.
        self._effects: set[int] = set()
        self._descriptor = -1
        #: No further calls come here.
        self._given_up = False
        #: How often in a row polling was in vain, and for how many calls it is not tried therefore.
        self._vain = 0
        self._unpolled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._enclave.cells.add(self)

    def granted(self, grant: protocol.Way) -> None:
        """From now on the cell is at the other end.

        Raises:
            ValueError: not the enclave's word.
        """
        if grant.first & ~_FIRSTS or not grant.first & protocol.DIRECT_BIT:
            raise ValueError("ids that no direct connection has")
        self._cell, self._first = grant.cell, grant.first

    def invoke(self, body: bytes, call: Call, timeout_s: float) -> None:
        super().invoke(body, call, timeout_s)
        if not self._enclave.busy_poll:
            return
        if len(self._calls) > 1:
            self._unpolled = max(self._unpolled, CROWD)
        elif len(self._calls) == 1 and not self._reading:
            if self._unpolled:
                self._unpolled -= 1
            else:
                self._poll()

    def _poll(self) -> None:
        """Look for the answer for a moment instead of sleeping until it is there.

        To fall asleep and to be woken takes about as long as a quick function does. A call that is not alone
        shares that with others, and then this process has better things to do.
        """
        end = time.perf_counter() + POLL_S
        while time.perf_counter() < end:
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return  # the transport will meet it, too
            if data:
                self._vain = 0
                self.data_received(data)
            return
        self._vain = min(self._vain + 1, MAX_VAIN)
        self._unpolled = (1 << self._vain) - 1

    def _new_id(self) -> int:
        id = super()._new_id() % protocol.DIRECT_IDS + self._first
        while id in self._calls:
            id = super()._new_id() % protocol.DIRECT_IDS + self._first
        return id

    def asked(self, asking: protocol.HostCall) -> None:
        if asking.name in _EFFECTS and asking.request in self._calls:
            self._effects.add(asking.request)

    def encode_failure(self, failure: protocol.Failure) -> bytes:
        return _encode_json({"code": failure.code, "message": failure.message})

    def refused(self, deadline: float, call: Call, body: bytes, error: EnclaveRefused) -> None:
        if error.code == "leaving":
            self.retire()
        if error.code in _ELSEWHERE:
            self._enclave.resend(body, call, deadline)
        else:
            tell(call.failed, error)

    def overdue(self) -> None:
        # Calls that pass the enclave make it look at that cell.
        self.retire()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up()
        self._enclave.cells.discard(self)
        self.open = False
        if exc is not None:
            self._read_the_rest()
        super().connection_lost(exc)

    def calls_lost(self, calls: Sent) -> None:
        if self._enclave.closing:
            super().calls_lost(calls)
        elif calls:
            self._enclave.later(self._ask_what_became_of(calls))

    def _read_the_rest(self) -> None:
        """A transport that fails to write does not read what came before: calls that were answered in time."""
        with contextlib.suppress(OSError):
            for _ in range(MAX_REST_READS):
                self.data_received(os.read(self._descriptor, READ_BYTES))

    def retire(self) -> None:
        """No further calls come here; it is closed when those that run are over."""
        self._give_up()
        if not self._calls:
            self.close()

    def _give_up(self) -> None:
        self._given_up = True
        if self._way.cell is self:
            self._way.cell = None

    def _sweep(self) -> None:
        super()._sweep()
        self._effects.intersection_update(self._calls)
        if self._given_up and not self._calls:
            self.close()

    async def _ask_what_became_of(self, calls: Sent) -> None:
        handles = [(id, body[: protocol.HANDLE_BYTES]) for id, (_, _, body) in calls.items()]
        try:
            fates = await self._enclave.fates(protocol.Fate(self._cell, handles))
            pairs = list(zip(calls.items(), fates.errors, strict=True))
        except (ServiceError, ValueError, msgspec.DecodeError) as reason:
            _log.warning("the fate of %d calls is unknown: %s", len(calls), reason)
            super().calls_lost(calls)
            return
        for (id, (deadline, call, body)), error in pairs:
            acted = id in self._effects
            if error is not None:
                retryable = error.retryable and not acted
                tell(call.finished, failed(msgspec.structs.replace(error, retryable=retryable)))
            elif acted:
                tell(call.failed, OutcomeUnknown())
            else:
                self._enclave.resend(body, call, deadline)


def failed(error: protocol.ErrorInfo) -> protocol.Result:
    """Of a call whose cell did not live to answer."""
    return protocol.decode_result(protocol.encode_failed(error, queue_us=0, wall_us=0, fetches=0))


async def opened(way: Way, enclave: Enclave, socket: str, handle: bytes, timeout_s: float) -> None:
    """Open a way to the cell of a bundle's tenant. Where that is not possible now, calls pass the enclave."""
    loop = asyncio.get_running_loop()
    way.opening = True
    way.not_before = loop.time() + AGAIN_S
    cell: CellConnection | None = None
    try:
        _, cell = await loop.create_unix_connection(lambda: CellConnection(way, enclave), socket)
        grant = await cell.request(protocol.Direct(handle), timeout_s=timeout_s)
        cell.granted(msgspec.msgpack.decode(grant, type=protocol.Way))
        if cell.open and not (way.dropped or enclave.closing):
            way.cell = cell
    except (OSError, ServiceError, ValueError, msgspec.DecodeError) as error:
        _log.debug("no direct way to a cell: %s", error)
    finally:
        way.opening = False
        if cell is not None and way.cell is not cell:
            cell.close()
