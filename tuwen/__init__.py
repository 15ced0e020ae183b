"""What other people's programs import: clients, requests and results, errors, and the contract of an engine.

    from tuwen import Client, JobRequest, errors

It needs httpx, pydantic and numpy, and nothing of the servers: they import this package, never the other way round.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuwen.version import __version__

if TYPE_CHECKING:
    from tuwen import engine, errors
    from tuwen.client import AsyncClient, Client, Image
    from tuwen.datasets import Dataset, DatasetRequest, DatasetStatus, ExportRequest, Filters, ReviewRequest
    from tuwen.errors import TuwenError
    from tuwen.jobs import (
        DescribeInput,
        DescribeResult,
        GenerateInput,
        GenerateResult,
        ImageSource,
        Job,
        JobRequest,
        Kind,
        MatchInput,
        MatchResult,
        Progress,
        RecognizeInput,
        RecognizeResult,
        Status,
    )

__all__ = [
    "AsyncClient",
    "Client",
    "Dataset",
    "DatasetRequest",
    "DatasetStatus",
    "DescribeInput",
    "DescribeResult",
    "ExportRequest",
    "Filters",
    "GenerateInput",
    "GenerateResult",
    "Image",
    "ImageSource",
    "Job",
    "JobRequest",
    "Kind",
    "MatchInput",
    "MatchResult",
    "Progress",
    "RecognizeInput",
    "RecognizeResult",
    "ReviewRequest",
    "Status",
    "TuwenError",
    "__version__",
    "engine",
    "errors",
]

_MODULES = ("engine", "errors")
_HOMES = ("errors", "jobs", "datasets", "client")
"""Where the other names are looked for, in this order: only the clients need httpx."""


def __getattr__(name: str) -> Any:
    """Load what is asked for: servers and engines import this package too, and need no httpx for it."""
    if name in _MODULES:
        return import_module(f"tuwen.{name}")
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"tuwen.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
