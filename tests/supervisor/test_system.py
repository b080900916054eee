"""What settings make of the parts."""

from pathlib import Path

import pytest

from neolayer.core.settings import Settings
from neolayer.supervisor.places import Places
from neolayer.supervisor.system import System
from tests.system import free_port


async def nothing(settings: Settings) -> str:
    return ""


@pytest.mark.parametrize(("setting", "option"), [("CODE_CACHE", "--no-code-cache"), ("WARM_UP", "--no-warm-up")])
async def test_a_switch_of_the_enclave_reaches_its_command_line(tmp_path: Path, setting: str, option: str) -> None:
    for value in ("true", "false"):
        settings = Settings.load(
            {
                "NEOLAYER_HOME": str(tmp_path),
                "NEOLAYER_PORT": str(free_port()),
                "NEOLAYER_DATABASE_URL": "postgresql://localhost/none",
                "NEOLAYER_VALKEY_URL": "redis://localhost:1",
                "NEOLAYER_RPC_URLS": "http://localhost:1",
                f"NEOLAYER_OPT_{setting}": value,
            }
        )
        system = System.plan(settings, Places.open(tmp_path), nothing)
        (enclave,) = (part for part in system.parts if part.name == "enclave")
        assert enclave.launch
        assert (option in (await enclave.launch()).argv) is (value == "false")
