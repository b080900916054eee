"""The supervisor as a user meets it: started, interrupted, killed, started twice, started where it cannot."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from neolayer.supervisor import leftovers

TOP = Path(__file__).resolve().parents[2]
CORE = ("postgresql", "valkey")


class Stand:
    """A supervisor process on one home."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path) -> None:
        self.process = process
        self.home = home
        self.events: list[dict[str, Any]] = []

    async def until(self, kind: str, **members: Any) -> dict[str, Any]:
        """The next event of this kind and with these members."""
        wanted = {"event": kind} | members
        assert self.process.stdout
        async with asyncio.timeout(30):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if wanted.items() <= self.events[-1].items():
                    return self.events[-1]
        raise AssertionError(f"ended before {wanted}: {await self.error()}")

    def pid(self, part: str) -> int:
        return next(int(e["pid"]) for e in reversed(self.events) if e.get("part") == part and e.get("pid"))

    async def interrupt(self) -> float:
        """Ctrl-C; returns the seconds until it has ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        assert await self.ended() == 0
        return time.monotonic() - began

    async def ended(self) -> int:
        async with asyncio.timeout(15):
            return await self.process.wait()

    async def error(self) -> str:
        assert self.process.stderr
        return (await self.process.stderr.read()).decode()

    def left(self) -> list[psutil.Process]:
        return leftovers.find(self.home)


type NewStand = Callable[..., Awaitable[Stand]]


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[NewStand]:
    """Starts supervisors; whatever a test leaves of them is ended."""
    stands: list[Stand] = []

    async def start(*parts: str, home: Path = tmp_path / "home", **settings: str) -> Stand:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("NEOLAYER_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.supervisor.stand", *parts),
            cwd=TOP,
            env=environ | {"NEOLAYER_HOME": str(home)} | settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stands.append(Stand(process, home))
        return stands[-1]

    yield start
    for left in stands:
        if left.process.returncode is None:
            left.process.kill()
        await left.process.communicate()
        await leftovers.end(left.home)


async def refused(stand: Stand) -> str:
    """The one line of a start that is refused."""
    assert await stand.ended() != 0
    lines = (await stand.error()).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert stand.left() == []
    return lines[0]


async def test_ctrl_c_stops_every_child_and_the_next_start_is_fast(stand: NewStand) -> None:
    first = await stand(*CORE, "stubborn")
    await first.until("ready")
    children = first.left()
    # PostgreSQL with its own processes, Valkey, the stubborn one with its child.
    assert len(children) > 5
    assert await first.interrupt() < 5
    assert not any(leftovers.lives(child) for child in children)

    began = time.monotonic()
    second = await stand(*CORE)
    await second.until("ready")
    assert time.monotonic() - began < 10
    assert not any(event["event"] == "leftovers" for event in second.events)


async def test_children_do_not_hear_the_terminals_ctrl_c(stand: NewStand) -> None:
    """The terminal signals its whole process group; the order of the stop is the supervisor's."""
    running = await stand(*CORE)
    await running.until("ready")
    ours = {os.getsid(running.process.pid), os.getpgid(running.process.pid)}
    assert not any({os.getsid(child.pid), os.getpgid(child.pid)} & ours for child in running.left())


async def test_a_second_ctrl_c_kills_at_once(stand: NewStand) -> None:
    running = await stand("stubborn")
    await running.until("ready")
    running.process.send_signal(signal.SIGTERM)
    await running.until("part", part="stubborn", state="stopping")
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    await running.ended()
    assert time.monotonic() - began < 0.4  # its patience alone would be 0.5 s
    assert running.left() == []


async def test_ctrl_c_in_the_middle_of_a_first_start(stand: NewStand) -> None:
    """What is half done does not stand in the way of the next start."""
    running = await stand(*CORE)
    await running.until("part", part="postgresql", state="starting")
    await asyncio.sleep(0.3)
    assert await running.interrupt() < 5
    assert running.left() == []
    again = await stand(*CORE)
    await again.until("ready")


