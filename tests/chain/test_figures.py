"""What nodes are ranked by: latencies, error rates, breakers, limits. Time is given, so nothing waits."""

import asyncio
import random
from itertools import pairwise

import pytest

from neolayer.chain.breaker import FAILURES, INITIAL_LIMIT, Breaker, ConcurrencyLimit
from neolayer.chain.latency import Latency, Outcomes
from neolayer.chain.node import Node, scored, shown
from neolayer.chain.transport import NodeFailed


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_quantiles_are_off_by_a_twentieth_at_most(share: float) -> None:
    generator = random.Random(5)  # noqa: S311 - samples
    samples = [generator.lognormvariate(-5, 1.5) for _ in range(5_000)]
    latency = Latency()
    for sample in samples:
        latency.observe(sample, 100.0)
    found = latency.quantile(share, 100.0)
    assert found == pytest.approx(sorted(samples)[int(share * 4_999)], rel=0.06)


def test_what_is_older_than_a_minute_does_not_count() -> None:
    """It leaves in slices of ten seconds, not all at once."""
    latency = Latency()
    for second in range(60):
        latency.observe(1.0, 1000.0 + second)
    counts = [latency.count(1059.0 + later) for later in range(0, 80, 10)]
    assert counts[0] == 60
    assert all(0 <= before - after <= 10 for before, after in pairwise(counts))
    assert counts[-1] == 0
    assert latency.quantile(0.5, 1200.0) is None


def test_few_answers_make_no_quantile() -> None:
    latency = Latency()
    for _ in range(19):
        latency.observe(0.1, 1.0)
    assert latency.quantile(0.95, 1.0, samples=20) is None
    latency.observe(0.1, 1.0)
    assert latency.quantile(0.95, 1.0, samples=20) == pytest.approx(0.1, rel=0.06)


def test_error_rate() -> None:
    outcomes = Outcomes()
    assert outcomes.error_rate(0.0) == 0.0
    for _ in range(3):
        outcomes.answered(0.0)
    outcomes.failed(0.0)
    assert outcomes.error_rate(1.0) == 0.25
    assert outcomes.error_rate(100.0) == 0.0


def test_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(10.0, failures=1, calls=1)
    assert breaker.state(10.0) == "closed"
    breaker.failed(10.0, failures=FAILURES, calls=FAILURES)
    assert breaker.state(10.1) == "open"
    assert breaker.state(11.3) == "half_open"
    breaker.failed(11.3, failures=6, calls=6)
    assert breaker.state(12.8) == "open", "the second pause is longer"
    assert breaker.state(13.8) == "half_open"
    breaker.succeeded()
    assert breaker.state(13.8) == "closed"
    breaker.failed(20.0, failures=7, calls=100)
    assert breaker.state(20.0) == "closed"


def test_breaker_opens_when_half_of_many_calls_fail() -> None:
    """Though no five of them in a row."""
    breaker = Breaker()
    for number in range(1, 21):
        breaker.succeeded()
        breaker.failed(1.0, failures=number // 2, calls=number)
    assert breaker.state(1.0) == "open"


async def test_limit_shrinks_by_a_share_and_grows_by_one() -> None:
    limit = ConcurrencyLimit(64)
    assert limit.limit == INITIAL_LIMIT
    for at_s in (10.0, 10.1, 10.2, 10.3):
        limit.shrink(at_s)
    assert limit.limit == int(INITIAL_LIMIT * 0.7 * 0.7), "at most once in a quarter of a second"
    small = limit.limit
    for _ in range(small):
        await limit.acquire()
    for _ in range(small + 1):
        limit.grow()
    assert limit.limit == small + 1
    for _ in range(small):
        limit.release()
    for _ in range(100):
        limit.grow()
    assert limit.limit == small + 1, "a limit that nobody reaches does not grow"


async def test_callers_beyond_the_limit_wait_in_order_and_may_leave() -> None:
    limit = ConcurrencyLimit(2, adaptive=False)
    order: list[int] = []

    async def use(number: int) -> None:
        await limit.acquire()
        order.append(number)

    await limit.acquire()
    await limit.acquire()
    waiting = [asyncio.create_task(use(number)) for number in range(4)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    for _ in range(3):
        limit.release()
        await asyncio.sleep(0)
    assert order == [0, 2, 3]
    assert limit.in_flight == 2
    limit.release()
    limit.release()
    assert limit.in_flight == 0
    assert not limit.full


async def test_a_caller_that_leaves_as_its_turn_comes_gives_the_turn_on() -> None:
    limit = ConcurrencyLimit(1, adaptive=False)
    await limit.acquire()
    leaving = asyncio.create_task(limit.acquire())
    next_one = asyncio.create_task(limit.acquire())
    await asyncio.sleep(0)
    limit.release()  # wakes the first one
    leaving.cancel()
    async with asyncio.timeout(1):
        await next_one
    assert limit.in_flight == 1


def node(url: str, latency_s: float, *, answers: int = 50, failures: int = 0, lag: int = 0) -> Node:
    made = Node(url, url, connections=64, adaptive=True)
    for _ in range(answers):
        made.answered("getblockcount", latency_s, 100.0)
    for _ in range(failures):
        made.failed("getblockcount", NodeFailed("http", "HTTP 500"), 0.0, 100.0)
    made.lag = lag
    return made


def test_scores_order_nodes_as_their_callers_would() -> None:
    best, slow = node("http://a", 0.02), node("http://b", 0.3)
    failing, late = node("http://c", 0.02, failures=10), node("http://d", 0.02, lag=1)
    all_ = [best, slow, failing, late]
    scores = {each.url[-1]: scored(each, all_, 100.0) for each in all_}
    assert scores["a"] == 1.0
    assert scores["b"] > 5
    assert scores["c"] > 2
    assert scores["d"] == 2.0
    assert scored(slow, all_, 300.0) == 1.0, "after a minute without calls it has its chance again"


def test_what_only_one_node_was_asked_tells_nothing_and_probes_do() -> None:
    """Callers stay with one node: that others have no figures for their calls must not hide how slow it became."""
    slow, idle = node("http://a", 0.002), node("http://b", 0.002)
    for _ in range(500):
        slow.answered("invokescript", 0.3, 100.0)
    assert scored(slow, [slow, idle], 100.0) == pytest.approx(1.0)
    for _ in range(10):
        slow.answered("getblockcount", 0.3, 100.0)
    assert scored(slow, [slow, idle], 100.0) > 3


def test_differences_that_nobody_feels_do_not_decide() -> None:
    fast, other = node("http://a", 0.0003), node("http://b", 0.0012)
    assert scored(other, [fast, other], 100.0) < 1.2


def test_names_show_no_credentials_and_differ() -> None:
    urls = [
        "https://user:key@a.example/v1",
        "https://a.example:443/secret?k=1",
        "https://a.example/other",
        "http://b:1",
    ]
    names = shown(urls)
    assert list(names.values()) == [
        "https://a.example",
        "https://a.example:443",
        "https://a.example#2",
        "http://b:1",
    ]
    assert not any(word in name for name in names.values() for word in ("key", "secret", "user"))
