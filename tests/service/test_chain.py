"""The nodes as the API, the command line and the metrics show them, and reads with a fence."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from neolayer.core.settings import Settings
from neolayer.supervisor.part import NotReady
from neolayer.supervisor.places import Places
from neolayer.supervisor.system import System as Parts
from tests.proxy import NodeProxy, everything
from tests.system import System, free_port

CURRENT_INDEX = {"contract": "LedgerContract", "method": "currentIndex"}


async def cli(system: System, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", *arguments), env=system.environ, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def part(system: System, name: str) -> dict[str, Any]:
    _, _, readiness = await system.raw("GET", "/health/ready")
    return next(part for part in readiness["parts"] if part["name"] == name)


async def test_nodes_are_shown(system: System) -> None:
    page = await system.get("/chain/nodes")
    assert page["selection"] is True
    assert page["degraded"] is False
    version = await system.rpc("getversion")
    assert page["network"] == version["protocol"]["network"]
    (node,) = page["nodes"]
    assert (node["url"], node["state"], node["reason"]) == (system.rpc_url, "ok", None)
    assert node["user_agent"] == version["useragent"]
    assert node["breaker"] == "closed"
    assert abs(await system.rpc("getblockcount") - 1 - node["height"]) <= 3
    assert node["concurrency_limit"] >= 1
    assert node["methods"]["probe"]["ewma_ms"] > 0
    await system.request("GET", "/chain/nodes", status=401, headers={"authorization": "Bearer nsl_wrong"})


async def test_nodes_on_the_command_line(system: System) -> None:
    code, text = await cli(system, "chain", "nodes")
    assert code == 0
    assert system.rpc_url in text
    assert "STATE" in text
    code, text = await cli(system, "chain", "nodes", "--json")
    assert code == 0
    assert json.loads(text)["nodes"][0]["url"] == system.rpc_url


async def test_nodes_are_metrics_and_part_of_health(system: System) -> None:
    detail = (await part(system, "chain"))["detail"]
    assert (detail["nodes_ok"], detail["degraded"], detail["nodes_not_ok"]) == (1, False, {})
    await system.post("/chain/read", CURRENT_INDEX)
    _, _, text = await system.raw("GET", "/metrics")
    assert f'neolayer_node_state{{node="{system.rpc_url}",state="ok"}} 1.0' in text
    assert f'neolayer_rpc_calls_total{{method="invokescript",node="{system.rpc_url}",outcome="answered"}}' in text
    assert f'neolayer_rpc_duration_seconds_count{{method="probe",node="{system.rpc_url}"}}' in text
    assert "neolayer_nodes_degraded 0.0" in text


async def test_a_read_tells_its_block_and_takes_a_fence(system: System) -> None:
    first = await system.post("/chain/read", CURRENT_INDEX)
    assert int(first["value"]) == first["height"]
    later = await system.post("/chain/read", CURRENT_INDEX | {"min_height": first["height"] + 1})
    assert int(later["value"]) == later["height"] > first["height"]
    problem = await system.post("/chain/read", CURRENT_INDEX | {"min_height": 4_000_000_000}, status=503)
    assert (problem["code"], problem["retryable"]) == ("node_unavailable", True)
    for wrong in (-1, 2**32, 1.5, "soon"):
        await system.post("/chain/read", CURRENT_INDEX | {"min_height": wrong}, status=422)


async def test_a_dead_node_shows_why(system_behind_proxy: tuple[System, NodeProxy]) -> None:
    system, proxy = system_behind_proxy
    proxy.refuse = everything
    try:

        async def is_open() -> bool:
            return (await system.get("/chain/nodes"))["nodes"][0]["state"] in ("open", "half_open")

        await system.eventually(is_open)
        page = await system.get("/chain/nodes")
        assert page["degraded"] is True
        assert page["nodes"][0]["last_error"]
        assert (await part(system, "chain"))["state"] == "down"
    finally:
        proxy.refuse = lambda _: False
    await system.eventually(system.ready)


async def test_nodes_of_another_network_than_the_one_set_are_refused_at_start(
    system: System, tmp_path: Path
) -> None:
    async def nothing(settings: Settings) -> str:
        return ""

    magic = (await system.get("/chain/nodes"))["network"]
    for network, fits in ((magic, True), (magic ^ 1, False)):
        settings = Settings.load(
            {
                "NEOLAYER_HOME": str(tmp_path),
                "NEOLAYER_PORT": str(free_port()),
                "NEOLAYER_DATABASE_URL": "postgresql://localhost/none",
                "NEOLAYER_VALKEY_URL": "redis://localhost:1",
                "NEOLAYER_RPC_URLS": f"{system.rpc_url}/?key=geheim",
                "NEOLAYER_NETWORK": str(network),
            }
        )
        parts = Parts.plan(settings, Places.open(tmp_path), nothing).parts
        (chain,) = (part for part in parts if part.name == "chain")
        if fits:
            shown = await chain.ready(None)
        else:
            with pytest.raises(NotReady, match=f"on network {magic}, NEOLAYER_NETWORK is {network}") as refused:
                await chain.ready(None)
            shown = str(refused.value)
        assert shown.startswith(system.rpc_url)
        assert "geheim" not in shown
