"""The walls around the cells, tried from inside: a program that was taken over gets nowhere."""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.hardening import PREVENTS, Hardening, settle
from neolayer_enclave.launcher.plan import Plan
from neolayer_enclave.process import CellProcess
from neolayer_enclave.protocol import Hardening as Table
from neolayer_enclave.protocol import Layers
from tests.enclave_process.host import Host, Process, output
from tests.enclave_process.probe import attack

#: On a machine that has every layer; where one is missing its tests are skipped and say so.
DENIED = {"EPERM", "EACCES", "ENOSYS"}


async def settled(*without: str) -> Hardening:
    node = bundled_node()
    assert node
    hardening, blank = await settle(node, without)
    assert blank
    await blank.discard()
    return hardening


@pytest.fixture
async def listener() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def only(hardening: Hardening, *layers: str) -> Hardening:
    if missing := set(layers) - set(hardening.on):
        pytest.skip(f"this machine has no {', '.join(missing)}")
    return Hardening(hardening.node, list(layers), None, {}, hardening._libraries)


async def test_without_layers_the_attacks_work_so_that_they_prove_something(listener: int) -> None:
    answers = await attack(only(await settled()), os.getpid(), listener)
    for name in (
        "connect",
        "udp",
        "read_passwd",
        "write",
        "spawn",
        "fork",
        "execute",
        "signal_enclave",
        "many_files",
    ):
        assert answers[name] == "ok", (name, answers[name])


async def test_with_all_layers_nothing_works(listener: int) -> None:
    hardening = await settled()
    if hardening.missing:
        pytest.skip(f"this machine has no {', '.join(hardening.missing)}")
    answers = await attack(hardening, os.getpid(), listener)
    tried = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    assert "ok" not in tried.values(), tried
    assert answers["no_new_privs"] == 1
    assert answers["seccomp"] == 2
    assert answers["pid"] == 1


@pytest.mark.parametrize(
    ("layer", "attacks"),
    [
        ("network", {"connect": {"ENETUNREACH"}, "udp": {"ENETUNREACH"}}),
        (
            "filesystem",
            {"read_passwd": {"ENOENT"}, "write": {"ENOENT"}, "write_root": {"EROFS"}, "spawn": {"ENOENT"}},
        ),
        ("processes", {"signal_enclave": {"ESRCH"}, "trace": {"ESRCH"}, "enclave_memory_directly": {"ESRCH"}}),
        ("rlimits", {"many_files": {"EMFILE"}, "big_file": {"EFBIG"}}),
        (
            "landlock",
            {"read_passwd": DENIED, "write": DENIED, "connect": DENIED, "spawn": DENIED, "trace": DENIED},
        ),
        (
            "seccomp",
            dict.fromkeys(("connect", "udp", "unix", "spawn", "fork", "execute", "trace"), DENIED)
            | dict.fromkeys(("namespaces", "load_bpf"), DENIED)
            | {"io_uring": DENIED, "remount": DENIED, "enclave_memory_directly": DENIED},
        ),
    ],
)
async def test_each_layer_alone_stops_what_it_is_for(
    layer: str, attacks: dict[str, set[str]], listener: int
) -> None:
    answers = await attack(only(await settled(), layer), os.getpid(), listener)
    for name, errors in attacks.items():
        assert answers[name] in errors, (name, answers[name])


async def test_rights_are_gone_for_good(listener: int) -> None:
    hardening = await settled()
    answers = await attack(
        only(hardening, "filesystem", "user", "capabilities", "no_new_privs"), os.getpid(), listener
    )
    assert answers["ids"] == [65534, 65534, []]
    assert answers["become_root"] == "EPERM"
    assert answers["remount"] == "EPERM"


