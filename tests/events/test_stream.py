"""Server-sent events: from now on, from an event on, and what is said when events are gone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from neolayer.core.errors import InvalidRequest
from neolayer.events import feed, stream
from neolayer.events.outbox import APPENDED_AT_ONCE, Position, append
from neolayer.events.outbox import News as ToStore

from .conftest import News


class Client:
    """Reads a stream as an EventSource does."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.last_id = ""

    async def next(self) -> tuple[str, Any]:
        """Kind and data of the next event; ``("end", None)`` when the stream ended."""
        async for piece in self._pieces:
            fields = dict(line.partition(": ")[::2] for line in piece.decode().strip().split("\n"))
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                return fields["event"], json.loads(fields["data"])
        return "end", None

    async def close(self) -> None:
        await self._pieces.aclose()  # type: ignore[attr-defined]


async def follow(news: News, last_id: str = "") -> Client:
    return Client(await news.streams.open(news.tenant, last_id or None))


async def numbers(client: Client, count: int) -> list[int]:
    found = []
    for _ in range(count):
        kind, data = await client.next()
        assert kind == "thing"
        assert data["at"].endswith("Z")
        found.append(data["number"])
    return found


async def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(news: News) -> None:
    await news.write(0)
    seen: list[int] = []
    last_id = ""
    for start in range(1, 13, 3):
        client = await follow(news, last_id)
        await news.write(start)
        await news.write(start + 1)
        seen += await numbers(client, start + 1 - len(seen))
        last_id = client.last_id
        await client.close()
        await news.write(start + 2)  # while nobody follows
    client = await follow(news, last_id)
    seen += await numbers(client, 1)
    await client.close()
    assert seen == list(range(1, 13))


async def test_one_that_breaks_off_before_the_first_event_goes_on_from_there(news: News) -> None:
    pieces = await news.streams.open(news.tenant, None)
    first_id = (await anext(pieces)).decode().split("id: ")[1].strip()
    await Client(pieces).close()
    await news.write(1)
    again = await follow(news, first_id)
    assert await numbers(again, 1) == [1]
    await again.close()


async def test_a_long_absence_is_caught_up_in_pages(news: News, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PAGE", 7)
    for number in range(50):
        await news.write(number)
    client = await follow(news, "0-0")
    assert await numbers(client, 50) == list(range(50))
    await client.close()


async def test_silence_is_filled_with_ids_to_go_on_from(news: News, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(stream, "MAX_STREAM_S", 1.0)
    client = await follow(news)
    assert await client.next() == ("end", None)
    await news.write(1)
    again = await follow(news, client.last_id)
    assert await numbers(again, 1) == [1]
    await again.close()


async def test_a_gap_is_said_when_events_since_then_were_removed(news: News) -> None:
    await news.write(1)
    await news.database.execute(b"UPDATE outbox SET at = now() - interval '9 days'")
    await news.write(2)
    assert await news.outbox.prune(keep_hours=168) == 1
    client = await follow(news, "3-0")
    assert (await client.next())[0] == "gap"
    assert await numbers(client, 1) == [2]
    last_id = client.last_id
    await client.close()
    await news.write(3)
    client = await follow(news, last_id)
    assert await numbers(client, 1) == [3]
    await client.close()


async def test_one_that_does_not_keep_up_is_ended_and_goes_on_by_its_last_id(
    news: News, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_WAITING", 3)
    client = await follow(news)
    for number in range(10):
        await news.write(number)
    seen: list[int] = []
    # Without a silence first: it is behind already.
    async with asyncio.timeout(stream.HEARTBEAT_S / 2):
        while True:
            kind, data = await client.next()
            if kind == "end":
                break
            seen.append(data["number"])
    again = await follow(news, client.last_id)
    seen += await numbers(again, 10 - len(seen))
    assert seen == list(range(10))
    await again.close()


@pytest.mark.parametrize("bad", ["x", "1", "1-", "-1-2", "99999999999999999999-1", "1-1 "])
async def test_an_id_that_is_none_of_ours_is_refused(news: News, bad: str) -> None:
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        await news.streams.open(news.tenant, bad)


async def test_an_id_from_the_future_is_taken_for_now(news: News) -> None:
    client = await follow(news, "9000000000000000000-1")
    await news.write(1)
    assert await numbers(client, 1) == [1]
    await client.close()


async def test_a_stream_of_some_kinds_leaves_out_others_before_and_after_it_began(news: News) -> None:
    """What is left out neither holds up the heartbeat nor comes when the client comes back."""

    async def write(*kinds: str) -> None:
        async with news.database.transaction() as connection:
            await append(connection, [ToStore(news.tenant, kind, uuid4(), 1, "{}") for kind in kinds])

    await write("thing", "other", "thing", "another")
    client = Client(await news.streams.open(news.tenant, "0-0", {"other", "another"}))
    await write("thing", "another", "thing", "other")
    assert [(await client.next())[0] for _ in range(4)] == ["other", "another", "another", "other"]
    last_id = client.last_id
    await client.close()
    client = Client(await news.streams.open(news.tenant, last_id, {"other", "another"}))
    await write("thing", "other")
    assert (await client.next())[0] == "other"
    await client.close()


async def test_what_is_appended_at_once_is_read_in_its_order(news: News) -> None:
    """More than one statement writes, in one database transaction: all of it or nothing."""
    count = 2 * APPENDED_AT_ONCE + 7
    several = [ToStore(news.tenant, "thing", uuid4(), number, "{}") for number in range(count)]
    with contextlib.suppress(ConnectionError):
        async with news.database.transaction() as connection:
            await append(connection, several)
            raise ConnectionError
    async with news.database.transaction() as connection:
        await append(connection, several)
    events = await news.outbox.of_tenant(news.tenant, Position(0), await news.outbox.now(), 10 * count)
    assert [event.number for event in events] == list(range(count))
