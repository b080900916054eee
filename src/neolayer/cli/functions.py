"""``neolayer functions``."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from neolayer.cli.aliases import app as aliases
from neolayer.cli.aliases import promote, rollback, shares, versions
from neolayer.cli.client import DEFAULT, ApiProblem, Client, Connection, call, items
from neolayer.cli.executions import print_logs
from neolayer.cli.follow import follow
from neolayer.cli.output import console, notes, print_fields, print_json, print_table
from neolayer.core.errors import InvalidRequest, ServiceError

app = App(name="functions", help="JavaScript functions that run in the enclave.")
app.command(versions)
app.command(rollback)
app.command(promote)
app.command(aliases)
app.command(follow, name="logs")
Isolation = Literal["version", "call"]


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
    isolation: Isolation | None = None,
    max_attempts: int | None = None,
    hold: Annotated[bool, Parameter(negative="")] = False,
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
    isolation
        What calls share: all that a warm isolate of the version keeps (`version`, at first), or nothing (`call`).
    max_attempts
        Runs of an asynchronous call before it is dead; 3 at first.
    hold
        Do not call the new version yet: what is live stays so, until `neolayer functions promote`.
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
        "isolation": isolation,
        "max_attempts": max_attempts,
    }
    body = {} if reset else _settings_of(path, connection)
    body |= {setting: value for setting, value in given.items() if value is not None}
    try:
        function = call(connection, "PUT", path, body=body | {"source": source, "hold": hold})
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
        if function["pinned"]:
            notes.print(
                f"  live stays at {shares(function['live'])}; make it live: "
                f"neolayer functions promote {function['name']}"
            )
            notes.print(f"Call it: neolayer functions invoke {function['name']}@latest --input '{{}}'")
        else:
            notes.print(f"Call it: neolayer functions invoke {function['name']} --input '{{}}'")


@app.command
def invoke(
    name: str,
    /,
    *,
    input: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    logs: bool = True,
    async_: Annotated[bool, Parameter(name="--async", negative="")] = False,
    idempotency_key: str | None = None,
    connection: Connection = DEFAULT,
) -> None:
    """Call a function and print what it returns. NAME may be name@alias, name@3 or name@latest.

    Example: neolayer functions invoke top-up --input '{"code": "open-sesame"}'

    Parameters
    ----------
    input
        JSON; `-` reads it from standard input.
    logs
        Show what the function logged.
    async_
        Do not wait: it is stored, run soon, and run again if it fails.
    idempotency_key
        The same key and input run it once, however often you try within 24 hours.
    """
    text = sys.stdin.read() if input == "-" else input or ""
    headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
    if async_:
        headers["prefer"] = "respond-async"
        accepted = call(connection, "POST", f"/functions/{name}/invoke", raw=text.encode(), headers=headers)
        if connection.json:
            print_json(accepted)
        else:
            console.print(f"[green]✓[/] {accepted['id']}  {accepted['status']}")
            notes.print(f"Look: neolayer executions show {accepted['id']}")
        return

    async def run() -> tuple[Any, str, list[dict[str, Any]]]:
        async with Client(connection) as client:
            output, answered = await client.request(
                "POST", f"/functions/{name}/invoke", raw=text.encode(), headers=headers
            )
            execution = answered["neolayer-execution"]
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
    kept = ("secrets", "egress", "timeout_ms", "cpu_ms", "memory_mb", "isolation", "max_attempts")
    return {name: function[name] for name in kept}


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
    rows = [item | {"live": shares(item["live"])} for item in items(page)]
    columns = {
        "name": "NAME",
        "version": "VERSION",
        "live": "LIVE",
        "secrets": "SECRETS",
        "egress": "EGRESS",
        "updated_at": "DEPLOYED",
    }
    print_table(rows, columns, empty="No functions. `neolayer functions deploy FILE` makes one.")


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
        live = {"live": shares(function["live"])}
        print_fields({key: value for key, value in (function | live).items() if key != "source"})


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
