"""Invocations as they come over a connection: whole, in pieces, several at once, or not quite."""

import asyncio
import json
from urllib.parse import urlsplit

from tests.system import System

SOURCE = "export default (input) => input === undefined ? 'none' : { got: input }"


async def deploy(system: System, name: str = "pieces", source: str = SOURCE) -> None:
    body = json.dumps({"source": source}).encode()
    assert (await system.raw("PUT", f"/api/v1/functions/{name}", body=body))[0] < 300


def request(system: System, body: bytes, *, name: str = "pieces", head: str = "", length: bool = True) -> bytes:
    size = f"content-length: {len(body)}\r\n" if length else ""
    return (
        f"POST /api/v1/functions/{name}/invoke HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {system.key}\r\n"
        f"{size}{head}\r\n"
    ).encode() + body


async def connect(system: System) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(system.url).port)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(15):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


async def test_a_request_in_single_bytes_is_answered_like_a_whole_one(system: System) -> None:
    await deploy(system)
    reader, writer = await connect(system)
    for text in ("1", '{"a":"ü"}', ""):
        whole = request(system, text.encode())
        for at in range(len(whole)):
            writer.write(whole[at : at + 1])
            await writer.drain()
        status, headers, body = await answer(reader)
        assert status == 200
        assert json.loads(body) == ({"got": json.loads(text)} if text else "none")
        assert headers["neolayer-start"] in ("warm", "cold")
        assert len(headers["neolayer-execution"]) == 36
    writer.close()


async def test_requests_sent_before_the_answer_are_answered_in_order(system: System) -> None:
    await deploy(system, "slow", "export default async (ms) => (await new Promise((r) => setTimeout(r, ms)), ms)")
    reader, writer = await connect(system)
    other = f"GET /api/v1/functions/slow HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {system.key}\r\n\r\n"
    writer.write(
        request(system, b"200", name="slow")
        + request(system, b"20", name="slow")
        + other.encode()
        + request(system, b"1", name="slow")
    )
    assert (await answer(reader))[2] == b"200"
    assert (await answer(reader))[2] == b"20"
    assert json.loads((await answer(reader))[2])["name"] == "slow"
    assert (await answer(reader))[2] == b"1"
    writer.close()


async def test_chunks_expectations_and_http_1_0_are_understood(system: System) -> None:
    await deploy(system)
    reader, writer = await connect(system)
    chunks = b'5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n'
    writer.write(request(system, chunks, head="transfer-encoding: chunked\r\n", length=False))
    assert (await answer(reader))[2] == b'{"got":{"a":1}}'
    writer.write(request(system, b"7", head="expect: 100-continue\r\n"))
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    assert (await answer(reader))[2] == b'{"got":7}'
    writer.write(request(system, b"8", head="connection: close\r\n"))
    status, headers, body = await answer(reader)
    assert (status, headers["connection"], body) == (200, "close", b'{"got":8}')
    assert await reader.read() == b""
    writer.close()
    reader, writer = await connect(system)
    writer.write(request(system, b"9").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await answer(reader))[2] == b'{"got":9}'
    assert await reader.read() == b""
    writer.close()


async def test_the_connection_serves_on_after_each_kind_of_refusal(system: System) -> None:
    await deploy(system)
    reader, writer = await connect(system)
    cases = [
        (request(system, b"{"), 400, "malformed_json"),
        (request(system, b'"\xff"'), 400, "malformed_json"),
        (request(system, b'"' + b"x" * 1_000_000 + b'"'), 413, "body_too_large"),
        (request(system, b"1", name="nobody"), 404, "function_not_found"),
        (request(system, b"1").replace(b"Bearer nsl_", b"Bearer nope"), 401, "unauthenticated"),
        (request(system, b"1").replace(b"authorization", b"x-other"), 401, "unauthenticated"),
    ]
    for sent, status, code in cases:
        writer.write(sent)
        got, headers, body = await answer(reader)
        assert (got, headers["content-type"], json.loads(body)["code"]) == (
            status,
            "application/problem+json",
            code,
        )
        writer.write(request(system, b"1"))
        assert (await answer(reader))[2] == b'{"got":1}'
    writer.close()


async def test_endless_headers_close_the_connection(system: System) -> None:
    _, writer = await connect(system)
    writer.write(b"POST /api/v1/functions/pieces/invoke HTTP/1.1\r\n")
    try:
        for n in range(10_000):
            writer.write(f"x-{n}: {'y' * 1000}\r\n".encode())
            await writer.drain()
    except ConnectionError:
        pass
    else:
        raise AssertionError("10 MB of headers were taken")
    writer.close()


async def test_a_client_that_leaves_does_not_take_the_call_along(system: System) -> None:
    await deploy(
        system, "departed", "export default async () => (await new Promise((r) => setTimeout(r, 300)), 'done')"
    )
    _, writer = await connect(system)
    writer.write(request(system, b"", name="departed"))
    await asyncio.sleep(0.1)
    writer.close()
    async with asyncio.timeout(10):
        while True:
            _, _, body = await system.raw("GET", "/api/v1/executions?function=departed")
            if items := body["items"]:
                break
            await asyncio.sleep(0.05)
    assert items[0]["output"] == "done"


