"""Clocks that jump: libfaketime moves the one that PostgreSQL, the API and the workers see."""

import platform
import sys
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.test_crash import effects
from tests.conftest import ended
from tests.system import RECEIVER, System

HOUR_S = 3600


class Clock:
    """What the system takes for the time, as a distance from the true one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.move(0)

    def move(self, seconds: int) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self._file)

    @property
    def environ(self) -> dict[str, str]:
        spec = find_spec("libfaketime")
        assert spec is not None
        assert spec.origin is not None
        library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "NO_FAKE_STAT": "1",
            # The monotonic clock is the one that does not jump.
            "DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("libfaketime's wheel is made for Linux on x86-64")
    folder = tmp_path / "clock"
    folder.mkdir()
    # PostgreSQL may run as another user.
    for place in (folder, *list(folder.parents)[:3]):
        place.chmod(place.stat().st_mode | 0o111)
    return Clock(folder / "offset")


@pytest.fixture
async def jumpy(clock: Clock, tmp_path: Path) -> AsyncIterator[System]:
    system = System(tmp_path / "system")
    system.environ |= clock.environ
    try:
        await system.start()
        yield system
    finally:
        await ended(system)


async def off_by_s(system: System) -> float:
    """How far the database's clock is from ours."""
    async with await psycopg.AsyncConnection.connect(system.database_url) as connection:
        cursor = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        row = await cursor.fetchone()
        assert row is not None
        return float(row[0]) - time.time()


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
async def test_clocks_that_jump_hold_up_nothing_and_double_nothing(
    jumpy: System, clock: Clock, jump_s: int
) -> None:
    """Some wait in the queue when it happens, some are leased by a worker that dies with it, some come after."""
    first_block = await jumpy.rpc("getblockcount")
    amounts = iter(range(4001, 4100))

    async def transfers(count: int, **settings: str) -> list[str]:
        return [(await jumpy.transfer("default", RECEIVER, next(amounts), **settings))["id"] for _ in range(count)]

    await jumpy.scale_workers(0)
    waiting = await transfers(5)
    in_turn = await transfers(3, fifo_key="orders")
    await jumpy.scale_workers(4)
    jumpy.kill("worker")
    clock.move(jump_s)
    assert abs(await off_by_s(jumpy) - jump_s) < 5
    # Ids are made from a clock that went back: their order is not that of the requests.
    in_turn += await transfers(2, fifo_key="orders")
    after = await transfers(5)
    views = [await jumpy.settled(id, timeout_s=30) for id in (*waiting, *in_turn, *after)]
    assert {view["state"] for view in views} == {"confirmed"}
    blocks = [view["block"] for view in views[5:10]]
    assert blocks == sorted(set(blocks))
    assert await effects(jumpy, first_block, set(range(4001, 4100))) == list(range(4001, 4016))
