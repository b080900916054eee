"""Why the system cannot start here. Each message says what to do."""

from typing import ClassVar

from neolayer.core.errors import ServiceError


class CannotStart(ServiceError):
    """The system cannot be started here."""

    code = "cannot_start"
    exit_code: ClassVar[int] = 1


class HomeUnusable(CannotStart):
    """The home folder cannot be used."""

    code = "home_unusable"


class AlreadyRunning(CannotStart):
    """Another `neolayer up` runs on this home."""

    code = "already_running"
    exit_code = 3


class PortTaken(CannotStart):
    """A port that is needed is in use."""

    code = "port_taken"


class MissingPackage(CannotStart):
    """A package that an embedded part needs is not installed."""

    code = "missing_package"


class PartFailed(CannotStart):
    """A part did not become ready."""

    code = "part_failed"
