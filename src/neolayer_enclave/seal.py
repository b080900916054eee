"""Sealing: what the host keeps but only this enclave can read."""

import os
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: First byte of a ciphertext: AES-256-GCM, 12 bytes of random nonce, then ciphertext and tag.
FORMAT: Final = b"\x01"
NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = len(FORMAT) + NONCE_BYTES + 16

_encode = msgspec.msgpack.Encoder().encode


class SealInvalid(Exception):
    """The ciphertext was altered, or was sealed for another tenant, name or version, or by another enclave."""


def seal(key: AESGCM, purpose: str, tenant: str, name: str, version: int, plaintext: bytes) -> bytes:
    """Encrypt; the ciphertext opens under exactly these names only."""
    nonce = os.urandom(NONCE_BYTES)
    return FORMAT + nonce + key.encrypt(nonce, plaintext, _bound(purpose, tenant, name, version))


def unseal(key: AESGCM, purpose: str, tenant: str, name: str, version: int, ciphertext: bytes) -> bytes:
    """Decrypt.

    Raises:
        SealInvalid: see there.
    """
    if len(ciphertext) < OVERHEAD_BYTES or ciphertext[:1] != FORMAT:
        raise SealInvalid
    nonce = ciphertext[1 : 1 + NONCE_BYTES]
    try:
        return key.decrypt(nonce, ciphertext[1 + NONCE_BYTES :], _bound(purpose, tenant, name, version))
    except InvalidTag:
        raise SealInvalid from None


def _bound(purpose: str, tenant: str, name: str, version: int) -> bytes:
    # msgpack writes the length of each part, so no two lists of names share an encoding.
    return _encode(["neolayer/seal/1", purpose, tenant, name, version])
