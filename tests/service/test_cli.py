"""The command line for functions as their users type it."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

from tests.system import System


async def neolayer(system: System, *arguments: str, code: int = 0) -> str:
    """What a command prints, to both streams."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", *arguments),
        env=system.environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output = (await process.communicate())[0].decode()
    assert process.returncode == code, output
    return output


async def in_json(system: System, *arguments: str) -> Any:
    return json.loads(await neolayer(system, *arguments, "--json"))


async def test_deploy_hold_canary_promote_and_roll_back(system: System, tmp_path: Path) -> None:
    file = tmp_path / "greets.js"

    async def deploy(text: str, *options: str) -> str:
        file.write_text(f"export default () => {text!r}")
        return await neolayer(system, "functions", "deploy", str(file), *options)

    async def greets(target: str = "greets") -> Any:
        return (await in_json(system, "functions", "invoke", target))["output"]

    await deploy("one", "--isolation", "call", "--max-attempts", "7")
    await deploy("two")
    kept = await in_json(system, "functions", "show", "greets")
    assert (kept["isolation"], kept["max_attempts"]) == ("call", 7)
    assert "live stays at 2" in await deploy("three", "--hold")
    assert (await greets(), await greets("greets@latest"), await greets("greets@1")) == ("two", "three", "one")

    canary = await neolayer(system, "functions", "alias", "set", "greets", "live", "2=90", "3=10")
    assert "2 90 %, 3 10 %" in canary
    assert "2 90 %, 3 10 %" in await neolayer(system, "functions", "list", "--limit", "100")
    await neolayer(system, "functions", "promote", "greets")
    assert await greets() == "three"
    assert "greets@live is 2" in await neolayer(system, "functions", "rollback", "greets")
    assert await greets() == "two"
    await neolayer(system, "functions", "rollback", "greets", "--to", "1")
    assert await greets() == "one"
    assert "none before it" in await neolayer(system, "functions", "rollback", "greets", code=1)
    await neolayer(system, "functions", "promote", "greets", "--version", "2")
    assert await greets() == "two"
    listed = await in_json(system, "functions", "versions", "greets")
    assert [(item["version"], item["aliases"]) for item in listed["items"]] == [
        (3, ["latest"]),
        (2, ["live"]),
        (1, []),
    ]
    assert "neither a version" in await neolayer(
        system, "functions", "alias", "set", "greets", "live", "x", code=1
    )
    await neolayer(system, "functions", "alias", "set", "greets", "stable", "1")
    assert "stable" in await neolayer(system, "functions", "alias", "list", "greets")
    await neolayer(system, "functions", "alias", "delete", "greets", "stable")


async def test_asynchronous_calls_and_dead_ones(system: System, tmp_path: Path) -> None:
    file = tmp_path / "cli-dies.js"
    file.write_text("export default () => { throw new Error('broken') }")
    await neolayer(system, "functions", "deploy", str(file), "--max-attempts", "1")
    accepted = await in_json(system, "functions", "invoke", "cli-dies", "--async", "--idempotency-key", "cli")
    again = await in_json(system, "functions", "invoke", "cli-dies", "--async", "--idempotency-key", "cli")
    assert again["id"] == accepted["id"]

    async def dead() -> bool:
        listing = ("executions", "list", "--function", "cli-dies", "--status", "dead", "--code", "function_error")
        return accepted["id"] in await neolayer(system, *listing)

    await system.eventually(dead)
    file.write_text("export default () => 'mended'")
    await neolayer(system, "functions", "deploy", str(file))
    assert "queued" in await neolayer(system, "executions", "replay", accepted["id"])

    async def succeeded() -> bool:
        shown = await in_json(system, "executions", "show", accepted["id"])
        return bool(shown["output"] == "mended")

    await system.eventually(succeeded)
    assert "only a dead one" in await neolayer(system, "executions", "replay", accepted["id"], code=1)
    assert "only one that waits" in await neolayer(system, "executions", "cancel", accepted["id"], code=1)


async def test_a_cold_start_is_shown_by_its_phases(system: System, tmp_path: Path) -> None:
    file = tmp_path / "cli-cold.js"
    file.write_text("export default () => 1")
    await neolayer(system, "functions", "deploy", str(file))
    # One that is held is not made ready ahead of its calls.
    file.write_text("export default () => 2")
    await neolayer(system, "functions", "deploy", str(file), "--hold")
    _, execution = await system.invoke("cli-cold@2")
    shown = await neolayer(system, "executions", "show", execution)
    phases = next(line for line in shown.splitlines() if line.startswith("phases"))
    assert re.search(r"isolate [\d.]+ ms, context .* evaluate [\d.]+ ms, first call [\d.]+ ms$", phases)
    _, execution = await system.invoke("cli-cold@2")
    assert "phases" not in await neolayer(system, "executions", "show", execution)


async def test_logs_are_followed_live(system: System, tmp_path: Path) -> None:
    await system.request(
        "PUT",
        "/functions/cli-logs",
        {"source": "export default (x) => { console.warn('saw', x); if (x > 1) throw 0 }"},
    )
    await system.invoke("cli-logs", 0)
    assert "saw 0" in await neolayer(system, "functions", "logs", "cli-logs")
    assert "no function" in await neolayer(system, "functions", "logs", "cli-none", "-f", code=1)

    async def followed(*options: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "neolayer", "functions", "logs", "cli-logs", "-f", *options),
            env=system.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout
        # Until it is connected there is nothing to see of it from outside but what it shows.
        calls = asyncio.create_task(call_until_seen())
        output = b""
        async with asyncio.timeout(30):
            while b"saw 2" not in output:
                output += await process.stdout.readline()
        calls.cancel()
        await asyncio.gather(calls, return_exceptions=True)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 10)
        return output.decode()

    async def call_until_seen() -> None:
        while True:
            await system.raw("POST", "/api/v1/functions/cli-logs/invoke", body=b"2")
            await asyncio.sleep(0.3)

    text = await followed()
    assert "cli-logs@1  failed" in text
    lines = [json.loads(line) for line in (await followed("--json")).splitlines()]
    assert lines[0]["execution"]["error"]["code"] == "function_error"
    assert lines[0]["logs"][0]["text"] == "saw 2"
