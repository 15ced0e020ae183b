"""What other people's programs import: clients, requests and results, errors, and the contract of an engine.

    from tuwen import Client

It needs httpx, pydantic and numpy, and nothing of the servers: they import this package, never the other way round.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuwen.version import __version__

if TYPE_CHECKING:
    from tuwen.client import Client

__all__ = ["Client", "__version__"]

_HOMES = {"Client": "tuwen.client"}


def __getattr__(name: str) -> Any:
    """Load a client when it is asked for: servers and engines import this package too, and need no httpx for it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
