"""What a cell may say to its host, which believes none of it: each call is told of its end once."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from neolayer.core.errors import ServiceError
from neolayer.enclave import (
    EnclaveUnavailable,
    OutcomeUnknown,
    Result,
)
from neolayer.enclave.direct import CellConnection, Way
from neolayer_enclave import protocol
from neolayer_enclave.protocol import DIRECT_IDS, HEADER, Kind
from tests.enclave.caller import until


class Side:
    """The client's other connection, to the enclave, as a cell's connection sees it."""

    busy_poll = False
    closing = False

    def __init__(self) -> None:
        self.cells: set[CellConnection] = set()
        self.resent: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []

    def resend(self, body: bytes, call: Any, deadline: float) -> None:
        self.resent.append(body)
        call.failed(EnclaveUnavailable("resent"))

    async def fates(self, request: protocol.Fate) -> protocol.Fates:
        crashed = protocol.ErrorInfo("cell_crashed", "ended", retryable=True)
        return protocol.Fates([crashed for _ in request.calls])

    def later(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))


class Told:
    """A call that counts how often it is told of its end."""

    def __init__(self) -> None:
        self.ends: list[Any] = []
        self.served: list[str] = []

    def finished(self, result: Result) -> None:
        self.ends.append(result)

    def failed(self, error: ServiceError) -> None:
        self.ends.append(error)

    async def serve(self, name: str, argument: bytes) -> bytes:
        self.served.append(name)
        return b"1"


FIRST = protocol.DIRECT_BIT | 3 * DIRECT_IDS


async def lying(side: Side) -> tuple[CellConnection, Way, socket.socket]:
    """A connection at whose other end the test is the cell."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    way = Way()
    _, cell = await asyncio.get_running_loop().create_unix_connection(lambda: CellConnection(way, side), sock=ours)
    cell.granted(protocol.Way(1, FIRST))
    way.cell = cell
    return cell, way, theirs


