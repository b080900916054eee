"""Notices reach other connections after the commit, and a lost connection means: anything may have changed."""

import asyncio
import contextlib
import signal
import sys

import psycopg
import pytest

from neolayer.db.leader import lead
from neolayer.db.notices import Announcer, NoticeListener, notify
from neolayer.db.pool import Database


async def wait_for(condition: object, timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_a_notice_arrives_once_its_transaction_commits(database_url: str) -> None:
    heard: list[str] = []
    listener = NoticeListener(database_url)
    listener.on("things", heard.append)
    database = Database(database_url)
    await database.open()
    task = asyncio.create_task(listener.run())
    try:
        await wait_for(lambda: heard == [""])  # connected: anything may have changed before
        async with database.transaction() as connection:
            await notify(connection, "things", "one")
            await notify(connection, "others", "two")
            await asyncio.sleep(0.05)
            assert heard == [""]
        await wait_for(lambda: len(heard) > 1)
        assert heard == ["", "one"]
    finally:
        task.cancel()
        await database.close()


async def test_a_lost_connection_resets_the_handlers_and_is_made_anew(database_url: str) -> None:
    heard: list[str] = []
    listener = NoticeListener(database_url)
    listener.on("things", heard.append)
    task = asyncio.create_task(listener.run())
    try:
        await wait_for(lambda: heard == [""])
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            )
            await wait_for(lambda: len(heard) >= 3)  # lost, and connected again
            await notify(connection, "things", "after")  # type: ignore[arg-type]
        await wait_for(lambda: heard[-1] == "after")
    finally:
        task.cancel()


async def test_there_is_one_leader_and_another_takes_over(database_url: str) -> None:
    leading: list[str] = []

    def work(name: str) -> object:
        async def run() -> None:
            leading.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                leading.remove(name)

        return run

    tasks = {name: asyncio.create_task(lead(database_url, "test", work(name))) for name in ("a", "b")}  # type: ignore[arg-type]
    try:
        await wait_for(lambda: leading)
        await asyncio.sleep(1.5)
        assert len(leading) == 1
        (first,) = leading
        tasks[first].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[first]
        await wait_for(lambda: len(leading) == 1)
        assert leading != [first]
    finally:
        for task in tasks.values():
            task.cancel()


#: A process that says so when it leads.
_LEADER = """
import asyncio, sys
from neolayer.db.leader import lead

async def work():
    print("leads", flush=True)
    await asyncio.Event().wait()

asyncio.run(lead(sys.argv[1], "test", work))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_leader_that_dies_or_hangs_is_followed_within_five_seconds(
    database_url: str, end: signal.Signals
) -> None:
    first = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LEADER, database_url), stdout=asyncio.subprocess.PIPE
    )
    leads = asyncio.Event()

    async def work() -> None:
        leads.set()
        await asyncio.Event().wait()

    second = None
    try:
        assert first.stdout is not None
        async with asyncio.timeout(20):
            assert await first.stdout.readline() == b"leads\n"
        second = asyncio.create_task(lead(database_url, "test", work))
        await asyncio.sleep(4)
        assert not leads.is_set()  # it lives, and is left alone
        first.send_signal(end)
        async with asyncio.timeout(5):
            await leads.wait()
    finally:
        if second is not None:
            second.cancel()
        with contextlib.suppress(ProcessLookupError):
            first.kill()
        await first.wait()


async def test_what_is_announced_while_a_notice_is_under_way_shares_the_next(database_url: str) -> None:
    heard: list[str] = []
    listener = NoticeListener(database_url)
    listener.on("things", heard.append)
    listener.on("others", lambda _: heard.append("other"))
    database = Database(database_url)
    await database.open()
    announcer = Announcer(database)
    task = asyncio.create_task(listener.run())
    try:
        await wait_for(lambda: heard == ["", "other"])  # connected: anything may have changed before
        for _ in range(100):
            announcer.announce("things")
            await asyncio.sleep(0)
        announcer.announce("others")
        await announcer.close()
        await wait_for(lambda: heard.count("other") == 2)
        assert 2 <= heard.count("") < 50
        heard.clear()
        announcer.announce("things")
        await wait_for(lambda: heard == [""])
    finally:
        task.cancel()
        await announcer.close()
        await database.close()


async def test_an_announcement_that_nobody_can_be_told_harms_nobody(database_url: str) -> None:
    database = Database(database_url, timeout_s=0.2)
    await database.open()
    announcer = Announcer(database)
    await database.close()
    announcer.announce("things")
    await announcer.close()
