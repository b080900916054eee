"""``neolayer functions``."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from neolayer.cli.client import DEFAULT, ApiProblem, Client, Connection, call, items
from neolayer.cli.executions import print_logs
from neolayer.cli.output import console, notes, print_fields, print_json, print_table
from neolayer.core.errors import InvalidRequest, ServiceError

app = App(name="functions", help="JavaScript functions that run in the enclave.")


@app.command
def deploy(
    file: Path,
    /,
    *,
    name: str | None = None,
    secret: Annotated[list[str] | None, Parameter(negative="")] = None,
    egress: Annotated[list[str] | None, Parameter(negative="")] = None,
    timeout_ms: int | None = None,
    cpu_ms: int | None = None,
    memory_mb: int | None = None,
    reset: Annotated[bool, Parameter(negative="")] = False,
    connection: Connection = DEFAULT,
) -> None:
    """Deploy a function, or a new version of it. What is not given stays as the version before had it.

    Example: neolayer functions deploy examples/top-up.js --secret CLAIM_CODE

    Parameters
    ----------
    file
        JavaScript with `export default async function (input, ctx) {…}`.
    name
        Name of the function; the file's name if left out.
    secret
        A secret that the function may read; may be given several times.
    egress
        A host that `fetch` may reach: api.example.com, *.example.com, api.example.com:8443, or http://host:port
        for plain HTTP; may be given several times.
    timeout_ms
        Longest duration of a call; 10,000 at first.
    cpu_ms
        Most CPU time of a call; 1,000 at first.
    memory_mb
        Most memory of an isolate; 128 at first.
    reset
        Do not take over secrets, hosts and limits of the version before.
    """
    try:
        source = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    path = f"/functions/{name or file.stem}"
    given = {
        "secrets": secret,
        "egress": egress,
        "timeout_ms": timeout_ms,
        "cpu_ms": cpu_ms,
        "memory_mb": memory_mb,
    }
    body = {} if reset else _settings_of(path, connection)
    body |= {setting: value for setting, value in given.items() if value is not None}
    try:
        function = call(connection, "PUT", path, body=body | {"source": source})
    except ApiProblem as problem:
        if line := problem.body.get("line"):
            problem.detail = f"{file}:{line}:{problem.body.get('column')}: {problem.detail}"
        raise
    if connection.json:
        print_json(function)
    else:
        console.print(
            f"[green]✓[/] {function['name']} version {function['version']}  code {function['code_hash'][:16]}…"
        )
        for granted in ("secrets", "egress"):
            if function[granted]:
                notes.print(f"  {granted}: {', '.join(function[granted])}")
        notes.print(f"Call it: neolayer functions invoke {function['name']} --input '{{}}'")


@app.command
def invoke(
    name: str,
    /,
    *,
    input: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    logs: bool = True,
    connection: Connection = DEFAULT,
) -> None:
    """Call a function and print what it returns.

    Example: neolayer functions invoke top-up --input '{"code": "open-sesame"}'

    Parameters
    ----------
    input
        JSON; `-` reads it from standard input.
    logs
        Show what the function logged.
    """
    text = sys.stdin.read() if input == "-" else input or ""

    async def run() -> tuple[Any, str, list[dict[str, Any]]]:
        async with Client(connection) as client:
            output, headers = await client.request("POST", f"/functions/{name}/invoke", raw=text.encode())
            execution = headers["neolayer-execution"]
            lines = (await client.get(f"/executions/{execution}/logs"))["items"] if logs else []
            return output, execution, lines

    try:
        output, execution, lines = asyncio.run(run())
    except ApiProblem as problem:
        if not connection.json:
            _show_failure(problem, connection)
        raise
    if connection.json:
        print_json({"execution": execution, "output": output, "logs": lines})
        return
    print_logs(lines)
    console.print_json(json.dumps(output))
    notes.print(f"execution {execution}", style="dim")


def _settings_of(path: str, connection: Connection) -> dict[str, Any]:
    """Secrets, hosts and limits of a function; nothing if there is none."""
    try:
        function = call(connection, "GET", path)
    except ApiProblem as problem:
        if problem.status == 404:
            return {}
        raise
    return {name: function[name] for name in ("secrets", "egress", "timeout_ms", "cpu_ms", "memory_mb")}


def _show_failure(problem: ApiProblem, connection: Connection) -> None:
    """What the function logged before it failed, and where it failed."""
    if execution := problem.body.get("execution"):
        try:
            print_logs(call(connection, "GET", f"/executions/{execution}/logs")["items"])
        except ServiceError:
            notes.print("its logs cannot be shown just now", style="dim")
        if stack := problem.body.get("stack"):
            notes.print(stack, markup=False, style="dim")
        notes.print(f"execution {execution}", style="dim")


@app.command(name="list")
def list_(*, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List functions.

    Example: neolayer functions list
    """
    page = call(connection, "GET", "/functions", params={"limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {
        "name": "NAME",
        "version": "VERSION",
        "secrets": "SECRETS",
        "egress": "EGRESS",
        "updated_at": "DEPLOYED",
    }
    print_table(items(page), columns, empty="No functions. `neolayer functions deploy FILE` makes one.")


@app.command
def show(name: str, /, *, source: bool = False, connection: Connection = DEFAULT) -> None:
    """Show a function.

    Example: neolayer functions show top-up --source

    Parameters
    ----------
    source
        Print its source and nothing else.
    """
    function = call(connection, "GET", f"/functions/{name}")
    if connection.json:
        print_json(function)
    elif source:
        sys.stdout.write(function["source"])
    else:
        print_fields({key: value for key, value in function.items() if key != "source"})


@app.command
def delete(name: str, /, *, connection: Connection = DEFAULT) -> None:
    """Delete a function; its executions stay.

    Example: neolayer functions delete top-up
    """
    call(connection, "DELETE", f"/functions/{name}")
    if connection.json:
        print_json({"deleted": name})
    else:
        console.print(f"[green]✓[/] {name} deleted")
