"""The README's quick start, typed as it stands, against a system that was just started."""

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.system import RECEIVER, NewSystem

TOP = Path(__file__).resolve().parents[2]


def quick_start() -> list[str]:
    """The commands of the README's second code block in the section."""
    section = (TOP / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line for line in block[1].splitlines() if line]


async def test_the_quick_start_of_the_readme(new_system: NewSystem) -> None:
    system = await new_system()
    before = await system.gas_of(RECEIVER)
    first_block = await system.rpc("getblockcount")
    commands = quick_start()
    assert commands[0] == "source .venv/bin/activate"
    assert 4 <= len(commands) - 1 <= 5
    # The environment of the tests stands for the activated one.
    environ = system.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{system.environ['PATH']}"}
    output = ""
    for command in commands[1:]:
        process = await asyncio.create_subprocess_shell(
            command, cwd=TOP, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(60):
            output = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"{command}\n{output}"

    # What the last command shows, the node must say too.
    assert "confirmed" in output
    assert "GAS burned" in output
    txid = re.search(r"0x[0-9a-f]{64}", output)
    assert txid is not None
    transaction = await system.rpc("getrawtransaction", txid[0], 1)
    block = await system.rpc("getblock", transaction["blockhash"], 1)
    assert block["index"] >= first_block
    assert str(block["index"]) in output
    log = await system.rpc("getapplicationlog", txid[0])
    assert log["executions"][0]["vmstate"] == "HALT"
    burned = int(transaction["sysfee"]) / 10**8
    assert f"{burned:.8f}".rstrip("0") in output
    assert await system.gas_of(RECEIVER) == before + 150_000_000
