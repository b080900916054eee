"""Settings are read once, and everything wrong with them is said at once."""

from pathlib import Path

import pytest

from neolayer.core.settings import BadSettings, Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.load({"PATH": "/bin"})
    assert settings.port == 8420
    assert settings.rpc_urls == ()
    assert settings.home.is_absolute()


def test_names_in_the_environment_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "neolayer.toml"
    file.write_text('port = 9000\nlog_level = "debug"\nrpc_urls = ["http://one:1"]\n')
    settings = Settings.load({"NEOLAYER_CONFIG": str(file), "NEOLAYER_PORT": "9001"})
    assert (settings.port, settings.log_level, settings.rpc_urls) == (9001, "debug", ("http://one:1",))


def test_several_nodes_are_separated_by_commas() -> None:
    assert Settings.load({"NEOLAYER_RPC_URLS": "http://a:1, https://b:2,"}).rpc_urls == (
        "http://a:1",
        "https://b:2",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RPC_URLS", "http://a:1,http://a:1/"),
        ("RPC_URLS", "http://"),
        ("NETWORK", "-1"),
        ("NETWORK", "mainnet"),
        ("BROADCAST_NODES", "0"),
        ("NODE_PROBE_S", "0"),
        ("NODE_LAG_BLOCKS", "1"),
        ("CHAIN_CACHE_BYTES", "0"),
        ("OPT_NODE_SELECTION", "perhaps"),
    ],
)
def test_settings_of_nodes_are_checked(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=f"NEOLAYER_{name}"):
        Settings.load({f"NEOLAYER_{name}": value})


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(BadSettings) as caught:
        Settings.load(
            {
                "NEOLAYER_PORT": "70000",
                "NEOLAYER_PROT": "1",
                "NEOLAYER_LOG_LEVEL": "loud",
                "NEOLAYER_RPC_URLS": "ws://node",
                "NEOLAYER_LEASE_S": "soon",
                "NEOLAYER_EGRESS_ALLOW_PRIVATE": "maybe",
                "NEOLAYER_HOME": "",
            }
        )
    named = {problem.split(":")[0].removeprefix("NEOLAYER_") for problem in caught.value.problems}
    assert named == {"PORT", "PROT", "LOG_LEVEL", "RPC_URLS", "LEASE_S", "EGRESS_ALLOW_PRIVATE", "HOME"}


def test_a_password_in_an_address_is_never_repeated() -> None:
    with pytest.raises(BadSettings) as caught:
        Settings.load({"NEOLAYER_DATABASE_URL": "mysql://user:hunter2@host/db"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", ["port = ", "prot = 1"])
def test_a_bad_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "neolayer.toml"
    file.write_text(content)
    with pytest.raises(BadSettings):
        Settings.load({"NEOLAYER_CONFIG": str(file)})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="cannot read"):
        Settings.load({"NEOLAYER_CONFIG": str(tmp_path / "none.toml")})
