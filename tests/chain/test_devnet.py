"""The private network keeps its identity and chain, and says plainly what is wrong with its directory."""

import shutil
import stat
from pathlib import Path

import pytest

from neolayer.chain.devnet import Devnet
from neolayer.chain.errors import DevnetFailed
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import GAS
from neolayer.core.types import Hash256

from .conftest import Key, NewNode, Node, free_port


def test_identity_is_created_once(tmp_path: Path) -> None:
    """Key and magic stay; the port may change; nobody else can read the key."""
    first = Devnet.open(tmp_path / "a" / "b", 20332)
    again = Devnet.open(tmp_path / "a" / "b", 20333)
    assert (first.network, first.owner) == (again.network, again.owner)
    assert again.rpc_url == "http://127.0.0.1:20333"
    assert Devnet.open(tmp_path / "other", 20332).owner != first.owner
    for file in ("devnet.json", "wallet.json", "config.yml"):
        assert stat.S_IMODE((tmp_path / "a" / "b" / file).stat().st_mode) == 0o600
    assert "private" not in repr(first)


def test_damaged_directory_is_named(tmp_path: Path) -> None:
    """Broken content and unusable places give one line that says what to do."""
    Devnet.open(tmp_path / "net", 20332)
    (tmp_path / "net" / "devnet.json").write_text("{}")
    with pytest.raises(DevnetFailed, match="damaged"):
        Devnet.open(tmp_path / "net", 20332)
    (tmp_path / "file").write_text("")
    with pytest.raises(DevnetFailed, match="cannot set up"):
        Devnet.open(tmp_path / "file" / "net", 20332)


async def test_funding(node: Node) -> None:
    """GAS arrives, several times at once too."""
    receiver = Key().account
    sent = [await node.devnet.fund(node.rpc, receiver, 10**8 + n) for n in range(3)]
    for transaction in sent:
        assert (await node.devnet.wait(node.rpc, transaction)).halted
    assert await node.rpc.balance_of(GAS, receiver) == 3 * 10**8 + 3


async def test_impossible_funding(node: Node) -> None:
    """More than there is fails before anything is sent; waiting for nothing ends."""
    with pytest.raises(DevnetFailed, match="ASSERT"):
        await node.devnet.fund(node.rpc, Key().account, 10**17)
    with pytest.raises(DevnetFailed, match="no block"):
        await node.devnet.wait(node.rpc, Hash256(bytes(32)), timeout_s=0.3)


async def test_chain_survives_restart_and_move(new_node: NewNode, tmp_path: Path) -> None:
    """After a clean stop, a changed port and a moved directory the chain goes on where it was."""
    node = await new_node()
    receiver = Key().account
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, receiver, 5))
    await node.reach(8)
    third = await node.rpc.block_hash(3)
    assert node._process is not None
    node._process.terminate()
    assert node._process.wait(timeout=10) == 0
    await node.rpc.aclose()

    shutil.move(node.devnet.directory, tmp_path / "moved")
    node.devnet = Devnet.open(tmp_path / "moved", free_port(), settings={"TimePerBlock": "250ms"})
    node.rpc = RpcClient([node.devnet.rpc_url])
    await node.start()
    assert await node.rpc.block_count() > 8
    assert await node.rpc.block_hash(3) == third
    assert await node.rpc.balance_of(GAS, receiver) == 5
