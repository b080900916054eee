"""``neolayer functions logs``."""

import asyncio
import json
import sys
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from neolayer.cli.client import DEFAULT, Client, Connection
from neolayer.cli.executions import log_line
from neolayer.cli.output import console, notes

_STYLES = {"succeeded": "green", "queued": "yellow", "cancelled": "dim", "running": "cyan"}


def follow(
    name: str,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    limit: int = 10,
    connection: Connection = DEFAULT,
) -> None:
    """Show what a function's latest executions logged, oldest first; or what they log from now on.

    Example: neolayer functions logs top-up --follow

    Parameters
    ----------
    follow
        Go on showing new ones until Ctrl-C. With --json one line each: {"execution", "logs"}.
    limit
        So many executions of the past.
    """
    asyncio.run(_run(name, follow, limit, connection))


async def _run(name: str, follow: bool, limit: int, connection: Connection) -> None:
    async with Client(connection) as client:
        if not follow:
            page = await client.get("/executions", function=name, limit=limit)
            for execution in reversed(page["items"]):
                logs = (await client.get(f"/executions/{execution['id']}/logs"))["items"]
                _show(execution, logs, connection)
            if not page["items"] and not connection.json:
                notes.print("No executions.")
            return
        await client.get(f"/functions/{name}")  # says so if there is none
        if not connection.json:
            notes.print(f"Following {name}; Ctrl-C ends it.", style="dim")
        async for event in client.events("/executions/stream", {"function": name}):
            if event["execution"]["status"] not in ("queued", "running") or event["logs"]:
                _show(event["execution"], event["logs"], connection)


def _show(execution: dict[str, Any], logs: list[dict[str, Any]], connection: Connection) -> None:
    if connection.json:
        sys.stdout.write(json.dumps({"execution": execution, "logs": logs}, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    status = execution["status"]
    time = datetime.fromisoformat(execution["created_at"]).astimezone().strftime("%H:%M:%S")
    head = Text(f"{time}  {execution['id']}  {execution['function']}@{execution['version']}  ", style="dim")
    head.append(status, style=_STYLES.get(status, "red"))
    head.append(f"  {execution['wall_ms']:g} ms{'  cold' if execution['cold'] else ''}")
    if execution["attempt"] > 1:
        head.append(f"  run {execution['attempt']}")
    console.print(head, soft_wrap=True)
    for line in logs:
        console.print(log_line(line), soft_wrap=True)
    if execution["error"]:
        error = execution["error"]
        console.print(Text(f"{error['code']}: {error['message']}", style="red"), soft_wrap=True)
