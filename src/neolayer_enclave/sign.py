"""Wallet keys and the one thing they sign: a Neo N3 transaction that names the wallet as a signer.

The format is that of neo v3.9 ``Transaction.DeserializeUnsigned`` and ``Signer.Deserialize``; limits as there.
"""

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from neolayer_enclave import seal
from neolayer_enclave.protocol import Signature, Signatures, SignTransaction, SignTransactions, WalletKey

#: version u8, nonce u32, system fee i64, network fee i64, valid until block u32.
FIXED: Final = struct.Struct("<BIqqI")
MAX_TRANSACTION_BYTES: Final = 102_400
#: Signers and attributes together.
MAX_SIGNERS_AND_ATTRIBUTES: Final = 16
MAX_SUBITEMS: Final = 16
MAX_SCRIPT_BYTES: Final = 65_535
MAX_CONDITION_DEPTH: Final = 3
#: Interop id of ``System.Crypto.CheckSig``: the first 4 bytes of SHA-256 of its name.
CHECKSIG: Final = bytes.fromhex("56e7b327")
PUSHDATA1_33: Final = b"\x0c\x21"
SYSCALL: Final = b"\x41"

CUSTOM_CONTRACTS, CUSTOM_GROUPS, WITNESS_RULES, GLOBAL = 0x10, 0x20, 0x40, 0x80
KNOWN_SCOPES: Final = 0x01 | CUSTOM_CONTRACTS | CUSTOM_GROUPS | WITNESS_RULES | GLOBAL

HIGH_PRIORITY, ORACLE_RESPONSE, NOT_VALID_BEFORE, CONFLICTS, NOTARY_ASSISTED = 0x01, 0x11, 0x20, 0x21, 0x22
#: What follows the type of those of a fixed width: nothing, a height, a transaction's hash, a number of keys.
ATTRIBUTE_BYTES: Final = {HIGH_PRIORITY: 0, NOT_VALID_BEFORE: 4, CONFLICTS: 32, NOTARY_ASSISTED: 1}

PURPOSE: Final = "wallet"
#: Unsealed keys kept; one takes about 1 KB.
KEYS_CACHED: Final = 4096


class BadTransaction(Exception):
    """The bytes are not exactly one unsigned transaction."""


class NotASigner(Exception):
    """The wallet's account is not among the transaction's signers."""


@dataclass(frozen=True, slots=True)
class Wallet:
    private: ec.EllipticCurvePrivateKey
    #: Compressed, 33 bytes.
    public: bytes
    #: Script hash of the single-signature account, 20 bytes as in a transaction (little-endian).
    account: bytes


class Signer:
    """Makes and uses wallet keys. Keys rest sealed with the host; those in use are kept in a bounded cache."""

    def __init__(self, key: AESGCM) -> None:
        self._key = key
        self._wallets: OrderedDict[tuple[str, str, bytes], Wallet] = OrderedDict()

    def create(self, tenant: str, wallet: str) -> WalletKey:
        private = ec.generate_private_key(ec.SECP256R1())
        secret = private.private_numbers().private_value.to_bytes(32)
        return WalletKey(_compressed(private), seal.seal(self._key, PURPOSE, tenant, wallet, 1, secret))

    def sign(self, request: SignTransaction) -> Signature:
        """Sign SHA-256(magic ‖ SHA-256(unsigned)), as a Neo N3 witness wants it.

        Raises:
            SealInvalid: the sealed key is not this wallet's.
            BadTransaction: see there.
            NotASigner: see there.
        """
        wallet = self._open(request.tenant, request.wallet, request.sealed)
        return Signature(_sign(wallet, request.network, request.unsigned), wallet.public)

    def sign_many(self, request: SignTransactions) -> Signatures:
        """`sign` of each, under the same conditions."""
        wallet = self._open(request.tenant, request.wallet, request.sealed)
        return Signatures(
            [_sign(wallet, request.network, unsigned) for unsigned in request.unsigned], wallet.public
        )

    def _open(self, tenant: str, name: str, sealed: bytes) -> Wallet:
        cached = self._wallets.get((tenant, name, sealed))
        if cached:
            self._wallets.move_to_end((tenant, name, sealed))
            return cached
        secret = seal.unseal(self._key, PURPOSE, tenant, name, 1, sealed)
        private = ec.derive_private_key(int.from_bytes(secret), ec.SECP256R1())
        public = _compressed(private)
        script = PUSHDATA1_33 + public + SYSCALL + CHECKSIG
        account = hashlib.new("ripemd160", hashlib.sha256(script).digest()).digest()
        wallet = self._wallets[tenant, name, sealed] = Wallet(private, public, account)
        if len(self._wallets) > KEYS_CACHED:
            self._wallets.popitem(last=False)
        return wallet


