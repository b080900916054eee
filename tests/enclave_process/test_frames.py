"""What arrives on the host's socket, and what must not bring the enclave down."""

import asyncio
import struct

import pytest

from neolayer_enclave import protocol
from neolayer_enclave.protocol import HEADER, Failure, Hello, Identity, Kind
from tests.enclave_process.host import Host, Process, Refusal


async def closes(process: Process, data: bytes) -> bool:
    reader, writer = await asyncio.open_unix_connection(process.socket)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 2) == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(protocol.MAX_FRAME_BYTES + 1, Kind.REQUEST, 1),
        HEADER.pack(4, Kind.REQUEST, 1),
        HEADER.pack(0, 0, 0),
        protocol.frame(Kind.RESPONSE, 1, b""),
        struct.pack("<IBI", 5, 77, 1),
        protocol.frame(Kind.HOST_CALL, 1, b""),
    ],
    ids=["too long", "too short", "zero", "reply nobody asked for", "unknown kind", "call from the host"],
)
async def test_a_frame_that_makes_no_sense_closes_its_connection_only(
    enclave: Process, host: Host, data: bytes
) -> None:
    assert await closes(enclave, data)
    assert (await host.ask(Hello(), Identity)).protocol == protocol.PROTOCOL_VERSION


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x91\xa7unknown", b"\x92\xa6attest\x01", b"\x91\xa6invoke"],
    ids=["empty", "not msgpack", "unknown request", "wrong type", "fields missing"],
)
async def test_a_body_that_is_no_request_is_a_bad_request(enclave: Process, host: Host, body: bytes) -> None:
    id = 4_000_000_000
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    host.waiting[id] = future, lambda name, argument: future
    host.writer.write(protocol.frame(Kind.REQUEST, id, body))
    with pytest.raises(Refusal) as refusal:
        await future
    assert refusal.value.code == "bad_request"


async def test_frames_may_arrive_byte_by_byte_and_many_at_once(enclave: Process, host: Host) -> None:
    frame = protocol.frame(Kind.REQUEST, 9, protocol.encode(Hello()))
    reader, writer = await asyncio.open_unix_connection(enclave.socket)
    for byte in frame:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(frame * 50)
    for _ in range(51):
        length, kind, id = HEADER.unpack(await reader.readexactly(HEADER.size))
        assert (kind, id) == (Kind.RESPONSE, 9)
        await reader.readexactly(length - protocol.HEADER_AFTER_LENGTH)
    writer.close()


async def test_many_calls_are_in_flight_on_several_connections(enclave: Process) -> None:
    hosts = [await Host.connect(enclave) for _ in range(4)]
    bundle = await hosts[0].load("export default (input) => input * 2")
    results = await asyncio.gather(*(hosts[n % 4].invoke(bundle, n) for n in range(300)))
    assert [int(result.output) for result in results] == [n * 2 for n in range(300)]
    for host in hosts:
        await host.close()


async def test_a_bundle_that_is_not_loaded_is_asked_for(host: Host) -> None:
    with pytest.raises(Refusal) as refusal:
        await host.invoke("never-loaded")
    assert refusal.value.failure == Failure("not_loaded", "this bundle is not loaded", retryable=True)


async def test_a_lost_connection_ends_what_ran_for_it(own_enclave: Process, own_host: Host) -> None:
    leaving = await Host.connect(own_enclave)
    bundle = await leaving.load("export default () => new Promise(() => {})", timeout_ms=30_000)
    spinning = await leaving.load("export default () => { for (;;); }", timeout_ms=30_000, cpu_ms=10_000)
    calls = [asyncio.ensure_future(leaving.invoke(each)) for each in (bundle, spinning)]
    while (await own_host.ask(protocol.Stats(), protocol.Statistics)).running < 2:
        await asyncio.sleep(0.01)
    await leaving.close()
    while (await own_host.ask(protocol.Stats(), protocol.Statistics)).running:
        await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    # The tenant's cell is as good as before.
    assert (await own_host.run("export default () => 1")).output == b"1"
    assert (await own_host.ask(protocol.Stats(), protocol.Statistics)).cells_crashed == 0
