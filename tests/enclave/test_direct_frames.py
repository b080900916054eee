"""What arrives on a direct connection of a cell, and what must not bring the cell down."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable

import msgspec
import pytest

from neolayer_enclave import protocol
from neolayer_enclave.protocol import DIRECT_IDS, HEADER, Kind
from tests.enclave.caller import ASK, ECHO, EXECUTION, Caller, Gate, until
from tests.enclave_process.host import Process, is_direct, output


class Raw:
    """A direct connection without a client."""

    def __init__(self, process: Process, handle: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        self._socket.connect(str(process.socket))
        self.send(protocol.frame(Kind.REQUEST, 1, protocol.encode(protocol.Direct(handle))))
        kind, _, body = self.frame()
        if kind != Kind.RESPONSE:
            self.close()
            raise ConnectionRefusedError(body)
        self.way = msgspec.msgpack.decode(body, type=protocol.Way)
        self.handle = handle

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def invoke(self, id: int, input: bytes = b"1", handle: bytes | None = None) -> bytes:
        return protocol.frame(
            Kind.INVOKE, id, protocol.encode_invoke(handle or self.handle, 0, EXECUTION.bytes, input)
        )

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._socket.recv(size - len(data))):
            data += more
        return data

    def frame(self) -> tuple[int, int, bytes]:
        length, kind, id = HEADER.unpack(self.read(HEADER.size))
        return kind, id, self.read(length - protocol.HEADER_AFTER_LENGTH)

    @property
    def closed(self) -> bool:
        """Waits for it."""
        try:
            return self.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._socket.close()


GARBAGE: dict[str, Callable[[Raw], bytes]] = {
    "too long": lambda raw: HEADER.pack(protocol.MAX_FRAME_BYTES + 1, Kind.INVOKE, raw.way.first),
    "too short": lambda raw: HEADER.pack(4, Kind.INVOKE, raw.way.first),
    "a head that is cut": lambda raw: protocol.frame(Kind.INVOKE, raw.way.first, raw.handle + b"\0" * 16),
    "an unknown kind": lambda raw: protocol.frame(77, raw.way.first, b""),  # type: ignore[arg-type]
    "a request": lambda raw: protocol.frame(Kind.REQUEST, 1, protocol.encode(protocol.Hello())),
    "a frame of a cell": lambda raw: struct.pack("<IBI", 5, 36, 0),
    "another connection's id": lambda raw: raw.invoke(raw.way.first ^ DIRECT_IDS),
    "an id of the enclave's": lambda raw: raw.invoke(1),
    "an id beyond its own": lambda raw: raw.invoke(raw.way.first + DIRECT_IDS),
    "the id of a call that runs": lambda raw: raw.invoke(raw.way.first) * 2,
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_frame_that_makes_no_sense_closes_a_direct_connection_and_nothing_else(
    process: Process, caller: Caller, garbage: str
) -> None:
    bundle = await caller.warm(ASK)
    gate = Gate()
    waiting = asyncio.ensure_future(caller.call(bundle, 5, gate))
    await until(lambda: len(gate.asked) == 1)
    asking = caller.client._known[bundle][0]
    before = await caller.client.stats()

    def speak() -> None:
        raw = Raw(process, asking)
        # What comes behind it is not begun.
        behind = raw.invoke(raw.way.first + 9)
        raw.send(GARBAGE[garbage](raw) + behind)
        while True:
            try:
                kind, id, _ = raw.frame()
            except (struct.error, ConnectionResetError):
                break
            assert (kind, id) != (Kind.HOST_CALL, raw.way.first + 9)
        raw.close()

    await asyncio.to_thread(speak)
    gate.opened.set()
    assert output(await waiting) == 5
    assert is_direct(caller.client, "alice")
    after = await caller.client.stats()
    assert (after.cells_started, after.cells_crashed) == (before.cells_started, before.cells_crashed)
    await until_at_rest(caller)


async def until_at_rest(caller: Caller) -> None:
    async with asyncio.timeout(5):
        while (await caller.client.stats()).running:
            await asyncio.sleep(0.01)


async def test_frames_may_come_in_pieces_and_answers_to_nothing_are_ignored(
    process: Process, caller: Caller
) -> None:
    bundle = await caller.warm(ECHO)

    def speak() -> bytes:
        raw = Raw(process, caller.client._known[bundle][0])
        raw.send(protocol.frame(Kind.HOST_RESULT, 99, b"1") + protocol.frame(Kind.HOST_ERROR, 99, b"x"))
        for byte in raw.invoke(raw.way.first + 3, b'"pieces"'):
            raw.send(bytes([byte]))
        kind, id, body = raw.frame()
        assert (kind, id) == (Kind.RESULT, raw.way.first + 3)
        # The number is free for another call again.
        raw.send(raw.invoke(raw.way.first + 3, b"2"))
        assert protocol.decode_result(raw.frame()[2]).output == b"2"
        raw.send(raw.invoke(raw.way.first, b"1", b"unknown!"))
        kind, id, body = raw.frame()
        assert (kind, id) == (Kind.ERROR, raw.way.first)
        failure = msgspec.msgpack.decode(body, type=protocol.Failure)
        assert (failure.code, failure.retryable) == ("not_loaded", True)
        raw.close()
        return body

    await asyncio.to_thread(speak)


async def test_a_cell_has_so_many_connections_at_a_time_and_the_numbers_of_closed_ones_are_free(
    own_enclave: Process, own: Caller
) -> None:
    bundle = await own.warm(ECHO)
    handle = own.client._known[bundle][0]

    def open_all() -> set[int]:
        firsts = set()
        for _ in range(3):
            raws = [Raw(own_enclave, handle) for _ in range(23)]
            with pytest.raises(ConnectionRefusedError, match="no_cell"):
                Raw(own_enclave, handle)
            firsts |= {raw.way.first for raw in raws}
            for raw in raws:
                raw.send(raw.invoke(raw.way.first, b"5"))
                assert protocol.decode_result(raw.frame()[2]).output == b"5"
                raw.close()
            time.sleep(0.2)
        return firsts

    assert len(await asyncio.to_thread(open_all)) == 69
    assert output(await own.call(bundle, 1)) == 1


async def test_a_connection_on_which_something_is_under_way_is_not_given_away(
    process: Process, caller: Caller
) -> None:
    bundle = await caller.warm(ASK)
    handle = caller.client._known[bundle][0]

    def speak() -> None:
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(process.socket))
        invoke = protocol.frame(Kind.INVOKE, 5, protocol.encode_invoke(handle, 0, EXECUTION.bytes, b"1"))
        raw.sendall(invoke + protocol.frame(Kind.REQUEST, 6, protocol.encode(protocol.Direct(handle))))
        kinds = []
        data = b""
        while len(kinds) < 2:
            data += raw.recv(65_536)
            while len(data) >= HEADER.size and len(data) >= (length := HEADER.unpack_from(data)[0]) + 4:
                kinds.append((HEADER.unpack_from(data)[1], b"bad_request" in data))
                data = data[length + 4 :]
        assert (Kind.ERROR, True) in kinds
        assert Kind.HOST_CALL in [kind for kind, _ in kinds]
        raw.close()

    await asyncio.to_thread(speak)
