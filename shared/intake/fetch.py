"""The only HTTP client for addresses that clients choose: image URLs and webhooks.

The host is resolved here, all its addresses are vetted, and the connection goes to a vetted address itself, so a name
that resolves differently a moment later (DNS rebinding) changes nothing. TLS still verifies the name. Redirects are
followed here, so that each hop is vetted in the same way.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self

import httpcore
import httpx

from shared.settings import Settings
from tuwen.errors import FetchFailed, FetchRefused, PayloadTooLarge, UrlForbidden
from tuwen.version import __version__

Address = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]
Resolver = Callable[[str, int], Sequence[str]]
"""(host, port) → its addresses; raises OSError."""

MAX_REDIRECTS = 5
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_TRY_LATER = frozenset((408, 425, 429))
_SLICE = 16 * 1024

# The networks that the IANA special-purpose registries reserve, and multicast. They are listed here because the set
# that `ipaddress` calls global changed between patch releases of Python.
_NOT_PUBLIC: Networks = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's virtual host: formally routable, but a metadata service
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_EMBEDS_V4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))  # mapped; NAT64's well-known prefix
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?", re.ASCII | re.IGNORECASE)
# The unusual forms of IPv4 that inet_aton accepts and attackers use: 2130706433, 0177.0.0.1, 0x7f.1
_NUMERIC_HOST = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.ASCII | re.IGNORECASE)


def vet_url(url: str, settings: Settings) -> httpx.URL:
    """Check a URL without resolving its host, as the API does on submission.

    Raises:
        UrlForbidden: the URL is not http(s), has credentials or no valid host, or names an address that is not public.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlForbidden("this is not a URL") from error
    if parsed.scheme not in ("http", "https"):
        raise UrlForbidden("the URL must begin with http:// or https://")
    if parsed.userinfo:
        raise UrlForbidden("the URL must not contain credentials")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise UrlForbidden("the URL's port does not exist")
    _vet_host(parsed.raw_host.decode("ascii"), _networks(settings.fetch_allow_networks))
    return parsed


