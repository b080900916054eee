"""The untrusted side of the enclave: its client, and the protocol's types for the rooms above."""

from neolayer.enclave.client import Enclave, EnclaveClient, HostFunction
from neolayer.enclave.connection import Call
from neolayer.enclave.errors import EnclaveRefused, EnclaveUnavailable, OutcomeUnknown
from neolayer_enclave.protocol import ErrorInfo, Evidence, Limits, Load, OwnedSecret, Phases, Result, SealedSecret

__all__ = [
    "Call",
    "Enclave",
    "EnclaveClient",
    "EnclaveRefused",
    "EnclaveUnavailable",
    "ErrorInfo",
    "Evidence",
    "HostFunction",
    "Limits",
    "Load",
    "OutcomeUnknown",
    "OwnedSecret",
    "Phases",
    "Result",
    "SealedSecret",
]