def _sign(wallet: Wallet, network: int, unsigned: bytes) -> bytes:
    if wallet.account not in signers(unsigned):
        raise NotASigner
    message = struct.pack("<I", network) + hashlib.sha256(unsigned).digest()
    r, s = decode_dss_signature(wallet.private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def signers(unsigned: bytes) -> list[bytes]:
    """The accounts that a serialized unsigned transaction names as signers, 20 bytes each.

    Raises:
        BadTransaction: see there.
    """
    if len(unsigned) > MAX_TRANSACTION_BYTES:
        raise BadTransaction("transaction is too large")
    reader = _Reader(unsigned)
    version, _nonce, system_fee, network_fee, _valid_until = FIXED.unpack(reader.take(FIXED.size))
    if version != 0:
        raise BadTransaction(f"unknown transaction version {version}")
    if system_fee < 0 or network_fee < 0:
        raise BadTransaction("negative fee")
    count = reader.count(1, MAX_SIGNERS_AND_ATTRIBUTES, "signers")
    accounts = [reader.signer() for _ in range(count)]
    if len(set(accounts)) != count:
        raise BadTransaction("a signer is named twice")
    kinds = [reader.attribute() for _ in range(reader.count(0, MAX_SIGNERS_AND_ATTRIBUTES - count, "attributes"))]
    if any(kind != CONFLICTS and kinds.count(kind) > 1 for kind in kinds):
        raise BadTransaction("an attribute that may stand once stands twice")
    reader.take(reader.count(1, MAX_SCRIPT_BYTES, "script bytes"))
    if reader.rest:
        raise BadTransaction(f"{reader.rest} bytes after the transaction")
    return accounts


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.rest:
            raise BadTransaction("transaction is cut short")
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def count(self, least: int, most: int, of: str) -> int:
        """A Neo variable-length integer within bounds."""
        first = self.byte()
        width = {0xFD: 2, 0xFE: 4, 0xFF: 8}.get(first)
        value = int.from_bytes(self.take(width), "little") if width else first
        if not least <= value <= most:
            raise BadTransaction(f"{value} {of}, not {least} to {most}")
        return value

    def signer(self) -> bytes:
        account, scopes = self.take(20), self.byte()
        if scopes & ~KNOWN_SCOPES or (scopes & GLOBAL and scopes != GLOBAL):
            raise BadTransaction(f"unknown witness scopes 0x{scopes:02x}")
        if scopes & CUSTOM_CONTRACTS:
            self.take(20 * self.count(0, MAX_SUBITEMS, "allowed contracts"))
        if scopes & CUSTOM_GROUPS:
            for _ in range(self.count(0, MAX_SUBITEMS, "allowed groups")):
                self.point()
        if scopes & WITNESS_RULES:
            for _ in range(self.count(0, MAX_SUBITEMS, "witness rules")):
                if self.byte() > 1:
                    raise BadTransaction("unknown witness rule action")
                self.condition(MAX_CONDITION_DEPTH)
        return account

    def point(self) -> None:
        if self.byte() not in (0x02, 0x03):
            raise BadTransaction("public key is not compressed")
        self.take(32)

    def condition(self, depth: int) -> None:
        if depth == 0:
            raise BadTransaction("witness condition is nested too deeply")
        match self.byte():
            case 0x00:  # Boolean
                self.take(1)
            case 0x01:  # Not
                self.condition(depth - 1)
            case 0x02 | 0x03:  # And, Or
                for _ in range(self.count(1, MAX_SUBITEMS, "conditions")):
                    self.condition(depth - 1)
            case 0x18 | 0x28:  # ScriptHash, CalledByContract
                self.take(20)
            case 0x19 | 0x29:  # Group, CalledByGroup
                self.point()
            case 0x20:  # CalledByEntry
                pass
            case kind:
                raise BadTransaction(f"unknown witness condition 0x{kind:02x}")

    def attribute(self) -> int:
        """Skip one; returns its type."""
        kind = self.byte()
        if kind == ORACLE_RESPONSE:  # id, code, result
            self.take(9)
            self.take(self.count(0, 0xFFFF, "result bytes"))
        elif kind in ATTRIBUTE_BYTES:
            self.take(ATTRIBUTE_BYTES[kind])
        else:
            raise BadTransaction(f"unknown attribute 0x{kind:02x}")
        return kind


def _compressed(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
