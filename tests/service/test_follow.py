"""Executions are listed by what is asked for, and followed live without missing any."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from neolayer.functions import follow
from tests.service.beside import another_api
from tests.system import System


async def deploy(system: System, name: str, source: str, **settings: object) -> None:
    await system.request("PUT", f"/functions/{name}", {"source": source, **settings})


async def listed(system: System, query: str) -> list[Any]:
    return list((await system.request("GET", f"/executions?{query}"))["items"])


class Stream:
    """The raw lines of a connection to the stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        #: What the server last gave as an id.
        self.last_id = ""
        self.comments = 0

    async def next(self, timeout_s: float = 10) -> dict[str, Any]:
        """The data of the next event."""
        event: dict[str, Any] | None = None
        async with asyncio.timeout(timeout_s):
            while True:
                line = (await self._response.content.readline()).decode().rstrip("\n")
                if line.startswith("id: "):
                    self.last_id = line[4:]
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                elif line.startswith(":"):
                    self.comments += 1
                elif not line and event:
                    return event


@asynccontextmanager
async def following(
    system: System, query: str = "", last_id: str = "", url: str | None = None
) -> AsyncIterator[Stream]:
    headers = {"authorization": f"Bearer {system.key}"} | ({"last-event-id": last_id} if last_id else {})
    address = f"{url or system.url}/api/v1/executions/stream?{query}"
    async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response)


async def test_executions_are_filtered(system: System) -> None:
    await deploy(system, "filtered", "export default (x) => { if (x) throw new Error('x'); return 1 }")
    await deploy(system, "filtered-other", "export default () => 1")
    start = datetime.now(UTC)
    await system.invoke("filtered")
    await system.raw("POST", "/api/v1/functions/filtered/invoke", body=b"1")
    await asyncio.sleep(0.05)
    middle = datetime.now(UTC)
    await deploy(system, "filtered", "export default () => 2")
    await system.invoke("filtered")
    await system.invoke("filtered-other")

    async def outputs(query: str) -> list[Any]:
        return [item["output"] for item in await listed(system, f"function=filtered&{query}")]

    assert await outputs("") == [2, None, 1]
    assert await outputs("status=succeeded") == [2, 1]
    assert await outputs("status=failed") == [None]
    assert await outputs("code=function_error") == [None]
    assert await outputs("code=timeout") == []
    assert await outputs("version=1") == [None, 1]
    since, cut = (time.isoformat().replace("+00:00", "Z") for time in (start, middle))
    assert await outputs(f"since={cut}") == [2]
    assert await outputs(f"until={cut}&since={since}") == [None, 1]
    assert len(await listed(system, f"since={cut}")) == 2
    for bad in ("status=nope", "since=yesterday", "version=x", "version=0"):
        assert (await system.request("GET", f"/executions?{bad}", status=422))["code"] == "invalid_request", bad


async def test_a_follower_sees_executions_of_every_api_process_with_their_logs(system: System) -> None:
    await deploy(system, "followed", "export default (x) => { console.log('line', x); return x }")
    await deploy(system, "not-followed", "export default () => 1")
    async with another_api(system) as other, following(system, "function=followed") as stream:
        await system.invoke("not-followed")
        for number, url in enumerate((system.url, other, system.url)):
            path = "/api/v1/functions/followed/invoke"
            _, headers, _ = await system.raw("POST", path, body=str(number).encode(), url=url)
            event = await stream.next(3)
            assert event["execution"]["id"] == headers["neolayer-execution"]
            assert (event["execution"]["function"], event["execution"]["output"]) == ("followed", number)
            assert [line["text"] for line in event["logs"]] == [f"line {number}"]


async def test_after_a_break_the_stream_goes_on_where_it_was_at_any_process(system: System) -> None:
    """Calls go on without a pause while the follower comes and goes; it sees each exactly once."""
    await deploy(system, "resumed", "export default (x) => x")
    total, seen, last_id = 200, [], ""

    async def load() -> None:
        for number in range(total):
            await system.invoke("resumed", number)

    async with another_api(system) as other:
        first_id = ""
        async with following(system, "function=resumed") as stream:
            with pytest.raises(TimeoutError):
                await stream.next(0.5)
            first_id = last_id = stream.last_id
        loading = asyncio.create_task(load())
        turn = 0
        while len(seen) < total:
            turn += 1
            async with following(system, "function=resumed", last_id, (system.url, other)[turn % 2]) as stream:
                for _ in range(min(23, total - len(seen))):
                    seen.append((await stream.next())["execution"]["output"])
                last_id = stream.last_id
        await loading
        assert sorted(seen) == list(range(total))
        # All of it once more, from the id that was given before the first event.
        async with following(system, "function=resumed", first_id) as stream:
            again = [(await stream.next())["execution"]["output"] for _ in range(total)]
        assert again == seen


async def test_a_follower_sees_what_becomes_of_an_asynchronous_execution(system: System) -> None:
    await deploy(system, "changes", "export default () => { throw new Error('no') }", max_attempts=1)
    async with following(system, "function=changes") as stream:
        _, _, body = await system.raw(
            "POST", "/api/v1/functions/changes/invoke", headers={"prefer": "respond-async"}
        )
        statuses = []
        while "dead" not in statuses:
            event = await stream.next()
            assert event["execution"]["id"] == body["id"]
            statuses.append(event["execution"]["status"])
    assert statuses in (["queued", "running", "dead"], ["queued", "dead"], ["running", "dead"], ["dead"])
    async with following(system, "status=dead") as stream:
        await system.raw("POST", "/api/v1/functions/changes/invoke", headers={"prefer": "respond-async"})
        assert (await stream.next())["execution"]["status"] == "dead"


async def test_bad_positions_are_refused_and_ones_from_the_future_mean_now(system: System) -> None:
    path = "/api/v1/executions/stream"
    for bad in ("x", "1", "1-2", "-1-00000000-0000-0000-0000-000000000000", "99999999999999999999999-" + "0" * 32):
        status, _, problem = await system.raw("GET", path, headers={"last-event-id": bad})
        assert (status, problem["code"]) == (422, "invalid_request"), bad
    await deploy(system, "future", "export default () => 1")
    async with following(system, "function=future", f"{2**63}-{'0' * 32}") as stream:
        await system.invoke("future")
        assert (await stream.next())["execution"]["function"] == "future"


async def test_a_quiet_stream_sends_comments_and_too_many_are_refused(system: System) -> None:
    async with following(system, "function=silent") as stream:
        with pytest.raises(TimeoutError):
            await stream.next(follow.HEARTBEAT_S + 2)
        assert stream.comments >= 1
    key = await system.new_tenant("followers")
    headers = {"authorization": f"Bearer {key}"}
    address = f"{system.url}/api/v1/executions/stream"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        open_ones = []
        for _ in range(follow.MAX_FOLLOWERS):
            response = await session.get(address, headers=headers)
            assert response.status == 200
            await response.content.readline()
            open_ones.append(response)
        async with session.get(address, headers=headers) as refused:
            assert refused.status == 429
            assert (await refused.json(content_type=None))["code"] == "too_many_requests"
        for response in open_ones:
            response.close()

        async def free() -> bool:
            async with session.get(address, headers=headers) as response:
                return response.status == 200

        await system.eventually(free)
