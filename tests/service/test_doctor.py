"""`neolayer doctor` on a running system, and where nothing runs."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.system import System, free_port


async def doctor(environ: dict[str, str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the findings by name."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", "doctor", "--json"), env=environ, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, {finding["name"]: finding for finding in json.loads(out)}


async def test_on_a_running_system_nothing_fails_and_the_simulation_is_named(system: System) -> None:
    code, found = await doctor(system.environ)
    failed = [finding for finding in found.values() if finding["state"] == "fail"]
    assert (code, failed) == (0, [])
    for name in ("node", "isolated-vm", "disk", "api", "database", "valkey", "chain", "follower", "chain node"):
        assert found[name]["state"] in ("ok", "warn"), found[name]
    assert found["clock"]["state"] == "ok", found["clock"]
    assert found["enclave provider"]["state"] == "warn"
    assert "simulated" in found["enclave provider"]["detail"]
    for name, finding in found.items():
        if finding["state"] != "ok":
            assert finding["remedy"], name


async def test_readiness_names_the_layers_that_are_missing(system: System) -> None:
    _, _, readiness = await system.raw("GET", "/health/ready")
    _, found = await doctor(system.environ)
    (enclave,) = [part for part in readiness["parts"] if part["name"] == "enclave"]
    missing = {f"hardening: {name}" for name in enclave["detail"]["missing_layers"]}
    shown = {name for name, each in found.items() if name.startswith("hardening") and each["state"] != "ok"}
    assert missing == shown


async def test_a_node_that_is_away_beside_one_that_answers_is_a_warning_and_shows_no_key(system: System) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    code, found = await doctor(system.environ | {"NEOLAYER_RPC_URLS": f"{system.rpc_url},{away}/secret-key"})
    # Findings of one name: the last one counts here, those of nodes that are away come last.
    node = found["chain node"]
    assert (code, node["state"]) == (0, "warn")
    assert node["detail"].startswith(f"{away}: ")
    assert "NEOLAYER_RPC_URLS" in node["remedy"]
    assert "secret-key" not in json.dumps(found)


async def test_where_nothing_runs_it_says_so_and_tries_the_layers_itself(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NEOLAYER_")}
    environ |= {
        "NEOLAYER_HOME": str(tmp_path),
        "NEOLAYER_PORT": str(free_port()),
        "NEOLAYER_DEVNET_RPC_PORT": str(free_port()),
        "NEOLAYER_CELL_WITHOUT": "landlock",
    }
    code, found = await doctor(environ)
    assert code == 1
    assert found["isolated-vm"]["state"] == "ok"
    for name in ("api", "chain node"):
        assert (found[name]["state"], bool(found[name]["remedy"])) == ("fail", True)
    landlock = found["hardening: landlock"]
    assert landlock["state"] == "warn"
    assert "NEOLAYER_CELL_WITHOUT" in landlock["remedy"]