LIES: dict[str, bytes] = {
    "too long": HEADER.pack(protocol.MAX_FRAME_BYTES + 1, Kind.RESULT, FIRST + 1),
    "too short": HEADER.pack(1, Kind.RESULT, FIRST + 1),
    "a refusal that is none": protocol.frame(Kind.ERROR, FIRST + 1, b"\xc1\xc1"),
    "a refusal of other types": protocol.frame(Kind.ERROR, FIRST + 1, b"\x93\x01\x02\x03"),
    "a host call that is none": protocol.frame(Kind.HOST_CALL, 1, b"\x00"),
    "an invocation": protocol.frame(Kind.INVOKE, FIRST + 1, b""),
    "an unknown kind": protocol.frame(99, FIRST + 1, b""),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("polled", [False, True])
async def test_what_makes_no_sense_closes_the_connection_and_each_call_is_told_once(
    lie: str, polled: bool
) -> None:
    side = Side()
    side.busy_poll = polled
    cell, way, theirs = await lying(side)
    told = [Told(), Told()]
    cell.invoke(b"x" * 30, told[0], 5.0)
    if polled:
        cell._calls.clear()
        told.pop(0)
        cell._next_id = 0
    # Behind it comes an answer, which is not taken for one.
    theirs.send(LIES[lie] + protocol.frame(Kind.RESULT, FIRST + 2, b""))
    cell.invoke(b"y" * 30, told[-1], 5.0)
    await asyncio.wait_for(cell.closed.wait(), 5)
    await asyncio.gather(*side.tasks)
    assert [[end.error.code for end in each.ends] for each in told] == [["cell_crashed"]] * len(told)
    assert way.cell is None
    assert not side.cells
    theirs.close()


async def test_results_of_no_sense_and_of_nobody_harm_their_own_call_only() -> None:
    side = Side()
    cell, _, theirs = await lying(side)
    told = [Told() for _ in range(4)]
    for each in told:
        cell.invoke(b"x", each, 5.0)
    infinite = protocol.RESULT_HEAD.pack(0, 0, 0, 0, 0, 0, float("inf"), 0, 1) + b"1"
    fine = protocol.RESULT_HEAD.pack(0, 0, 0, 0, 0, 0, 1.0, 1.0, 1) + b"1"
    bodies = [b"", infinite, protocol.RESULT_HEAD.pack(0, protocol.FAILED, 0, 0, 0, 0, 0, 0, 3) + b"{}x", fine]
    for n, body in enumerate(bodies, 1):
        theirs.send(protocol.frame(Kind.RESULT, FIRST + n, body) * 2)
    theirs.send(protocol.frame(Kind.RESULT, 12345, fine) + protocol.frame(Kind.RESPONSE, 7, b""))
    await until(lambda: bool(told[-1].ends))
    await asyncio.sleep(0.05)
    assert [[type(end) for end in each.ends] for each in told] == [[OutcomeUnknown]] * 3 + [[Result]]
    assert cell.open
    cell.close()
    theirs.close()


async def test_host_calls_for_calls_that_do_not_run_are_refused_and_serve_nothing() -> None:
    side = Side()
    cell, _, theirs = await lying(side)
    told = Told()
    cell.invoke(b"x", told, 5.0)
    theirs.recv(65_536)
    for request in (FIRST + 2, 5, FIRST + 1):
        theirs.send(
            protocol.frame(
                Kind.HOST_CALL, request % 99, protocol.encode(protocol.HostCall(request, "neo.send", b"1"))
            )
        )
    answers = b""
    while len(told.served) < 1 or answers.count(b"enclave_unavailable") < 2:
        await asyncio.sleep(0.01)
        with contextlib.suppress(BlockingIOError):
            answers += theirs.recv(65_536, socket.MSG_DONTWAIT)
    assert told.served == ["neo.send"]
    cell.close()
    theirs.close()


@pytest.mark.parametrize("first", [0, 1, FIRST + 1, protocol.DIRECT_BIT - 1, 1 << 31, 1 << 62, -1])
async def test_a_grant_of_ids_that_no_connection_has_is_refused(first: int) -> None:
    cell, _, theirs = await lying(Side())
    with pytest.raises(ValueError, match="ids"):
        cell.granted(protocol.Way(1, first))
    cell.close()
    theirs.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_answers_that_came_before_the_connection_broke_count(run: Callable[[Any], Any]) -> None:
    async def check() -> None:
        side = Side()
        cell, _, theirs = await lying(side)
        answered, lost = Told(), Told()
        cell.invoke(b"x", answered, 5.0)
        fine = protocol.RESULT_HEAD.pack(0, 0, 0, 0, 0, 0, 1.0, 1.0, 1) + b"1"
        theirs.recv(65_536)
        theirs.send(protocol.frame(Kind.RESULT, FIRST + 1, fine))
        theirs.close()
        # Written without having read: the transport meets a closed connection.
        cell.invoke(b"y", lost, 5.0)
        await asyncio.wait_for(cell.closed.wait(), 5)
        await asyncio.gather(*side.tasks)
        assert [end.output for end in answered.ends] == [b"1"]
        assert [end.error.code for end in lost.ends] == ["cell_crashed"]

    run(check())


async def test_effects_are_remembered_of_calls_that_run_only() -> None:
    side = Side()
    cell, _, theirs = await lying(side)
    told = Told()
    cell.invoke(b"x", told, 5.0)
    theirs.send(protocol.frame(Kind.HOST_CALL, 1, protocol.encode(protocol.HostCall(FIRST + 1, "neo.send", b"1"))))
    await until(lambda: told.served == ["neo.send"])
    assert cell._effects == {FIRST + 1}
    fine = protocol.RESULT_HEAD.pack(0, 0, 0, 0, 0, 0, 1.0, 1.0, 1) + b"1"
    theirs.send(protocol.frame(Kind.RESULT, FIRST + 1, fine))
    await until(lambda: not cell._effects)
    assert len(told.ends) == 1
    cell.close()
    theirs.close()


def test_a_call_begun_while_another_is_told_is_answered_in_its_turn() -> None:
    """Nothing is read from the connection in the middle of a chunk, as polling would."""

    async def check() -> None:
        side = Side()
        side.busy_poll = True
        cell, _, theirs = await lying(side)
        fine = protocol.RESULT_HEAD.pack(0, 0, 0, 0, 0, 0, 1.0, 1.0, 1)
        order: list[bytes] = []

        class Next(Told):
            def finished(self, result: Result) -> None:
                super().finished(result)
                order.append(result.output)
                if result.output == b"1":
                    # Two answers at once for the next call to find, the first of them in the chunk being read.
                    theirs.send(protocol.frame(Kind.RESULT, FIRST + 3, fine + b"3"))
                    cell.invoke(b"z", Next(), 5.0)

        cell.invoke(b"x", Next(), 5.0)
        frames = [protocol.frame(Kind.RESULT, FIRST + n, fine + b"%d" % n) for n in (1, 2)]
        cell._calls[FIRST + 2] = (asyncio.get_running_loop().time() + 5, Next(), b"y")
        cell._next_id = 2
        theirs.send(b"".join(frames))
        await until(lambda: len(order) == 3)
        assert order == [b"1", b"2", b"3"]
        cell.close()
        theirs.close()

    uvloop.run(check())