async def test_too_many_calls_of_a_tenant_are_a_429_with_retry_after(system: System) -> None:
    await deploy(system, "crowd", "export default async () => (await new Promise((r) => setTimeout(r, 1500)), 1)")
    connections = [await connect(system) for _ in range(64 + 256 + 5)]
    for _, writer in connections:
        writer.write(request(system, b"", name="crowd"))
    answers = await asyncio.gather(*(answer(reader) for reader, _ in connections))
    refused = [(status, headers, body) for status, headers, body in answers if status != 200]
    assert len(refused) >= 5
    for status, headers, body in refused:
        assert (status, json.loads(body)["code"], headers["retry-after"]) == (429, "too_many_calls", "1")
    for _, writer in connections:
        writer.close()


async def test_a_head_that_is_repeated_means_the_same_and_one_that_is_not_does_not(system: System) -> None:
    await deploy(system)
    await deploy(system, "others", "export default (input) => ['other', input]")
    reader, writer = await connect(system)
    for _ in range(2):
        for text in ("1", "2", '"x"', "3", "4"):
            writer.write(request(system, text.encode()))
            assert json.loads((await answer(reader))[2]) == {"got": json.loads(text)}
        writer.write(request(system, b"5", name="others"))
        assert (await answer(reader))[2] == b'["other",5]'
        writer.write(request(system, b"6").replace(b"Bearer nsl_", b"Bearer nope"))
        assert (await answer(reader))[0] == 401
        # As long as the ones before, but two requests; and one whose end comes later.
        writer.write(request(system, b"7") + request(system, b"8"))
        assert [(await answer(reader))[2] for _ in range(2)] == [b'{"got":7}', b'{"got":8}']
        whole = request(system, b"9")
        writer.write(whole[:-1])
        await asyncio.sleep(0.05)
        writer.write(whole[-1:])
        assert (await answer(reader))[2] == b'{"got":9}'
        chunked = request(system, b"1\r\n1\r\n0\r\n\r\n", head="transfer-encoding: chunked\r\n", length=False)
        for _ in range(2):
            writer.write(chunked)
            assert (await answer(reader))[2] == b'{"got":1}'
        writer.write(request(system, b"{"))
        assert (await answer(reader))[0] == 400
    writer.close()


async def test_a_connection_that_breaks_off_in_disorder_harms_nobody_elses_calls(system: System) -> None:
    source = "export default async () => (await new Promise((r) => setTimeout(r, 600)), 'done')"
    await deploy(system, "disorder", source)
    await deploy(system, "bystander", source)
    bystander, writer = await connect(system)
    writer.write(request(system, b"", name="bystander"))
    leavers = []
    for _ in range(5):
        _, leaving = await connect(system)
        leaving.write(
            request(system, b"", name="disorder") + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n\x00garbage\r\n\r\n"
        )
        await leaving.drain()
        leavers.append(leaving)
    assert (await answer(bystander))[2] == b'"done"'
    async with asyncio.timeout(10):
        while True:
            _, _, body = await system.raw("GET", "/api/v1/executions?function=disorder")
            if len(body["items"]) == 5:
                break
            await asyncio.sleep(0.05)
    assert {item["output"] for item in body["items"]} == {"done"}
    writer.write(request(system, b"", name="bystander"))
    assert (await answer(bystander))[2] == b'"done"'
    for each in leavers:
        each.close()
    writer.close()


async def test_endless_requests_before_the_first_answer_close_the_connection(system: System) -> None:
    reader, writer = await connect(system)
    writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n" * 5_000)
    async with asyncio.timeout(10):
        try:
            received = await reader.read(-1)
        except ConnectionError:
            received = b""
    assert received.count(b"HTTP/1.1 200") < 5_000
    writer.close()
    assert (await system.raw("GET", "/health/live"))[0] == 200


async def test_trailers_are_read_and_forgotten(system: System) -> None:
    await deploy(system)
    reader, writer = await connect(system)
    body = b"1\r\n7\r\n0\r\n" + b"x-trailer: y\r\n" * 1_000 + b"\r\n"
    for _ in range(2):
        writer.write(request(system, body, head="transfer-encoding: chunked\r\n", length=False))
        assert (await answer(reader))[2] == b'{"got":7}'
    writer.close()


async def test_a_client_that_does_not_take_its_answers_does_not_fill_the_memory(system: System) -> None:
    await deploy(system, "large", "export default () => 'x'.repeat(900_000)")
    reader, writer = await connect(system)
    for _ in range(40):
        writer.write(request(system, b"1", name="large"))
        await asyncio.sleep(0.02)
    api = next(each for each in system.processes() if each.cmdline()[-1] == "api")
    before = api.memory_info().rss
    await asyncio.sleep(0.5)
    assert api.memory_info().rss < before + 20_000_000
    for _ in range(40):
        assert len((await answer(reader))[2]) == 900_002
    writer.close()
