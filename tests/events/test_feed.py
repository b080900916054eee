"""Whoever subscribes gets every event once, however late it was committed, and nobody else's."""

import asyncio
import random
from uuid import uuid4

import pytest

from neolayer.core.errors import TooManyRequests
from neolayer.events import feed
from neolayer.events.feed import Subscription
from neolayer.events.outbox import Position

from .conftest import News


async def taken(subscription: Subscription, count: int) -> list[int]:
    numbers = []
    while len(numbers) < count:
        event = await subscription.next(5)
        assert event is not None, numbers
        numbers.append(event.number)
    return numbers


async def test_a_subscriber_gets_its_tenants_events_in_order_and_no_others(news: News) -> None:
    await news.write(0)
    async with news.feed.subscribe(news.tenant) as subscription:
        for number in range(1, 6):
            await news.write(number)
            await news.write(100 + number, tenant=news.other)
        assert await taken(subscription, 5) == [1, 2, 3, 4, 5]
        assert await subscription.next(0.5) is None


async def test_one_subject_alone(news: News) -> None:
    subject = uuid4()
    async with news.feed.subscribe(news.tenant, subject) as subscription:
        await news.write(1)
        await news.write(2, subject=subject)
        await news.write(3)
        assert await taken(subscription, 1) == [2]
        assert await subscription.next(0.3) is None


async def test_what_is_committed_late_is_not_passed_over(news: News) -> None:
    """A row whose database transaction is older than those of events that others saw in the meantime."""
    async with news.feed.subscribe(news.tenant) as subscription:
        async with news.open_writer(1) as late:
            await news.write(2)
            assert await subscription.next(0.5) is None  # held back: 1 may come before it
            await late.commit()
        assert await taken(subscription, 2) == [1, 2]


async def test_what_was_begun_before_a_subscription_and_committed_after_it_comes(news: News) -> None:
    async with news.open_writer(1) as late, news.feed.subscribe(news.tenant) as subscription:
        await late.commit()
        assert await taken(subscription, 1) == [1]


@pytest.mark.parametrize("seed", range(3))
async def test_subscribers_that_come_and_go_among_writers_miss_nothing(news: News, seed: int) -> None:
    """What is stored before a subscription's start and what comes by it together are everything, once."""
    rng = random.Random(seed)  # noqa: S311 - repeatable
    total = 120
    done = asyncio.Event()

    async def write(numbers: range) -> None:
        for number in numbers:
            async with news.open_writer(number) as connection:
                await asyncio.sleep(rng.random() * 0.02)
                await connection.commit()

    async def follow(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with news.feed.subscribe(news.tenant) as subscription:
            zero = type(subscription.start)(0)
            stored = await news.outbox.of_tenant(news.tenant, zero, subscription.start, 1000)
            numbers = [event.number for event in stored]
            while len(numbers) < total or not done.is_set():
                event = await subscription.next(0.5)
                if event is not None:
                    numbers.append(event.number)
        assert sorted(numbers) == list(range(total))

    async def writers() -> None:
        await asyncio.gather(*(write(range(n, total, 4)) for n in range(4)))
        done.set()

    async with asyncio.timeout(20):
        await asyncio.gather(writers(), *(follow(rng.random() * 0.6) for _ in range(8)))


async def test_one_that_does_not_keep_up_is_told_so(news: News, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WAITING", 3)
    async with news.feed.subscribe(news.tenant) as subscription:
        for number in range(5):
            await news.write(number)
        async with asyncio.timeout(5):
            while not subscription.overrun:
                await asyncio.sleep(0.05)
        assert await taken(subscription, 3) == [0, 1, 2]
        assert await subscription.next(0.3) is None


async def test_a_tenant_has_so_many_subscriptions_and_no_more(news: News, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_SUBSCRIPTIONS", 1)
    async with news.feed.subscribe(news.tenant):
        with pytest.raises(TooManyRequests):
            async with news.feed.subscribe(news.tenant):
                pass
        async with news.feed.subscribe(news.other):
            pass
    async with news.feed.subscribe(news.tenant):
        pass


async def test_reading_goes_on_after_the_database_cut_every_connection(news: News) -> None:
    async with news.feed.subscribe(news.tenant) as subscription:
        await news.write(1)
        assert await taken(subscription, 1) == [1]
        # Up to 5 s each is waited for: what is under way just then fails, and is tried again by its caller.
        await news.database.execute(
            b"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            b" WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await news.write(2)
        assert await taken(subscription, 1) == [2]


async def test_numbers_of_database_transactions_are_compared_as_numbers(news: News) -> None:
    """As texts 9 would come after 10, and whoever reads page by page would miss what is between."""
    for number, written in enumerate(("9", "10", "99", "100"), start=1):
        await news.database.execute(
            b"INSERT INTO outbox (tenant_id, written, kind, subject, number, data)"
            b" VALUES (%(tenant)s, %(written)s::text::xid8, 'thing', gen_random_uuid(), %(number)s, '{}')",
            {"tenant": news.tenant, "written": written, "number": number},
        )
    until, position = await news.outbox.now(), Position(0)
    read = []
    while found := await news.outbox.of_tenant(news.tenant, position, until, 1):
        read.append(found[0].number)
        position = found[0].position
    assert read == [1, 2, 3, 4]
    assert [event.number for event in await news.outbox.of_tenants([news.tenant], Position(0), until, 9)] == read
