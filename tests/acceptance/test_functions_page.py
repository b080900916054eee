"""The examples of the page on functions, typed as they stand."""

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.system import System

PAGE = Path(__file__).resolve().parents[2] / "docs" / "functions.md"


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)


async def test_the_examples_of_the_page_work_one_after_the_other(system: System, tmp_path: Path) -> None:
    environ = system.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{system.environ['PATH']}"}
    printed = []
    for block in blocks():
        process = await asyncio.create_subprocess_exec(
            *("bash", "-e", "-c", block),
            cwd=tmp_path,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(90):
            output = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"{block}\n{output}"
        printed.append(output)
    versions, switches, _, once, nested, logs = printed
    assert versions.index("Hello Ada") < versions.index("Good day, Ada")
    assert "1 90 %, 2 10 %" in switches
    assert "greet@live is 1" in switches
    executions = re.findall(r"execution ([0-9a-f-]{36})", once)
    assert len(executions) == 2
    assert len(set(executions)) == 1
    assert "40" in nested
    assert "greet@2  succeeded" in logs
