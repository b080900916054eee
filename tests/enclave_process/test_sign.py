"""Signing, against neo-mamba's own transactions and the curve."""

import hashlib
import struct

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from neo3.contracts.utils import create_signature_redeemscript
from neo3.core import cryptography as neo_cryptography
from neo3.core import serialization, types
from neo3.core.utils import to_script_hash
from neo3.network.payloads import transaction, verification

from neolayer_enclave.protocol import (
    CreateKey,
    Signature,
    Signatures,
    SignTransaction,
    SignTransactions,
    WalletKey,
)
from tests.enclave_process.host import Host, Refusal

MAGIC = 0x334F454E


@pytest.fixture
async def wallet(host: Host) -> WalletKey:
    return await host.ask(CreateKey("alice", "wallet-1"), WalletKey)


def point(wallet: WalletKey) -> neo_cryptography.ECPoint:
    return neo_cryptography.ECPoint.deserialize_from_bytes(wallet.public_key)


def account(wallet: WalletKey) -> types.UInt160:
    return to_script_hash(create_signature_redeemscript(point(wallet)))


def build(*signers: verification.Signer, attributes: object = None) -> transaction.Transaction:
    return transaction.Transaction(0, 7, 1, 2, 1000, attributes, list(signers), b"\x40" * 300)  # type: ignore[arg-type]


def unsigned(tx: transaction.Transaction) -> bytes:
    with serialization.BinaryWriter() as writer:
        tx.serialize_unsigned(writer)
        return bytes(writer.to_array())


async def sign(host: Host, wallet: WalletKey, data: bytes, network: int = MAGIC) -> Signature:
    return await host.ask(SignTransaction("alice", "wallet-1", wallet.sealed, network, data), Signature)


def verify(wallet: WalletKey, signature: bytes, message: bytes) -> None:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), wallet.public_key)
    encoded = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    key.verify(encoded, message, ec.ECDSA(SHA256()))


def rich_signer(wallet: WalletKey) -> verification.Signer:
    """Every scope that carries data, with nested conditions."""
    group, contract = point(wallet), types.UInt160(b"\x09" * 20)
    conditions = [
        verification.ConditionCalledByEntry(),
        verification.ConditionNot(verification.ConditionScriptHash(contract)),
        verification.ConditionOr(
            [
                verification.ConditionGroup(group),
                verification.ConditionCalledByGroup(group),
                verification.ConditionBool(True),
            ]
        ),
        verification.ConditionCalledByContract(contract),
    ]
    scope = verification.WitnessScope
    rule = verification.WitnessRule(verification.WitnessRuleAction.ALLOW, verification.ConditionAnd(conditions))
    return verification.Signer(
        account(wallet),
        scope.CALLED_BY_ENTRY | scope.CUSTOM_CONTRACTS | scope.CUSTOM_GROUPS | scope.WITNESS_RULES,
        allowed_contracts=[contract],
        allowed_groups=[group],
        rules=[rule],
    )


async def test_a_signature_is_what_the_network_verifies(host: Host, wallet: WalletKey) -> None:
    tx = build(verification.Signer(account(wallet)))
    signature = await sign(host, wallet, unsigned(tx))
    assert signature.public_key == wallet.public_key
    message = struct.pack("<I", MAGIC) + tx.hash().to_array()
    verify(wallet, signature.signature, message)
    assert neo_cryptography.verify_signature(
        message, signature.signature, signature.public_key, neo_cryptography.ECCCurve.SECP256R1
    )
    with pytest.raises(InvalidSignature):
        verify(wallet, (await sign(host, wallet, unsigned(tx), MAGIC + 1)).signature, message)


async def test_every_scope_and_attribute_is_understood(host: Host, wallet: WalletKey) -> None:
    other = verification.Signer(types.UInt160(b"\x05" * 20), verification.WitnessScope.GLOBAL)
    tx = build(other, rich_signer(wallet), attributes=[transaction.HighPriorityAttribute()])
    data = unsigned(tx)
    verify(wallet, (await sign(host, wallet, data)).signature, struct.pack("<I", MAGIC) + tx.hash().to_array())
    # neo-mamba does not know these attributes: NotValidBefore, Conflicts, NotaryAssisted.
    plain = unsigned(build(rich_signer(wallet)))
    attributes = b"\x03" + b"\x20" + bytes(4) + b"\x21" + bytes(32) + b"\x22\x01"
    script = b"\xfd" + struct.pack("<H", 300) + b"\x40" * 300
    assert plain.endswith(b"\x00" + script)
    data = plain.removesuffix(b"\x00" + script) + attributes + script
    verify(
        wallet,
        (await sign(host, wallet, data)).signature,
        struct.pack("<I", MAGIC) + hashlib.sha256(data).digest(),
    )


async def test_a_transaction_of_others_is_not_signed(host: Host, wallet: WalletKey) -> None:
    with pytest.raises(Refusal) as refusal:
        await sign(host, wallet, unsigned(build(verification.Signer(types.UInt160(b"\x05" * 20)))))
    assert refusal.value.code == "not_a_signer"


async def test_what_is_not_exactly_a_transaction_is_not_signed(host: Host, wallet: WalletKey) -> None:
    data = unsigned(build(rich_signer(wallet)))
    wrong = [b"", data + b"\0", b"\x01" + data[1:], data[:5] + b"\xff" * 8 + data[13:], account(wallet).to_array()]
    wrong += [data[:length] for length in range(0, len(data), 17)]
    for bad in wrong:
        with pytest.raises(Refusal) as refusal:
            await sign(host, wallet, bad)
        assert refusal.value.code == "bad_transaction"


async def test_a_sealed_key_serves_its_own_wallet_only(host: Host, wallet: WalletKey) -> None:
    data = unsigned(build(verification.Signer(account(wallet))))
    await sign(host, wallet, data)
    for tenant, name in (("bob", "wallet-1"), ("alice", "wallet-2")):
        with pytest.raises(Refusal) as refusal:
            await host.ask(SignTransaction(tenant, name, wallet.sealed, MAGIC, data), Signature)
        assert refusal.value.code == "seal_invalid"


async def test_many_signatures_come_in_order_and_all_or_none(host: Host, wallet: WalletKey) -> None:
    signer = verification.Signer(account(wallet), verification.WitnessScope.CALLED_BY_ENTRY)
    many = []
    for nonce in range(5):
        one = build(signer)
        one.nonce = nonce
        many.append(unsigned(one))
    request = SignTransactions("alice", "wallet-1", wallet.sealed, MAGIC, many)
    signed = await host.ask(request, Signatures)
    assert signed.public_key == wallet.public_key
    for data, signature in zip(many, signed.signatures, strict=True):
        message = struct.pack("<I", MAGIC) + hashlib.sha256(data).digest()
        verify(wallet, signature, message)
    stranger = await host.ask(CreateKey("alice", "wallet-2"), WalletKey)
    foreign = build(verification.Signer(account(stranger), verification.WitnessScope.CALLED_BY_ENTRY))
    with pytest.raises(Refusal, match="not_a_signer"):
        await host.ask(
            SignTransactions("alice", "wallet-1", wallet.sealed, MAGIC, [*many, unsigned(foreign)]), Signatures
        )
