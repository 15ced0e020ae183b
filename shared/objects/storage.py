"""Object storage: a local folder, or a bucket of any S3-compatible service.

One store holds everything that is too big for a row: uploaded images, generated images, exported shards.
Keys are made by us (`content_key`), yet every key is checked again here, because some of them come back
through URLs. The store keeps no media types, since a folder cannot: the suffix of the key tells.

Not for use across `fork()`: the runtime under obstore does not survive it. Open a store in the process that uses it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from errno import ENOTDIR
from hashlib import sha256
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Self, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from shared.settings import Settings
from tuwen.errors import ConfigurationError, NotFound, StorageUnavailable

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import ClientConfig, RetryConfig, S3Config

# A service that is gone must fail a job in seconds: a refused connection is tried again for about a second, one
# that is not answered for `connect_timeout`, a silent one for `read_timeout`, and nothing is tried again after
# `retry_timeout`. The whole-request timeout is only there for large objects on slow lines.
_CLIENT: ClientConfig = {
    "connect_timeout": timedelta(seconds=3),
    "read_timeout": timedelta(seconds=10),
    "timeout": timedelta(seconds=120),
}
_RETRY: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=8),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
_LONGEST_SIGNATURE = timedelta(days=7)  # of AWS Signature Version 4
_CHUNK = 256 * 1024
_LISTED_AT_ONCE = 1000  # as many as S3 lists, or deletes, in one request
_SPOOLED = 8 * 2**20

# ASCII only and no leading dot, so that a key is the same text in a URL, a file name and a listing, and so that `..`
# and obstore's own temporary names (`key#1`) cannot be spelled.
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,127}"
_KEY = re.compile(rf"(?=.{{1,512}}\Z){_SEGMENT}(?:/{_SEGMENT})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size: int
    last_modified: datetime


def content_key(prefix: str, data: bytes, suffix: str = "") -> str:
    """Key of `data` by its content, such as `results/ab/<SHA-256>.png`; the middle part keeps folders small."""
    digest = sha256(data).hexdigest()
    return f"{prefix}/{digest[:2]}/{digest}{suffix}"


def file_key(tenant: str, sha256: str) -> str:
    """Key of an uploaded file. Each tenant has a copy, so that what one deletes another does not miss."""
    return f"files/{tenant}/{sha256[:2]}/{sha256}"


class ObjectStore:
    """Blocking and thread-safe; every method raises `StorageUnavailable` when the store cannot be used.

    A key that no object could have is answered like one that no object has, except by the methods that write:
    there it is a mistake of ours, and a `ValueError`.
    """

    def __init__(self, backend: LocalStore | S3Store, signer: S3Store | None, fresh: timedelta):
        self._backend = backend
        self._signer = signer
        self._fresh = fresh
        self._root = backend.prefix if isinstance(backend, LocalStore) else None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The store that `settings.storage_url` names; a local folder is created.

        Raises:
            ConfigurationError: the URL names no store, or the folder cannot be created.
        """
        # Half the age at which orphans are collected: what is younger will not vanish under a new row.
        fresh = timedelta(seconds=settings.orphan_age / 2)
        scheme, separator, place = settings.storage_url.partition("://")
        if not separator or not place or scheme not in ("file", "s3"):
            raise ConfigurationError("TUWEN_STORAGE_URL must be file://FOLDER or s3://BUCKET/PREFIX")
        if scheme == "file":
            return cls(_open_folder(place), None, fresh)
        backend = open_bucket(place, settings, settings.s3_endpoint)
        signer = open_bucket(place, settings, settings.s3_public_endpoint or settings.s3_endpoint)
        return cls(backend, signer, fresh)

    def put(self, key: str, data: bytes, media_type: str) -> None:
        """Write or replace an object. Readers see the old one or the new one, never a part."""
        _require_key(key)
        # A folder refuses attributes; a bucket needs the type, since it serves the presigned URLs itself.
        attributes: Attributes | None = None if self._root else {"Content-Type": media_type}
        with self._translated(key):
            obstore.put(self._backend, key, data, attributes=attributes, use_multipart=False)

    def put_once(self, key: str, data: bytes, media_type: str) -> None:
        """Write an object under a key made from its content, unless it lies there already.

        An old one is written again: its new date keeps it from being collected as an orphan between this call
        and the commit of the row that will name it.
        """
        try:
            stored = self.head(key)
        except NotFound:
            stored = None
        if stored is None or datetime.now(UTC) - stored.last_modified > self._fresh:
            self.put(key, data, media_type)

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            NotFound: no such object, in a store that works.
        """
        _known_key(key)
        with self._translated(key):
            return bytes(obstore.get(self._backend, key).bytes())

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes in chunks; raises `NotFound` at the call, not at the first chunk."""
        _known_key(key)
        with self._translated(key):
            chunks = obstore.get(self._backend, key).stream(min_chunk_size=_CHUNK)
        return self._chunks(key, chunks)

    def read(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes of the object, from byte `start` of it; raises `NotFound` as `get` does."""
        size = self.head(key).size
        if start >= size or length <= 0:
            return b""
        with self._translated(key):
            return bytes(obstore.get_range(self._backend, key, start=start, end=min(size, start + length)))

    def put_stream(self, key: str, chunks: Iterator[bytes], media_type: str) -> int:
        """Write or replace an object that is too large for memory; how many bytes it has.

        As with `put`, nobody ever sees a part of it, also when `chunks` raises.
        """
        _require_key(key)
        attributes: Attributes | None = None if self._root else {"Content-Type": media_type}
        with SpooledTemporaryFile(max_size=_SPOOLED) as file:
            # Not handed to obstore as they are: they may come from it, and it cannot read while it writes.
            for chunk in chunks:
                file.write(chunk)
            size = file.tell()
            file.seek(0)
            with self._translated(key):
                obstore.put(self._backend, key, cast("IO[bytes]", file), attributes=attributes)
        return size

    def head(self, key: str) -> StoredObject:
        """What is known of the object; raises `NotFound` as `get` does."""
        _known_key(key)
        with self._translated(key):
            meta = obstore.head(self._backend, key)
        return StoredObject(key, meta["size"], meta["last_modified"])

    def delete(self, key: str) -> None:
        """Remove the object; removing what is not there is no error."""
        _require_key(key)
        try:
            with self._translated(key):
                obstore.delete(self._backend, key)
        except NotFound:
            pass

    def delete_folder(self, prefix: str) -> None:
        """Remove every object in the folder `prefix`; of those that are written meanwhile some may stay."""
        _require_key(prefix)
        if self._root is not None:
            # As a whole: single objects would leave empty folders behind.
            shutil.rmtree(self._root / prefix, ignore_errors=True)
            if os.path.lexists(self._root / prefix):
                raise StorageUnavailable(f"not all objects in {prefix!r} could be removed")
            return
        with self._translated(prefix):
            for page in obstore.list(self._backend, prefix, chunk_size=_LISTED_AT_ONCE):
                obstore.delete(self._backend, [meta["path"] for meta in page])

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects in the folder `prefix`, read page by page, in no certain order."""
        if prefix:
            _require_key(prefix)
        with self._translated(prefix):
            for page in obstore.list(self._backend, prefix or None, chunk_size=_LISTED_AT_ONCE):
                for meta in page:
                    yield StoredObject(meta["path"], meta["size"], meta["last_modified"])

    def walk(self, prefix: str, after: str = "") -> Iterator[StoredObject]:
        """The objects in the folder `prefix`, always in the same order, from the first one beyond the key `after`.

        For those who do a part now and the rest later: what comes before is not read again.
        """
        _require_key(prefix)
        with self._translated(prefix):
            if self._root is not None:
                yield from self._descend(prefix, tuple(after.split("/")))
                return
            # S3 lists in the order of keys, and starts where it is told to.
            for page in obstore.list(self._backend, prefix, offset=after or None, chunk_size=_LISTED_AT_ONCE):
                for meta in page:
                    yield StoredObject(meta["path"], meta["size"], meta["last_modified"])

    def _descend(self, folder: str, after: tuple[str, ...]) -> Iterator[StoredObject]:
        """Folder by folder in the order of their names, leaving out those that lie wholly before `after`."""
        found = obstore.list_with_delimiter(self._backend, folder)
        objects = {meta["path"]: meta for meta in found["objects"]}
        for path in sorted([*objects, *found["common_prefixes"]]):
            parts = tuple(path.split("/"))
            if meta := objects.get(path):
                if parts > after:
                    yield StoredObject(path, meta["size"], meta["last_modified"])
            elif parts >= after[: len(parts)]:
                yield from self._descend(path, after)

    def url(self, key: str, ttl: float) -> str | None:
        """A presigned URL that GETs the object for `ttl` seconds (at most 7 days), as clients reach the service.

        None for a local folder: there the API serves the bytes itself. That the object exists is not checked.
        """
        _known_key(key)
        if self._signer is None:
            return None
        lifetime = max(timedelta(seconds=1), min(timedelta(seconds=ttl), _LONGEST_SIGNATURE))
        with self._translated(key):
            return obstore.sign(self._signer, "GET", key, lifetime)

    def check(self) -> None:
        """Answer whether the store can be used now, by returning: one access check, or one empty listing."""
        if self._root is not None:
            if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
                raise StorageUnavailable("the storage folder is missing or cannot be written")
            return
        for _ in self.list("readiness"):
            return

    def _chunks(self, key: str, chunks: obstore.BytesStream) -> Iterator[bytes]:
        with self._translated(key):
            for chunk in chunks:
                yield bytes(chunk)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if self._store_is_missing(error):
                raise StorageUnavailable("the storage folder or bucket does not exist") from error
            raise NotFound(f"no object {key!r}") from error
        except (BaseError, OSError) as error:
            if self._root is not None and f"(os error {ENOTDIR})" in str(error):
                raise NotFound(f"no object {key!r}") from error  # a key that goes on below an object
            raise StorageUnavailable("object storage failed or did not answer") from error

    def _store_is_missing(self, error: FileNotFoundError) -> bool:
        """A missing object and a missing store (or a proxy's 404 page) arrive as the same error."""
        if self._root is not None:
            return not self._root.is_dir()
        # S3 says which of the two in the body, and to HEAD, whose answer has none, it cannot say.
        return "<Code>NoSuchKey</Code>" not in str(error) and " HEAD " not in str(error)


def _open_folder(place: str) -> LocalStore:
    # Taken literally, not percent-decoded: people write the folder's name, whatever is in it.
    try:
        folder = Path(place).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    except (OSError, ValueError, BaseError) as error:
        raise ConfigurationError(f"the storage folder {place!r} cannot be used: {error}") from error


def open_bucket(place: str, settings: Settings, endpoint: str | None) -> S3Store:
    """The bucket and prefix `BUCKET/PREFIX`, with the settings' credentials; raises `ConfigurationError`."""
    bucket, _, prefix = place.partition("/")
    # Path style, because a service under an address or a plain host name knows no bucket subdomains.
    config: S3Config = {"region": settings.s3_region, "virtual_hosted_style_request": False}
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
    secret = settings.s3_secret_access_key
    if (settings.s3_access_key_id is None) != (secret is None):
        raise ConfigurationError("give both TUWEN_S3_ACCESS_KEY_ID and TUWEN_S3_SECRET_ACCESS_KEY, or neither")
    # Without a key, AWS's own chain applies: environment, web identity, instance profile.
    if settings.s3_access_key_id and secret:
        config["access_key_id"] = settings.s3_access_key_id
        config["secret_access_key"] = secret.get_secret_value()
    client: ClientConfig = {**_CLIENT, "allow_http": bool(endpoint and endpoint.startswith("http://"))}
    try:
        return S3Store(
            bucket, prefix=prefix.strip("/") or None, config=config, client_options=client, retry_config=_RETRY
        )
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"the S3 storage cannot be set up: {error}") from error


def _require_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a storage key: {key!r}")


def _known_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise NotFound(f"no object {key!r}")