async def test_leftovers_of_a_killed_supervisor_are_ended_those_of_others_live_on(
    stand: NewStand, tmp_path: Path
) -> None:
    killed = await stand(*CORE, "stubborn", home=tmp_path / "one")
    other = await stand(*CORE, home=tmp_path / "two")
    await killed.until("ready")
    await other.until("ready")
    killed.process.kill()
    await killed.process.wait()
    orphans, foreign = killed.left(), other.left()
    assert len(orphans) > 5
    assert all(leftovers.lives(orphan) for orphan in orphans)

    again = await stand(*CORE, "stubborn", home=tmp_path / "one")
    ended = (await again.until("leftovers"))["ended"]
    assert {name.split()[0] for name in ended} >= {"postgres", "valkey-server"}
    await again.until("ready")
    assert not any(leftovers.lives(orphan) for orphan in orphans)
    assert all(leftovers.lives(process) for process in foreign)
    # Killed by itself, PostgreSQL would have to recover; it was shut down.
    assert "recovery in progress" not in (tmp_path / "one" / "logs" / "postgresql.log").read_text()


async def test_everything_killed_at_once(stand: NewStand) -> None:
    killed = await stand(*CORE)
    await killed.until("ready")
    killed.process.kill()
    for process in killed.left():
        process.kill()
    await killed.process.wait()
    again = await stand(*CORE)
    await again.until("ready")


async def test_a_part_that_dies_is_started_again(stand: NewStand) -> None:
    running = await stand(*CORE)
    await running.until("ready")
    for part in CORE:
        os.kill(running.pid(part), signal.SIGKILL)
        exited = await running.until("part", part=part, state="exited")
        assert "signal 9" in exited["detail"]
        await running.until("part", part=part, state="ready")
    assert await running.interrupt() < 5
    assert running.left() == []


async def test_a_second_start_on_the_same_home_is_refused(stand: NewStand) -> None:
    first = await stand("valkey")
    await first.until("ready")
    second = await stand("valkey")
    assert await second.ended() == 1
    line = (await second.error()).strip()
    assert line.startswith("error: ")
    assert f"process {first.process.pid}" in line
    assert "NEOLAYER_HOME" in line
    assert leftovers.lives(psutil.Process(first.pid("valkey")))


async def test_a_taken_port_is_named_with_its_setting_and_holder(stand: NewStand) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        line = await refused(await stand("valkey", "chain", NEOLAYER_DEVNET_RPC_PORT=port))
    assert f"port {port}" in line
    assert "NEOLAYER_DEVNET_RPC_PORT" in line
    assert f"process {os.getpid()}" in line


async def test_a_home_that_cannot_be_written(stand: NewStand, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = await refused(await stand("valkey", home=tmp_path / "file" / "home"))
    assert str(tmp_path / "file" / "home") in line
    assert "NEOLAYER_HOME" in line


async def test_unknown_settings_are_refused_all_at_once(stand: NewStand) -> None:
    line = await refused(await stand("valkey", NEOLAYER_HOEM="x", NEOLAYER_PORT="many"))
    assert "NEOLAYER_HOEM" in line
    assert "NEOLAYER_PORT" in line


@pytest.mark.parametrize("name", ["x" * 150, "with, comma", "two words"])
async def test_a_home_whose_path_does_not_suit_a_socket(stand: NewStand, tmp_path: Path, name: str) -> None:
    running = await stand(*CORE, home=tmp_path / name)
    await running.until("ready")
    sockets = {Path(event["detail"]).parent for event in running.events if event.get("state") == "ready"}
    assert len(sockets) == 1
    folder = sockets.pop()
    assert folder.stat().st_mode & 0o077 == 0
    assert await running.interrupt() < 5
    if not folder.is_relative_to(tmp_path):
        assert not folder.exists()


async def test_external_services_are_looked_at_and_not_started(
    stand: NewStand, postgres_url: str, valkey_url: str
) -> None:
    settings = {"NEOLAYER_DATABASE_URL": postgres_url, "NEOLAYER_VALKEY_URL": valkey_url}
    running = await stand(*CORE, **settings)
    await running.until("ready")
    assert running.left() == []
    assert all(event["external"] for event in running.events if event["event"] == "part")
    assert not (running.home / "postgres").exists()
    await running.interrupt()
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("SELECT 1")


async def test_an_external_service_that_is_away_is_named_without_its_password(stand: NewStand) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://someone:geheim@127.0.0.1:{nobody.getsockname()[1]}/data"
        line = await refused(await stand("postgresql", NEOLAYER_DATABASE_URL=url))
    assert "NEOLAYER_DATABASE_URL" in line
    assert "geheim" not in line
