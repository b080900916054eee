"""The untrusted side of the enclave: its client, and the protocol's types for the rooms above."""

from neolayer.enclave.client import Enclave, EnclaveClient, HostFunction
from neolayer.enclave.errors import EnclaveRefused, EnclaveUnavailable
from neolayer_enclave.protocol import Evidence, Limits, Load, Result, SealedSecret

__all__ = [
    "Enclave",
    "EnclaveClient",
    "EnclaveRefused",
    "EnclaveUnavailable",
    "Evidence",
    "HostFunction",
    "Limits",
    "Load",
    "Result",
    "SealedSecret",
]
