"""The Host header, which tells whether a browser asked for this machine or for a name that another site rebound to it.

A page of another site can point its own name at 127.0.0.1 and read what a server without a password answers there. It
cannot change the Host header, which still has that name.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from shared.settings import Settings

_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


def local_names(settings: Settings) -> frozenset[str]:
    """Names under which a server without a password is served: those of loopback, and that of `public_url`."""
    public = urlsplit(settings.public_url).hostname if settings.public_url else None
    return _LOOPBACK_NAMES | ({public} if public else set())


def host_name(host: str) -> str:
    """The name in a Host header, in lower case and without its port; empty when there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
