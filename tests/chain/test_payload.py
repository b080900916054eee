"""Our bytes are those of the ecosystem's own library and of the node."""

import base64

import pytest
from neo3.core.types import UInt160
from neo3.network.payloads import transaction, verification

from neolayer.chain.errors import BadAddress
from neolayer.chain.payload import (
    Signer,
    UnsignedTransaction,
    Witness,
    WitnessScope,
    account_of,
    address_of,
    parse_account,
    signature_witness,
    verification_script,
)
from neolayer.chain.rpc import RpcClient
from neolayer.core.types import Hash160

from .conftest import Key

OTHER = Hash160(bytes(range(20)))
SIGNERS = [
    (Signer(OTHER, WitnessScope.NONE),),
    (Signer(OTHER),),
    (Signer(OTHER, WitnessScope.GLOBAL),),
    (
        Signer(OTHER, WitnessScope.CALLED_BY_ENTRY | WitnessScope.CUSTOM_CONTRACTS, (OTHER, Hash160(bytes(20)))),
        Signer(Hash160(bytes(20))),
    ),
]


@pytest.mark.parametrize("signers", SIGNERS, ids=lambda signers: str(signers[0].scopes))
@pytest.mark.parametrize("length", [1, 252, 253, 65_535])
def test_bytes_equal_neo_mamba(signers: tuple[Signer, ...], length: int) -> None:
    """Unsigned part, hash and whole transaction, over every width of a length."""
    ours = UnsignedTransaction(2**32 - 1, 10**10, 123_456, 77, signers, b"\x21" * length)
    witnesses = [Witness(b"\x0c\x40" + bytes(64), b"\x01" * 40), Witness(b"", b"\x02" * 300)][: len(signers)]
    theirs = transaction.Transaction(
        version=0,
        nonce=ours.nonce,
        system_fee=ours.system_fee,
        network_fee=ours.network_fee,
        valid_until_block=77,
        signers=[
            verification.Signer(
                UInt160(signer.account.data),
                verification.WitnessScope(int(signer.scopes)),
                allowed_contracts=[UInt160(contract.data) for contract in signer.allowed_contracts],
            )
            for signer in signers
        ],
        script=ours.script,
        witnesses=[verification.Witness(witness.invocation, witness.verification) for witness in witnesses],
        protocol_magic=1,
    )
    assert ours.with_witnesses(witnesses) == theirs.to_array()
    assert str(ours.hash) == "0x" + str(theirs.hash())


@pytest.mark.parametrize("signers", SIGNERS, ids=lambda signers: str(signers[0].scopes))
async def test_node_reads_the_signers(rpc: RpcClient, signers: tuple[Signer, ...]) -> None:
    """All scopes are understood by ``invokescript``."""
    assert (await rpc.invoke_script(b"\x11", signers)).halted


def test_addresses() -> None:
    """Address and account turn into each other; wrong ones are refused."""
    account = Hash160.parse("0xd2a4cff31913016155e38e474a2c06d08be276cf")
    assert address_of(account) == "NepwUjd9GhqgNkrfXaxj9mmsFhFzGoFuWM"
    assert parse_account("NepwUjd9GhqgNkrfXaxj9mmsFhFzGoFuWM") == parse_account(str(account)) == account
    for wrong in (
        "",
        "N",
        "NepwUjd9GhqgNkrfXaxj9mmsFhFzGoFuWN",
        "AepwUjd9GhqgNkrfXaxj9mmsFhFzGoFuWM",
        "0x",
        "x" * 10**6,
    ):
        with pytest.raises(BadAddress):
            parse_account(wrong)


async def test_account_of_a_public_key_is_the_nodes(rpc: RpcClient) -> None:
    """``createStandardAccount`` is what the node computes for CheckSig accounts."""
    key = Key()
    script = b"\x0c\x21" + key.public + b"\x41\xcf\x99\x87\x02"  # System.Contract.CreateStandardAccount
    result = await rpc.invoke_script(script)
    assert base64.b64decode(result.stack[0]["value"]) == account_of(verification_script(key.public)).data


def test_wrong_sizes_are_refused() -> None:
    """Slips of the caller do not become transactions."""
    key = Key()
    with pytest.raises(ValueError, match="33 bytes"):
        verification_script(key.public[1:])
    with pytest.raises(ValueError, match="64 bytes"):
        signature_witness(bytes(63), key.public)
    with pytest.raises(ValueError, match="as many witnesses"):
        UnsignedTransaction(0, 0, 0, 1, (key.signer,), b"\x40").with_witnesses([])
