"""The hash of a block from what a node says is in it: no node can put a true hash on other content."""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

from neolayer.chain.payload import parse_account
from neolayer.core.types import Hash256


def hash_of_block(block: dict[str, Any]) -> Hash256:
    """SHA-256 of the header (neo-go `core/block/header.go`), with the Merkle root of the transactions it lists.

    Args:
        block: as ``getblock`` and the event ``block_added`` give it.

    Raises:
        ValueError, KeyError, BadAddress: it is no block.
    """
    header = struct.pack(
        "<I32s32sQQIB20s",
        block["version"],
        Hash256.parse(block["previousblockhash"]).data,
        merkle_root([Hash256.parse(transaction["hash"]).data for transaction in block["tx"]]),
        block["time"],
        int(block["nonce"], 16),
        block["index"],
        block["primary"],
        parse_account(block["nextconsensus"]).data,
    )
    return Hash256(hashlib.sha256(header).digest())


def merkle_root(hashes: Sequence[bytes]) -> bytes:
    """Pairs are hashed twice with SHA-256, an odd last one with itself; zeros for none (neo-go `crypto/hash`)."""
    if not hashes:
        return bytes(32)
    level = list(hashes)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [hashlib.sha256(hashlib.sha256(left + right).digest()).digest() for left, right in pairs]
    return level[0]
