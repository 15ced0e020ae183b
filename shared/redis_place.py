"""Where Redis is: one server, or a master that sentinels know, each with or without TLS.

`TUWEN_REDIS_URL` is one of

    redis://USER:PASSWORD@HOST:PORT/DB
    rediss://USER:PASSWORD@HOST:PORT/DB?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE
    redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/MASTER/DB?sentinel_username=USER&sentinel_password=PASSWORD
    rediss+sentinel://…        the same with TLS, to the sentinels as well

User and password are those of the master. The names of the parameters are those of redis-py. A connection asks the
sentinels for the master when it is made, so after a failover all that has to happen is that it breaks.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    import redis
    import redis.asyncio

# redis-py is imported where it is needed: the settings, which every command reads, check the URL with this module.

SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL = ("sentinel_username", "sentinel_password")


_URL = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?")
"""RFC 3986, appendix B."""


class _Parts(NamedTuple):
    scheme: str
    netloc: str
    path: str
    query: str


def _split(url: str) -> _Parts:
    """Divide a URL. `urlsplit` refuses several hosts of which one has brackets, since security releases of Python."""
    found = _URL.match(url)
    return _Parts(*(part or "" for part in (found.groups() if found else ("",) * 4)))


@dataclass(frozen=True)
class RedisPlace:
    """Where `url` says that Redis is. Raises ValueError where it says nothing that can be."""

    url: str

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in SCHEMES)}")
        if not self.has_sentinels:
            _ = urlsplit(self.url).port  # raises ValueError when the port is not a number
        elif not self.master or not all(host for host, _ in self.sentinels):
            raise ValueError("must name the sentinels and the master: redis+sentinel://HOST:PORT,HOST:PORT/MASTER")
        try:
            _ = self.database
        except ValueError:
            raise ValueError("must end with the number of a database") from None
        self._check_parameters()

    def _check_parameters(self) -> None:
        known = (*(_TLS if self.has_tls else ()), *(_SENTINEL if self.has_sentinels else ()))
        foreign = self._query.keys() - set(known)
        if known and foreign:
            raise ValueError(f"{', '.join(sorted(foreign))}: unknown; this scheme takes {', '.join(known)}")
        for name in _TLS:
            if self.has_tls and name in self._query and not Path(self._query[name]).is_file():
                raise ValueError(f"{name}: there is no file {self._query[name]}")

    @property
    def has_sentinels(self) -> bool:
        """Whether sentinels know where Redis is."""
        return _split(self.url).scheme.endswith("+sentinel")

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted and the server's certificate is checked."""
        return _split(self.url).scheme.startswith("rediss")

    @property
    def has_certificate(self) -> bool:
        """Whether a certificate of this client is named."""
        return "ssl_certfile" in self._query

    @property
    def sentinels(self) -> list[tuple[str, int]]:
        """Hosts and ports of the sentinels."""
        addresses = _split(self.url).netloc.rpartition("@")[2].split(",")
        places = [urlsplit(f"//{address}") for address in addresses]
        return [(place.hostname or "", place.port or SENTINEL_PORT) for place in places]

    @property
    def master(self) -> str:
        """Name under which the sentinels know the master."""
        return unquote(_split(self.url).path.strip("/").partition("/")[0])

    @property
    def database(self) -> int:
        """Number of the database."""
        parts = _split(self.url).path.strip("/").split("/")
        number = (parts[1:] if self.has_sentinels else parts)[:1]
        return int(number[0]) if number and number[0] else 0

    @property
    def user(self) -> str | None:
        """User of Redis's ACL; None is its user `default`."""
        name, _, _ = self._credentials
        return unquote(name) or None

    @property
    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(_split(self.url).query))

    @property
    def _credentials(self) -> tuple[str, str, str]:
        return _split(self.url).netloc.rpartition("@")[0].partition(":")

    @property
    def _tls(self) -> dict[str, Any]:
        """Options of redis-py's connections."""
        return {"ssl": True, **self._tls_files} if self.has_tls else {}

    @property
    def _tls_files(self) -> dict[str, str]:
        return {name: self._query[name] for name in _TLS if name in self._query}

    @property
    def _sentinel_options(self) -> dict[str, Any]:
        """Options of connections to the sentinels. They answer at once or not at all."""
        own = {name.removeprefix("sentinel_"): self._query[name] for name in _SENTINEL if name in self._query}
        return {"socket_timeout": 1, "socket_connect_timeout": 1, **own, **self._tls}

    @property
    def _master_options(self) -> dict[str, Any]:
        _, _, password = self._credentials
        login = {"username": self.user, "password": unquote(password) or None}
        return {"db": self.database, **login, **self._tls}

    def client(self, **options: Any) -> redis.Redis:
        """A client of redis-py; `options` are those of its connections."""
        import redis.sentinel

        if not self.has_sentinels:
            return redis.Redis.from_url(self.url, **options)
        known_by = redis.sentinel.Sentinel(self.sentinels, sentinel_kwargs=self._sentinel_options)  # type: ignore[no-untyped-call]
        client: redis.Redis = known_by.master_for(self.master, **self._master_options, **options)  # type: ignore[no-untyped-call]
        return client

    def async_client(self, **options: Any) -> redis.asyncio.Redis:
        """A client for asyncio; `options` are those of its connections."""
        import redis.asyncio.sentinel

        client: redis.asyncio.Redis
        if not self.has_sentinels:
            client = redis.asyncio.Redis.from_url(self.url, **options)
            return client
        known_by = redis.asyncio.sentinel.Sentinel(self.sentinels, sentinel_kwargs=self._sentinel_options)  # type: ignore[no-untyped-call]
        client = known_by.master_for(self.master, **self._master_options, **options)
        return client

    @property
    def broker_url(self) -> str:
        """The URL as kombu reads it."""
        if not self.has_sentinels:
            return self.url.partition("?")[0] if self.has_tls else self.url
        login, at, _ = _split(self.url).netloc.rpartition("@")
        hosts = [(f"[{host}]" if ":" in host else host, port) for host, port in self.sentinels]
        return ";".join(f"sentinel://{login}{at}{host}:{port}/{self.database}" for host, port in hosts)

    @property
    def broker_options(self) -> dict[str, Any]:
        """Options of kombu's transport that the URL says."""
        if not self.has_sentinels:
            return {}
        return {"master_name": self.master, "sentinel_kwargs": self._sentinel_options}

    @property
    def broker_tls(self) -> dict[str, Any] | None:
        """Options of kombu for TLS; None is none. Unlike kombu's own default, certificates are always checked."""
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED, **self._tls_files} if self.has_tls else None
