"""``neolayer secrets``."""

import asyncio
import base64
import getpass
import os
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from cyclopts import App, Parameter

from neolayer.cli.client import DEFAULT, Client, Connection, call, credentials, items
from neolayer.cli.output import console, notes, print_json, print_table
from neolayer.core.errors import InvalidRequest

app = App(name="secrets", help="Secrets that only functions in the enclave can read.")


@app.command(name="set")
def set_(
    name: str,
    value: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    plain: Annotated[bool, Parameter(negative="")] = False,
    measurement: str | None = None,
    tenant: str | None = None,
    accept_simulated: Annotated[bool, Parameter(negative="")] = False,
    connection: Connection = DEFAULT,
) -> None:
    """Set a secret. Functions granted to it see the new value from their next call on.

    The value is encrypted here to the enclave's attested key: the API, its database and whoever listens see
    ciphertext only.

    Example: neolayer secrets set CLAIM_CODE open-sesame

    Parameters
    ----------
    name
        As in `ctx.secrets.NAME`.
    value
        Asked for when left out; read from standard input when that is a pipe.
    plain
        Send it in the open; it is marked so in lists.
    measurement
        Hexadecimal; encrypt to an enclave that runs exactly this code only.
    tenant
        Id of your tenant, if the API is not to be trusted with naming it.
    accept_simulated
        Trust a simulated enclave that is not on this machine, which proves nothing about hardware.
    """
    if value is None:
        value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if not value:
        raise InvalidRequest(f"{name} would be empty; `neolayer secrets delete {name}` removes it")
    if plain:
        secret = call(connection, "PUT", f"/secrets/{name}", body={"value": value})
        how = "sealed by the enclave; the API saw it on its way"
    else:
        try:
            pinned = bytes.fromhex(measurement) if measurement is not None else None
        except ValueError:
            raise InvalidRequest("--measurement is not hexadecimal") from None
        secret = asyncio.run(_upload(connection, name, value, pinned, tenant, accept_simulated))
        how = "encrypted here for the enclave"
    if connection.json:
        print_json(secret)
    else:
        console.print(f"[green]✓[/] {secret['name']} version {secret['version']}, {how}")


async def _upload(
    connection: Connection, name: str, value: str, measurement: bytes | None, tenant: str | None, accept: bool
) -> Any:
    from neolayer.enclave.verify import EvidenceRejected, verify

    nonce = os.urandom(32)
    async with Client(connection) as client:
        local = _is_this_machine(client.url)
        evidence = await client.get("/attestation", nonce=base64.b64encode(nonce).decode())
        enclave = verify(evidence, nonce, accept_simulated=accept or local, measurement=measurement)
        upload = (await client.request("POST", f"/secrets/{name}/uploads"))[0]
        if tenant is not None and upload["tenant"] != tenant.lower():
            raise EvidenceRejected(f"the API says that this key is of tenant {upload['tenant']}, not {tenant}")
        ciphertext = enclave.encrypt(upload["tenant"], name, upload["version"], value)
        sealed = {"version": upload["version"], "ciphertext": base64.b64encode(ciphertext).decode()}
        secret = (await client.request("PUT", f"/secrets/{name}", body={"sealed": sealed}))[0]
    if local and not accept and not connection.json:
        notes.print(f"[dim]the enclave at {client.url} is simulated: this machine's owner can read its secrets[/]")
    return secret


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@app.command(name="list")
def list_(*, connection: Connection = DEFAULT) -> None:
    """List secrets; values are never shown.

    Example: neolayer secrets list
    """
    page = call(connection, "GET", "/secrets")
    if connection.json:
        print_json(page)
        return
    columns = {
        "name": "NAME",
        "version": "VERSION",
        "uploaded": "UPLOADED",
        "created_at": "CREATED",
        "updated_at": "UPDATED",
    }
    print_table(items(page), columns, empty="No secrets. `neolayer secrets set NAME` makes one.")


@app.command
def delete(name: str, /, *, connection: Connection = DEFAULT) -> None:
    """Delete a secret.

    Example: neolayer secrets delete CLAIM_CODE
    """
    call(connection, "DELETE", f"/secrets/{name}")
    if connection.json:
        print_json({"deleted": name})
    else:
        console.print(f"[green]✓[/] {name} deleted")


@app.command
def rotate_seal(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Seal all secrets of all tenants anew, under the enclave's next sealing key (operator).

    Functions notice nothing. A run that was interrupted is finished by the next one. Works on
    NEOLAYER_DATABASE_URL and NEOLAYER_ENCLAVE_SOCKET, or beside a running `neolayer up`.

    Example: neolayer secrets rotate-seal
    """
    from neolayer.core.settings import BadSettings, Settings
    from neolayer.supervisor.places import Places

    settings = Settings.load(os.environ)
    url = settings.database_url or credentials().get("database_url")
    if not url:
        raise BadSettings(["NEOLAYER_DATABASE_URL: which database? Or start `neolayer up` here first"])
    socket = settings.enclave_socket or Places.open(settings.home).enclave_socket
    start = time.perf_counter()
    done = asyncio.run(_rotate_seal(url, socket))
    if json:
        print_json(done)
        return
    seconds = time.perf_counter() - start
    again = " (finished an interrupted rotation)" if done["resumed"] else ""
    console.print(
        f"[green]✓[/] {done['resealed']} secrets sealed in epoch {done['epoch']} in {seconds:.1f} s{again}"
    )
    for each in done["unreadable"]:
        notes.print(f"the enclave cannot open {each}: set it again")


async def _rotate_seal(url: str, socket: Path) -> dict[str, Any]:
    import logging

    import msgspec

    from neolayer.db.pool import Database
    from neolayer.enclave import EnclaveClient
    from neolayer.secrets.rotation import rotate_seal

    # The pool would tell of each attempt.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    database, enclave = Database(url, timeout_s=3), EnclaveClient(socket)
    await database.open()
    try:
        return msgspec.structs.asdict(await rotate_seal(database, enclave))
    finally:
        await enclave.close()
        await database.close()
