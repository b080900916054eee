"""Transactions as bytes: accounts, signers, witnesses, the unsigned part and its hash.

Fields and order are those of neo-go `pkg/core/transaction`. They are written here and not by neo-mamba's
payload classes because those lack Conflicts and NotValidBefore, consult a global magic and are slower; a test
holds both to the same bytes.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from typing import Any, ClassVar, Final

import base58

from neolayer.chain.errors import BadAddress
from neolayer.core.types import Hash160, Hash256

#: First byte of every N3 address, which makes it start with N; `getversion` calls it ``addressversion``.
ADDRESS_VERSION: Final = 0x35
#: neo-go `transaction.MaxTransactionSize`.
MAX_TRANSACTION_BYTES: Final = 102_400
#: Signers and attributes together: neo-go `transaction.MaxAttributes`.
MAX_SIGNERS_AND_ATTRIBUTES: Final = 16
#: First four bytes of SHA-256 of "System.Crypto.CheckSig", as SYSCALL takes them.
_CHECK_SIG: Final = hashlib.sha256(b"System.Crypto.CheckSig").digest()[:4]


def address_of(account: Hash160) -> str:
    """The account as people write it: ``N…``."""
    return base58.b58encode_check(bytes([ADDRESS_VERSION]) + account.data).decode()


def parse_account(text: str) -> Hash160:
    """Read an account from ``N…`` or ``0x…``.

    Raises:
        BadAddress: anything else.
    """
    if text.startswith("0x"):
        try:
            return Hash160.parse(text)
        except ValueError:
            raise BadAddress(f"{text!r:.80} is not an account: expected 0x and 40 hex digits") from None
    try:
        if len(text) != 34:
            raise ValueError
        data = base58.b58decode_check(text)
    except ValueError:
        raise BadAddress(f"{text!r:.80} is not a Neo address: wrong length, alphabet or checksum") from None
    if len(data) != 21 or data[0] != ADDRESS_VERSION:
        raise BadAddress(f"{text!r:.80} is not a Neo N3 address")
    return Hash160(data[1:])


def verification_script(public_key: bytes) -> bytes:
    """The script that owns a single-signature account.

    Args:
        public_key: compressed secp256r1 point, 33 bytes.
    """
    if len(public_key) != 33 or public_key[0] not in (2, 3):
        raise ValueError("a public key is a compressed secp256r1 point of 33 bytes")
    return b"\x0c\x21" + public_key + b"\x41" + _CHECK_SIG


def account_of(script: bytes) -> Hash160:
    """The account that a verification script owns: RIPEMD-160 of SHA-256 of it."""
    return Hash160(hashlib.new("ripemd160", hashlib.sha256(script).digest()).digest())


class WitnessScope(IntFlag):
    """Where in an execution a signature counts (neo-go `transaction/witness_scope.go`)."""

    NONE = 0x00
    CALLED_BY_ENTRY = 0x01
    CUSTOM_CONTRACTS = 0x10
    GLOBAL = 0x80


#: As the RPC methods spell the scopes.
_SCOPE_NAMES: Final = {
    WitnessScope.NONE: "None",
    WitnessScope.CALLED_BY_ENTRY: "CalledByEntry",
    WitnessScope.CUSTOM_CONTRACTS: "CustomContracts",
    WitnessScope.GLOBAL: "Global",
}


@dataclass(frozen=True, slots=True)
class Signer:
    """An account that must sign, and where in the execution its signature counts."""

    account: Hash160
    scopes: WitnessScope = WitnessScope.CALLED_BY_ENTRY
    #: Used with `WitnessScope.CUSTOM_CONTRACTS` only; at most 16.
    allowed_contracts: tuple[Hash160, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `invokescript` takes it."""
        names = [_SCOPE_NAMES[scope] for scope in self.scopes] or ["None"]
        signer: dict[str, Any] = {"account": str(self.account), "scopes": ",".join(names)}
        if self.scopes & WitnessScope.CUSTOM_CONTRACTS:
            signer["allowedcontracts"] = [str(contract) for contract in self.allowed_contracts]
        return signer

    @property
    def data(self) -> bytes:
        """As it stands in a transaction."""
        data = self.account.data + bytes([self.scopes])
        if self.scopes & WitnessScope.CUSTOM_CONTRACTS:
            data += var_int(len(self.allowed_contracts))
            data += b"".join(contract.data for contract in self.allowed_contracts)
        return data


