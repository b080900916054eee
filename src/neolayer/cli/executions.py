"""``neolayer executions``."""

from typing import Any

from cyclopts import App

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import console, print_fields, print_json, print_table

app = App(name="executions", help="Runs of functions.")


@app.command(name="list")
def list_(*, function: str | None = None, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List executions, newest first.

    Example: neolayer executions list --function top-up

    Parameters
    ----------
    function
        Only of this function.
    """
    page = call(connection, "GET", "/executions", params={"function": function, "limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {
        "id": "ID",
        "function": "FUNCTION",
        "status": "STATUS",
        "wall_ms": "WALL MS",
        "created_at": "STARTED",
    }
    print_table(items(page), columns, empty="No executions.")


@app.command
def show(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """Show one execution.

    Example: neolayer executions show 0199c0de-…
    """
    execution = call(connection, "GET", f"/executions/{id}")
    if connection.json:
        print_json(execution)
    else:
        print_fields(execution)


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


def print_logs(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        console.print(f"{line['at_ms']:9.2f} ms  {line['level']:5}  {line['text']}", markup=False)
