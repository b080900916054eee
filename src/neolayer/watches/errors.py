"""What can go wrong with watches."""

from neolayer.core.errors import Conflict, NotFound


class WatchNotFound(NotFound):
    """No such watch."""

    code = "watch_not_found"


class WatchExists(Conflict):
    """The tenant watches this already."""

    code = "watch_exists"


class TooManyWatches(Conflict):
    """The tenant has as many watches as it may have."""

    code = "too_many_watches"