class Fetcher:
    """Fetches vetted URLs. Thread-safe; keeps connections alive; `settings.fetch_timeout` limits each whole call."""

    def __init__(
        self, settings: Settings, *, resolve: Resolver | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """`resolve` and `tls` replace the system's resolver and the public certificate authorities."""
        self._settings = settings
        allowed = _networks(settings.fetch_allow_networks)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(trust_env=False),
            network_backend=_VettingBackend(resolve or _system_addresses, allowed),
            max_connections=None,
            max_keepalive_connections=32,
            keepalive_expiry=15.0,
        )

    def get(self, url: str) -> bytes:
        """Fetch the body behind `url`, of at most `settings.max_image_bytes`, following at most five redirects.

        Raises:
            UrlForbidden: the URL or one it redirects to must not be reached; no connection was opened to that one.
            PayloadTooLarge: the body is larger than allowed.
            FetchRefused: the server refuses, or has nothing at this URL.
            FetchFailed: the network failed, time ran out, or the server asks to try later.
        """
        deadline = time.monotonic() + self._settings.fetch_timeout
        target = vet_url(url, self._settings)
        for _ in range(MAX_REDIRECTS + 1):
            with self._answer("GET", target, deadline, {"Accept": "image/*", "Accept-Encoding": "identity"}) as answer:
                if answer.status not in _REDIRECTS:
                    return self._body(answer)
                location = _header(answer, b"location")
            target = self._redirect_target(target, location)
        raise FetchRefused(f"the URL redirects more than {MAX_REDIRECTS} times")

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send `body`, follow no redirects, and return the status; the answer's body is not read.

        Raises:
            UrlForbidden: as in `get`.
            FetchFailed: the server did not answer.
        """
        deadline = time.monotonic() + self._settings.fetch_timeout
        with self._answer("POST", vet_url(url, self._settings), deadline, headers, body) as answer:
            return answer.status

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _answer(
        self, method: str, url: httpx.URL, deadline: float, headers: Mapping[str, str], content: bytes | None = None
    ) -> Iterator[httpcore.Response]:
        # httpcore passes these to our backend unchanged, so they can hold the deadline of the whole call instead of the
        # time that each read may take, which a server that sends single bytes would never exceed.
        timeouts = {"connect": deadline, "read": deadline, "write": deadline}
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = [("Host", url.netloc.decode("ascii")), ("User-Agent", f"tuwen/{__version__}"), *headers.items()]
        try:
            with self._pool.stream(
                method, target, headers=sent, content=content, extensions={"timeout": timeouts}
            ) as answer:
                yield answer
        except httpcore.TimeoutException as error:
            raise FetchFailed(f"{url.host} did not answer in {self._settings.fetch_timeout:g} s") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise FetchFailed(f"the connection to {url.host} failed") from error

    def _body(self, answer: httpcore.Response) -> bytes:
        _require_success(answer)
        limit = self._settings.max_image_bytes
        too_large = PayloadTooLarge(f"the file behind the URL is larger than {limit} bytes")
        if _header(answer, b"content-encoding").lower() not in ("", "identity"):
            # Compression was not requested, and it is how a small answer becomes gigabytes.
            raise FetchRefused("the server compresses although it was asked not to")
        length = _header(answer, b"content-length")
        if length.isascii() and length.isdigit() and int(length[:20]) > limit:
            raise too_large
        body = bytearray()
        for chunk in answer.iter_stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    def _redirect_target(self, base: httpx.URL, location: str) -> httpx.URL:
        if not location:
            raise FetchRefused("the URL redirects to nowhere")
        try:
            following = str(base.join(location))
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlForbidden("the URL redirects to something that is not a URL") from error
        return vet_url(following, self._settings)


class _VettingBackend(httpcore.NetworkBackend):
    """Connects only to permitted addresses. Here and in `_Stream`, `timeout` is a time of `time.monotonic`."""

    def __init__(self, resolve: Resolver, allowed: Networks) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        deadline = time.monotonic() if timeout is None else timeout
        addresses = _resolve_before(deadline, self._resolve, host, port)
        # All addresses are vetted before the first connection: a host with one forbidden address is suspicious.
        vetted = [_vet_address(address, self._allowed) for address in addresses]
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for left, address in zip(range(len(vetted), 0, -1), vetted, strict=True):
            share = _remaining(deadline, httpcore.ConnectTimeout) / left
            try:
                stream = self._sockets.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream)
        raise failure


class _Stream(httpcore.NetworkStream):
    """A socket all of whose operations end at the deadline of the whole call."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _SLICE):
            self._stream.write(buffer[start : start + _SLICE], _remaining(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _remaining(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _remaining(deadline: float | None, expired: type[httpcore.TimeoutException]) -> float:
    """Seconds until `deadline`; httpcore passes None only when it cleans up, where waiting is not worthwhile."""
    left = 0.0 if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise expired("out of time")
    return left


def _resolve_before(deadline: float, resolve: Resolver, host: str, port: int) -> Sequence[str]:
    """Resolve a host in a thread that can be abandoned, since getaddrinfo has no timeout."""
    answers: SimpleQueue[Sequence[str] | Exception] = SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(resolve(host, port))
        except Exception as error:  # noqa: BLE001 - raised again below, in the thread that asked
            answers.put(error)

    Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_remaining(deadline, httpcore.ConnectTimeout))
    except Empty as error:
        raise httpcore.ConnectTimeout("the host was not resolved in time") from error
    if isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_NONAME:
        raise FetchRefused(f"there is no host {host}") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


def _system_addresses(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _vet_host(host: str, allowed: Networks) -> None:
    try:
        ip_address(host)
    except ValueError:
        if not _HOST_NAME.fullmatch(host) or _NUMERIC_HOST.fullmatch(host):
            raise UrlForbidden("the URL has no valid host name or address") from None
        name = host.lower().rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761
            _vet_address("127.0.0.1", allowed)
    else:
        _vet_address(host, allowed)


def _vet_address(text: str, allowed: Networks) -> Address:
    address = ip_address(text)
    real = _embedded_v4(address)
    if not any(real in network for network in allowed) and not _is_public(real):
        raise UrlForbidden("the URL leads to an address that is not public")
    return address


def _embedded_v4(address: Address) -> Address:
    """The IPv4 host that an IPv6 address stands for, or the address itself."""
    if any(address in network for network in _EMBEDS_V4):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: Address) -> bool:
    if address.version == 6 and address not in _PUBLIC_V6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


@cache
def _networks(texts: tuple[str, ...]) -> Networks:
    return tuple(ip_network(text) for text in texts)


def _require_success(answer: httpcore.Response) -> None:
    if answer.status == 200:
        return
    if answer.status >= 500 or answer.status in _TRY_LATER:
        wait = _header(answer, b"retry-after")
        seconds = float(wait[:6]) if wait.isascii() and wait.isdigit() else None
        raise FetchFailed(f"the server answered with status {answer.status}", retry_after=seconds)
    raise FetchRefused(f"the server answered with status {answer.status}")


def _header(answer: httpcore.Response, name: bytes) -> str:
    for key, value in answer.headers:
        if key.lower() == name:
            return value.decode("utf-8", "replace").strip()
    return ""
