"""``neolayer executions``."""

from typing import Any, Literal

from cyclopts import App
from rich.text import Text

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import console, print_fields, print_json, print_table
from neolayer.core.errors import InvalidRequest

app = App(name="executions", help="Runs of functions.")


Status = Literal["queued", "running", "succeeded", "failed", "dead", "cancelled"]


@app.command(name="list")
def list_(
    *,
    function: str | None = None,
    status: Status | None = None,
    version: int | None = None,
    code: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = 20,
    connection: Connection = DEFAULT,
) -> None:
    """List executions, newest first.

    Example: neolayer executions list --function top-up --status dead

    Parameters
    ----------
    function
        Only of this function.
    status
        Only in this state; `dead` are asynchronous ones that failed and are not repeated by themselves.
    version
        Only of this version.
    code
        Only with an error of this code, such as timeout.
    since
        Only asked for then or later, such as 2026-11-23T16:00:00Z.
    until
        Only asked for before.
    """
    params = {
        "function": function,
        "status": status,
        "version": version,
        "code": code,
        "since": since,
        "until": until,
        "limit": limit,
    }
    page = call(connection, "GET", "/executions", params=params)
    if connection.json:
        print_json(page)
        return
    rows = [item | {"code": (item["error"] or {}).get("code")} for item in items(page)]
    columns = {
        "id": "ID",
        "function": "FUNCTION",
        "version": "VERSION",
        "status": "STATUS",
        "code": "ERROR",
        "wall_ms": "WALL MS",
        "created_at": "RECORDED",
    }
    print_table(rows, columns, empty="No executions.")


@app.command
def show(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """Show one execution.

    Example: neolayer executions show 0199c0de-…
    """
    execution = call(connection, "GET", f"/executions/{id}")
    if connection.json:
        print_json(execution)
    else:
        print_fields(execution | {"phases": _phases(execution["phases"])})


@app.command
def logs(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """Show what a function logged.

    Example: neolayer executions logs 0199c0de-…
    """
    lines = call(connection, "GET", f"/executions/{id}/logs")
    if connection.json:
        print_json(lines)
    else:
        print_logs(lines["items"])


@app.command
def cancel(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """Take an asynchronous execution that waits out of the queue.

    Example: neolayer executions cancel 0199c0de-…
    """
    _changed(call(connection, "POST", f"/executions/{id}/cancel"), connection)


@app.command
def replay(*ids: str, connection: Connection = DEFAULT) -> None:
    """Run dead executions again, under the same ids: transactions that they sent are not sent twice.

    Example: neolayer executions replay 0199c0de-… 0199c0df-…

    Parameters
    ----------
    ids
        Of dead executions; `neolayer executions list --status dead` shows them.
    """
    if not ids:
        raise InvalidRequest("which? `neolayer executions list --status dead` shows what can be replayed")
    for id in ids:
        _changed(call(connection, "POST", f"/executions/{id}/replay"), connection)


def _changed(execution: dict[str, Any], connection: Connection) -> None:
    if connection.json:
        print_json(execution)
    else:
        console.print(f"[green]✓[/] {execution['id']}  {execution['status']}")


def _phases(phases: dict[str, float] | None) -> str | None:
    if phases is None:
        return None
    return ", ".join(f"{name.replace('_', ' ')} {ms:g} ms" for name, ms in phases.items())


def print_logs(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        console.print(log_line(line))


def log_line(line: dict[str, Any]) -> Text:
    style = {"warn": "yellow", "error": "red", "debug": "dim"}.get(line["level"], "")
    return Text(f"{line['at_ms']:9.2f} ms  {line['level']:5}  {line['text']}", style=style)
