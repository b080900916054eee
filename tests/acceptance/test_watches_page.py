"""The example of the page on watches, typed as it stands."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

from tests.system import System

PAGE = Path(__file__).resolve().parents[2] / "docs" / "watches.md"


async def test_the_example_shows_the_transfer(system: System) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    environ = system.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{system.environ['PATH']}",
        "NEOLAYER_URL": system.url,
        "NEOLAYER_API_KEY": system.key,
    }
    process = await asyncio.create_subprocess_exec(
        *("bash", "-e", "-c", block), env=environ, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    event = json.loads(output.strip().split("\n")[-1].removeprefix("data: "))
    assert (event["event"], event["trigger"]) == ("Transfer", "Application")
    assert event["state"]["value"][2] == {"type": "Integer", "value": "150000000"}
    for watch in (await system.get("/chain/watches"))["items"]:
        await system.request("DELETE", f"/chain/watches/{watch['id']}", status=204)
