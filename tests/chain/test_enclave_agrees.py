"""The enclave's parser and the node hold the same bytes for a transaction, over seeded mutations of real ones."""

import random

import pytest

from neolayer.chain.payload import (
    Attribute,
    Conflicts,
    NotValidBefore,
    Signer,
    UnsignedTransaction,
    Witness,
    WitnessScope,
    var_int,
)
from neolayer.chain.rpc import RpcClient
from neolayer.core.types import Hash160, Hash256
from neolayer_enclave.sign import BadTransaction, signers

#: The node's code for bytes that are no transaction.
UNDECODABLE = -32602
SCOPES = (WitnessScope.NONE, WitnessScope.CALLED_BY_ENTRY, WitnessScope.GLOBAL, WitnessScope.CUSTOM_CONTRACTS)
#: Lengths, scopes and types of attributes.
TELLING = bytes.fromhex("000102101120212240414280fdfeff")


def transaction(rng: random.Random) -> UnsignedTransaction:
    attributes: list[Attribute] = [
        rng.choice([NotValidBefore(1), Conflicts(Hash256(rng.randbytes(32)))]) for _ in range(rng.randrange(4))
    ]
    listed = tuple(Hash160(rng.randbytes(20)) for _ in range(rng.randrange(3)))
    return UnsignedTransaction(
        rng.randrange(2**32),
        rng.randrange(2**40),
        rng.randrange(2**40),
        rng.randrange(2**32),
        tuple(Signer(Hash160(rng.randbytes(20)), rng.choice(SCOPES), listed) for _ in range(rng.randrange(1, 4))),
        rng.randbytes(rng.randrange(1, 6)),
        tuple(attributes),
    )


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    # The fixed part has 25 bytes; what is interesting comes after it.
    at = rng.randrange(len(changed)) if rng.random() < 0.3 else min(rng.randrange(25, 90), len(changed) - 1)
    match rng.randrange(5):
        case 0:
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            changed[at] = rng.choice(TELLING)
        case 2:
            del changed[at]
        case 3:
            changed.insert(at, rng.choice(TELLING))
        case _:
            changed[at:at] = bytes([rng.choice(TELLING)]) + rng.randbytes(rng.randrange(34))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
async def test_enclave_and_node_take_the_same_bytes_for_a_transaction(rpc: RpcClient, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - repeatable
    taken = 0
    for _ in range(250):
        original = transaction(rng)
        data = original.data
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            data = mutated(data, rng)
        count = len(original.signers)
        try:
            count = len(signers(data))
            ours = True
        except BadTransaction:
            ours = False
        witnesses = var_int(count) + Witness(b"", b"\x11").data * count
        theirs = (await rpc.send_raw_transaction(data + witnesses)).node_code != UNDECODABLE
        assert ours == theirs, data.hex()
        taken += ours
    assert 50 < taken < 200