@dataclass(frozen=True, slots=True)
class Witness:
    """What proves that one signer agrees. Each script has at most 1,024 bytes."""

    invocation: bytes
    verification: bytes

    @property
    def data(self) -> bytes:
        """As it stands in a transaction."""
        return (
            var_int(len(self.invocation)) + self.invocation + var_int(len(self.verification)) + self.verification
        )


def signature_witness(signature: bytes, public_key: bytes) -> Witness:
    """The witness of a single-signature account.

    Args:
        signature: r‖s over `UnsignedTransaction.signing_data`, 64 bytes.
        public_key: compressed secp256r1 point, 33 bytes.
    """
    if len(signature) != 64:
        raise ValueError(f"a signature has 64 bytes, not {len(signature)}")
    return Witness(b"\x0c\x40" + signature, verification_script(public_key))


@dataclass(frozen=True, slots=True)
class NotValidBefore:
    """Refused by nodes (−507) until the block of this index exists; at most once in a transaction."""

    #: Byte that announces the attribute, also the key of its price in the Policy contract.
    TYPE: ClassVar[int] = 0x20
    #: The first block that may hold the transaction is the one after it.
    height: int

    @property
    def data(self) -> bytes:
        """As it stands in a transaction."""
        return bytes([self.TYPE]) + self.height.to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Conflicts:
    """Names a transaction that must not be in a chain with this one; any number in a transaction.

    Both must share a signer. In a memory pool it displaces what it names if its network fee is above the sum of
    theirs; once it is in a block, what it names is refused (−500).
    """

    TYPE: ClassVar[int] = 0x21
    hash: Hash256

    @property
    def data(self) -> bytes:
        """As it stands in a transaction."""
        return bytes([self.TYPE]) + self.hash.data


type Attribute = NotValidBefore | Conflicts


@dataclass(frozen=True)
class UnsignedTransaction:
    """A transaction before its witnesses. Equal fields make an equal hash: the nonce tells twins apart."""

    #: Random, 32 bit; no order among transactions follows from it.
    nonce: int
    #: Burned for executing the script; datoshi.
    system_fee: int
    #: Paid for size and verification; datoshi.
    network_fee: int
    #: May be included up to and with this block.
    valid_until_block: int
    #: The first one pays. With the attributes up to 16, no account twice.
    signers: tuple[Signer, ...]
    script: bytes
    attributes: tuple[Attribute, ...] = ()

    @cached_property
    def data(self) -> bytes:
        """The bytes that are hashed and signed."""
        version = 0
        return b"".join(
            (
                struct.pack(
                    "<BIqqI",
                    version,
                    self.nonce,
                    self.system_fee,
                    self.network_fee,
                    self.valid_until_block,
                ),
                var_int(len(self.signers)),
                *(signer.data for signer in self.signers),
                var_int(len(self.attributes)),
                *(attribute.data for attribute in self.attributes),
                var_int(len(self.script)),
                self.script,
            )
        )

    @cached_property
    def hash(self) -> Hash256:
        """The transaction id; witnesses do not change it."""
        return Hash256(hashlib.sha256(self.data).digest())

    def signing_data(self, network: int) -> bytes:
        """What a key signs with ECDSA over SHA-256: network magic (4 bytes little endian), then the hash."""
        return network.to_bytes(4, "little") + self.hash.data

    def with_witnesses(self, witnesses: Sequence[Witness]) -> bytes:
        """The bytes to send: one witness for each signer, in the signers' order."""
        if len(witnesses) != len(self.signers):
            raise ValueError(f"{len(self.signers)} signers need as many witnesses, not {len(witnesses)}")
        return self.data + var_int(len(witnesses)) + b"".join(witness.data for witness in witnesses)


def var_int(value: int) -> bytes:
    """A length as Neo writes it: 1, 3 or 5 bytes."""
    if value < 0xFD:
        return bytes([value])
    if value <= 0xFFFF:
        return b"\xfd" + value.to_bytes(2, "little")
    return b"\xfe" + value.to_bytes(4, "little")
