"""Whether Python finds what is installed: the packages of the servers, and what the extras bring.

The servers' packages have common names, `api`, `shared` and `workers`. A folder of that name which Python sees earlier,
because PYTHONPATH names its parent or because `python -m` puts the current folder first, hides ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from tuwen.errors import ConfigurationError

_INSTALLED = Path(__file__).absolute().parents[1]
"""Folder of all packages of this installation. Not resolved: some installers link every file to a place of its own."""


def require_visible(package: str, path: Sequence[str] | None = None) -> None:
    """See that importing `package`, one of ours, finds ours in `path`, which is `sys.path` where it is not given.

    Raises:
        ConfigurationError: something else hides it; the message says what, and what to do.
    """
    found = _find(package, path)
    if found is not None and found.resolve() != (_INSTALLED / package).resolve():
        raise ConfigurationError(
            f"{found} hides Tuwen's own package {package!r} in {_INSTALLED}: "
            f"take {found.parent} out of PYTHONPATH, or start from another folder, or rename {found.name}"
        )


def require_installed(*modules: str, extra: str) -> None:
    """See that each of these modules, by its full name, can be found; none of them is imported.

    Raises:
        ConfigurationError: one cannot; the message names the extra to install.
    """
    for module in modules:
        path: Sequence[str] | None = None
        package, _, inner = module.partition(".")
        found = _find(package, path)
        for name in inner.split(".") if inner else ():
            found = found and _find(name, [str(found)])
        if found is None:
            raise ConfigurationError(f"{module} is not installed here: pip install 'tuwen[{extra}]'")


def run_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a process of its own.

    -P: a folder named `shared` or `api` where the user stands must not be taken for ours.

    Raises:
        ConfigurationError: the process would find another package of that name.
    """
    # What the child will search: without the folder of the script or the current one, which comes first here.
    require_visible(module.partition(".")[0], sys.path if sys.flags.safe_path else sys.path[1:])
    return [sys.executable, "-P", "-m", module, *arguments]


def _find(name: str, path: Sequence[str] | None) -> Path | None:
    """The folder of a package, or the file of a module, without importing it."""
    spec = PathFinder.find_spec(name, path)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None
