"""Sealing: what the host keeps but only this enclave can read."""

import os
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from neolayer_enclave.keys import SecretKeys
from neolayer_enclave.protocol import upload_info

#: First byte of a ciphertext: AES-256-GCM, 12 bytes of random nonce, then ciphertext and tag.
FORMAT: Final = b"\x01"
NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = len(FORMAT) + NONCE_BYTES + 16
#: First byte of a secret's ciphertext from epoch 1 on; the epoch follows, u32 little endian, then as above.
EPOCH_FORMAT: Final = b"\x02"
EPOCHS: Final = range(0xFFFF_FFFF)
PURPOSE: Final = "secret"
UPLOADS: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

_encode = msgspec.msgpack.Encoder().encode


class UploadInvalid(Exception):
    """The upload was altered, or encrypted to another key or for another tenant, name or version."""


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


def seal_secret(keys: SecretKeys, epoch: int, tenant: str, name: str, version: int, plaintext: bytes) -> bytes:
    """`seal` with the key of an epoch, which the ciphertext names."""
    ciphertext = seal(keys.of(epoch), PURPOSE, tenant, name, version, plaintext)
    return EPOCH_FORMAT + epoch.to_bytes(4, "little") + ciphertext if epoch else ciphertext


def unseal_secret(keys: SecretKeys, tenant: str, name: str, version: int, ciphertext: bytes) -> bytes:
    """
    Raises:
        SealInvalid: see there.
    """
    epoch = 0
    if ciphertext[:1] == EPOCH_FORMAT:
        epoch, ciphertext = int.from_bytes(ciphertext[1:5], "little"), ciphertext[5:]
        if epoch == 0:
            raise SealInvalid
    return unseal(keys.of(epoch), PURPOSE, tenant, name, version, ciphertext)


def open_upload(key: X25519PrivateKey, tenant: str, name: str, version: int, upload: bytes) -> bytes:
    """Decrypt what a client encrypted to the enclave, see `protocol.SealUpload`.

    Raises:
        UploadInvalid: see there.
    """
    try:
        return UPLOADS.decrypt(upload, key, info=upload_info(tenant, name, version))
    except (InvalidTag, ValueError):
        raise UploadInvalid from None


def _bound(purpose: str, tenant: str, name: str, version: int) -> bytes:
    # msgpack writes the length of each part, so no two lists of names share an encoding.
    return _encode(["neolayer/seal/1", purpose, tenant, name, version])
