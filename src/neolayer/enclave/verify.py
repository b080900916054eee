"""The client's side of attestation: whom it trusts with a secret, and how it encrypts one to the enclave."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from neolayer.core.errors import ServiceError
from neolayer_enclave.protocol import ATTESTATION_DOMAIN, upload_info

SIMULATED: Final = "simulated"
#: Bytes of what an attestation holds in base64.
_LENGTHS: Final = {"report_data": 64, "signing_key": 33, "encryption_key": 32, "measurement": 32}
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class EvidenceRejected(ServiceError):
    """The enclave's evidence does not show what it must; nothing was sent."""

    code = "evidence_rejected"


@dataclass(frozen=True, slots=True)
class Verified:
    """An enclave whose evidence held."""

    provider: str
    measurement: bytes
    encryption_key: X25519PublicKey

    def encrypt(self, tenant: str, name: str, version: int, value: str) -> bytes:
        """A secret that only this enclave opens, and only under these names."""
        return _SUITE.encrypt(value.encode(), self.encryption_key, info=upload_info(tenant, name, version))


def verify(
    attestation: Mapping[str, Any], nonce: bytes, *, accept_simulated: bool, measurement: bytes | None = None
) -> Verified:
    """Check what ``GET /api/v1/attestation`` answered.

    Args:
        nonce: what was asked with, fresh.
        accept_simulated: take evidence that proves nothing about hardware.
        measurement: of the only code that is to be trusted, if given.

    Raises:
        EvidenceRejected: says why.
    """
    parts = {name: _bytes(attestation, name, length) for name, length in _LENGTHS.items()}
    bound = nonce + parts["encryption_key"] + parts["signing_key"] + parts["measurement"]
    if parts["report_data"] != hashlib.sha512(ATTESTATION_DOMAIN + bound).digest():
        raise EvidenceRejected("the enclave's evidence is not about these keys and this request")
    if attestation.get("type") != SIMULATED:
        raise EvidenceRejected(f"evidence of type {attestation.get('type')!r} cannot be verified by this version")
    if not accept_simulated:
        raise EvidenceRejected(
            "the enclave is simulated: whoever runs that machine can read the secret. "
            "--accept-simulated sends it all the same"
        )
    _check_signature(parts["signing_key"], _bytes(attestation, "quote", 64), parts["report_data"])
    if measurement is not None and measurement != parts["measurement"]:
        raise EvidenceRejected(f"the enclave runs other code: its measurement is {parts['measurement'].hex()}")
    key = X25519PublicKey.from_public_bytes(parts["encryption_key"])
    return Verified(SIMULATED, parts["measurement"], key)


def _check_signature(key: bytes, quote: bytes, report_data: bytes) -> None:
    signature = encode_dss_signature(int.from_bytes(quote[:32]), int.from_bytes(quote[32:]))
    try:
        EllipticCurvePublicKey.from_encoded_point(SECP256R1(), key).verify(signature, report_data, ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        raise EvidenceRejected("the quote is not signed by the enclave's key") from None


def _bytes(attestation: Mapping[str, Any], name: str, length: int) -> bytes:
    try:
        value = base64.b64decode(attestation[name], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError):
        value = b""
    if len(value) != length:
        raise EvidenceRejected(f"the enclave's evidence has no {name} of {length} bytes")
    return value
