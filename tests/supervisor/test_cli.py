"""The command line around the supervisor: exit codes and one-line errors."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from neolayer.supervisor.errors import MissingPackage
from neolayer.supervisor.part import package_folder
from neolayer.supervisor.places import Places


def neolayer(*arguments: str, input: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NEOLAYER_")}
    return subprocess.run(
        [sys.executable, "-m", "neolayer", *arguments],
        env=environ | settings,
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_up_exits_with_3(tmp_path: Path) -> None:
    with Places.open(tmp_path).locked():
        done = neolayer("up", NEOLAYER_HOME=str(tmp_path))
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert f"process {os.getpid()}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"NEOLAYER_HOME": "/dev/null/home"}, "/dev/null/home"),
        ({"NEOLAYER_HOEM": "x"}, "NEOLAYER_HOEM"),
    ],
)
def test_an_error_is_one_line_and_a_code(settings: dict[str, str], named: str) -> None:
    done = neolayer("up", **settings)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_standard_input_that_is_no_json_is_called_by_its_name() -> None:
    done = neolayer("tx", "send", "-", input="{bad")
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard input is not JSON: ")


def test_an_api_that_is_away_is_named_with_the_reason_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        done = neolayer("tx", "list", "--url", url, "--api-key", "nsl_x")
    assert done.returncode == 1
    assert done.stderr == f"error: no answer from {url} (Connection refused): is `neolayer up` running?\n"


def test_help_and_version_import_no_part_of_the_service() -> None:
    assert "functions" in neolayer("--help").stdout
    code = (
        "import sys, neolayer.cli.main; print([m for m in ('aiohttp', 'litestar', 'psycopg') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(MissingPackage, match=r"make up.*NEOLAYER_X"):
        package_folder("no_such_package", "the part", "NEOLAYER_X")