async def test_a_cell_shows_its_walls_from_outside(own_enclave: Process, own_host: Host) -> None:
    assert output(await own_host.run("export default () => 1")) == 1
    table = {layer.name: layer.state for layer in (await own_host.ask(Layers(), Table)).layers}
    assert list(table) == list(PREVENTS)
    (pid,) = own_enclave.cells()
    cell = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (cell / "status").read_text().splitlines())
    if table["seccomp"] == "on":
        assert status["Seccomp"].strip() == "2"
    if table["capabilities"] == "on":
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    if table["user"] == "on":
        assert status["Uid"].split() == ["65534"] * 4
    if table["network"] == "on":
        assert (cell / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert int((cell / "oom_score_adj").read_text()) == 800


@pytest.mark.parametrize("layer", list(PREVENTS))
async def test_each_layer_can_be_left_out_and_calls_are_served(layer: str, tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--without", layer, "--spare", "1")
    host = await Host.connect(enclave)
    try:
        assert output(await host.run("export default (input) => input + 1", 1)) == 2
        table = {each.name: each for each in (await host.ask(Layers(), Table)).layers}
        assert (table[layer].state, table[layer].reason) == ("off", "switched off")
        assert layer in enclave.ready["missing_layers"]
    finally:
        await host.close()
        assert await enclave.stop() == 0


async def test_without_any_layer_calls_are_served(tmp_path: Path) -> None:
    options: list[Any] = [option for layer in PREVENTS for option in ("--without", layer)]
    enclave = await Process.start(tmp_path, *options)
    host = await Host.connect(enclave)
    assert output(await host.run("export default (input) => input + 1", 1)) == 2
    assert enclave.ready["missing_layers"] == list(PREVENTS)
    await host.close()
    assert await enclave.stop() == 0


async def test_a_layer_that_keeps_node_from_starting_is_found_and_left_out(tmp_path: Path) -> None:
    """Here nobody but root may execute Node, so that the change of user is to blame, and it alone."""
    if os.geteuid() != 0:
        pytest.skip("only root changes its user")
    usual = await settled()
    node = tmp_path / "node"
    shutil.copy(usual.node, node)
    node.chmod(0o700)
    hardening, blank = await settle(node)
    assert blank
    await blank.discard()
    assert set(usual.on) - set(hardening.on) == {"user"}
    assert hardening.off["user"] == ("unavailable", "/node: Permission denied")


async def test_where_no_cell_starts_the_enclave_says_why(tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\nexit 3\n")
    node.chmod(0o755)
    hardening, blank = await settle(node)
    assert blank is None
    assert hardening.on == []
    assert set(hardening.off) == set(PREVENTS)


async def test_an_enclave_without_roots_rights_hardens_its_cells_too(tmp_path: Path) -> None:
    """In a user namespace where our user is called 1000 and has no capability left after exec."""
    trial = await asyncio.create_subprocess_exec(*ORDINARY, "true")
    if await trial.wait() != 0:
        pytest.skip("this machine lets nobody make user namespaces")
    enclave = await Process.start(tmp_path, prefix=ORDINARY)
    host = await Host.connect(enclave)
    assert output(await host.run("export default (input) => input + 1", 1)) == 2
    table = {each.name: each for each in (await host.ask(Layers(), Table)).layers}
    for layer in ("capabilities", "no_new_privs", "rlimits", "landlock", "seccomp", "permission"):
        assert table[layer].state == "on", table[layer]
    assert table["user"].state == "unneeded"
    states = {table[layer].state for layer in ("network", "filesystem", "processes")}
    assert states == {"on"}, table
    await host.close()
    assert await enclave.stop() == 0


ORDINARY = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


async def test_the_kernel_ends_what_passes_its_ceiling() -> None:
    hardening = await settled()
    if hardening.ceilings is None:
        pytest.skip("this machine has no control groups")
    python = str(Path(sys.executable).resolve())
    greedy = "import os; os.read(3, 1); all = [bytearray(1 << 20) for _ in range(1 << 10)]"
    process = CellProcess(
        Plan([python, "-I", "-S", "-c", greedy], {}, [], [], [], [], []), hardening.ceilings, lambda _: None
    )
    with process.socket:
        process.limit(64 << 20)
        process.socket.send(b"x")
        assert await process.ended == -signal.SIGKILL
    assert process.out_of_memory()
