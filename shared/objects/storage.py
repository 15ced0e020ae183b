"""Object storage: a local folder, or a bucket of any S3-compatible service.

One store holds everything that is too big for a row: uploaded images, generated images, exported shards.
We make all keys (`content_key`), but every key is checked again here, because some of them come back in
URLs. The store keeps no media types, since a folder cannot: the suffix of the key tells the type.

A store does not survive `fork()`, since the runtime of obstore does not. Open a store in the process that uses it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from errno import EACCES, EDQUOT, ENOSPC, ENOTDIR, EPERM, EROFS
from hashlib import sha256
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Self, cast

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from shared.settings import Settings
from tuwen.errors import ConfigurationError, NotFound, StorageUnavailable

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Config

# A service that is down must fail a job within seconds: a refused connection is retried for about a second, an
# unanswered one for `connect_timeout`, a silent one for `read_timeout`, and nothing is retried after `retry_timeout`.
# The timeout of the whole request only matters for large objects on slow lines.
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
_LONGEST_SIGNATURE = timedelta(days=7)  # the limit of AWS Signature Version 4
_CHUNK = 256 * 1024
_LISTED_AT_ONCE = 1000  # the number that S3 lists, or deletes, in one request
_SPOOLED = 8 * 2**20
_PROBE_KEY = "readiness/probe"
_PROBE = b"tuwen\n" * 2048  # more than a file system keeps in the entry of a file, which it writes to a full disk too

# Keys are ASCII without leading dots, so that a key is the same text in a URL, a file name and a listing, and so that
# `..` and obstore's own temporary names (`key#1`) are no keys.
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,127}"
_KEY = re.compile(rf"(?=.{{1,512}}\Z){_SEGMENT}(?:/{_SEGMENT})*", re.ASCII)


_AWAY = 5.0
"""Seconds after which another attempt at a storage that is away makes sense."""
_MISSING_FOLDER = "the storage folder is missing: mount or create it again"
_FOLDER_FAILURES = {
    ENOSPC: "the disk of the storage folder is full: make room there",
    EDQUOT: "the storage folder's quota of disk space is used up: raise it, or make room there",
    EROFS: "the disk of the storage folder is read-only",
    EACCES: "the storage folder does not let us in: give this process's user the right to read and write in it",
    EPERM: "the storage folder cannot be changed: it is protected, or belongs to another user",
}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Metadata of an object."""

    key: str
    size: int
    last_modified: datetime


class StorageRefused(StorageUnavailable):
    """The storage answers and will not serve us until a setting is corrected: wrong credentials, or no such bucket."""


def content_key(prefix: str, data: bytes, suffix: str = "") -> str:
    """Key of `data` by its content, such as `results/ab/<SHA-256>.png`; the middle part keeps folders small."""
    digest = sha256(data).hexdigest()
    return f"{prefix}/{digest[:2]}/{digest}{suffix}"


def file_key(tenant: str, sha256: str) -> str:
    """Key of an uploaded file. Each tenant has its own copy, so that deleting one does not affect another tenant."""
    return f"files/{tenant}/{sha256[:2]}/{sha256}"


class ObjectStore:
    """A store of objects. Blocking and thread-safe; every method raises `StorageUnavailable` when the store fails.

    An impossible key is answered like the key of a missing object, except by the methods that write: there it is a
    mistake of ours, and raises `ValueError`.
    """

    def __init__(self, backend: LocalStore | S3Store, signer: S3Store | None, fresh: timedelta):
        self._backend = backend
        self._signer = signer
        self._fresh = fresh
        self._root = backend.prefix if isinstance(backend, LocalStore) else None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the store that `settings.storage_url` names; a local folder is created.

        Raises:
            ConfigurationError: the URL names no store, or the folder cannot be created.
        """
        # Half the age at which orphans are collected: a younger object will not be collected while a new row names it.
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
        """Write or replace an object. Readers see the old or the new bytes, never a part."""
        _require_key(key)
        self._require_folder()
        # A folder refuses attributes; a bucket needs the type, since it serves the presigned URLs itself.
        attributes: Attributes | None = None if self._root else {"Content-Type": media_type}
        with self._translate_errors(key):
            obstore.put(self._backend, key, data, attributes=attributes, use_multipart=False)

    def put_once(self, key: str, data: bytes, media_type: str) -> None:
        """Write an object under a key made from its content, unless it already exists.

        An old object is written again: its new date keeps it from being collected as an orphan between this call
        and the commit of the row that will name it.
        """
        try:
            stored = self.head(key)
        except NotFound:
            stored = None
        if stored is None or datetime.now(UTC) - stored.last_modified > self._fresh:
            self.put(key, data, media_type)

    def get(self, key: str) -> bytes:
        """Read the object's bytes.

        Raises:
            NotFound: the store works, but has no such object.
        """
        _reject_impossible_key(key)
        with self._translate_errors(key):
            return bytes(obstore.get(self._backend, key).bytes())

    def stream(self, key: str, span: tuple[int, int] | None = None) -> Iterator[bytes]:
        """Read the object's bytes in chunks; raises `NotFound` at the call, not at the first chunk.

        With `span`, only the bytes from its first number up to but not including its second are read, of which there
        must be at least one.
        """
        _reject_impossible_key(key)
        options: GetOptions = {} if span is None else {"range": span}
        with self._translate_errors(key):
            chunks = obstore.get(self._backend, key, options=options).stream(min_chunk_size=_CHUNK)
        return self._chunks(key, chunks)

    def read(self, key: str, start: int, length: int) -> bytes:
        """Read at most `length` bytes of the object, from byte `start` on; raises `NotFound` as `get` does."""
        size = self.head(key).size
        if start >= size or length <= 0:
            return b""
        with self._translate_errors(key):
            return bytes(obstore.get_range(self._backend, key, start=start, end=min(size, start + length)))

    def put_stream(self, key: str, chunks: Iterator[bytes], media_type: str) -> int:
        """Write or replace an object that is too large for memory; returns its size in bytes.

        As with `put`, readers never see a part of it, even when `chunks` raises.
        """
        _require_key(key)
        self._require_folder()
        attributes: Attributes | None = None if self._root else {"Content-Type": media_type}
        with SpooledTemporaryFile(max_size=_SPOOLED) as file:
            # The chunks are not passed on to obstore directly: they may come from it, and it cannot read while it
            # writes.
            for chunk in chunks:
                file.write(chunk)
            size = file.tell()
            file.seek(0)
            with self._translate_errors(key):
                obstore.put(self._backend, key, cast("IO[bytes]", file), attributes=attributes)
        return size

    def head(self, key: str) -> StoredObject:
        """The object's metadata; raises `NotFound` as `get` does."""
        _reject_impossible_key(key)
        with self._translate_errors(key):
            meta = obstore.head(self._backend, key)
        return StoredObject(key, meta["size"], meta["last_modified"])

    def delete(self, key: str) -> None:
        """Remove the object; removing a missing object is not an error."""
        _require_key(key)
        try:
            with self._translate_errors(key):
                obstore.delete(self._backend, key)
        except NotFound:
            pass

    def delete_folder(self, prefix: str) -> None:
        """Remove every object in the folder `prefix`; some of those that are written meanwhile may stay."""
        _require_key(prefix)
        if self._root is not None:
            # The folder is removed as a whole: removing single objects would leave empty folders behind.
            shutil.rmtree(self._root / prefix, ignore_errors=True)
            if os.path.lexists(self._root / prefix):
                raise StorageUnavailable(f"not all objects in {prefix!r} could be removed")
            return
        with self._translate_errors(prefix):
            for page in obstore.list(self._backend, prefix, chunk_size=_LISTED_AT_ONCE):
                obstore.delete(self._backend, [meta["path"] for meta in page])

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield all objects in the folder `prefix`, read page by page, in no particular order."""
        if prefix:
            _require_key(prefix)
        with self._translate_errors(prefix):
            for page in obstore.list(self._backend, prefix or None, chunk_size=_LISTED_AT_ONCE):
                for meta in page:
                    yield StoredObject(meta["path"], meta["size"], meta["last_modified"])

    def walk(self, prefix: str, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects in the folder `prefix`, always in the same order, from the first key after `after` on.

        This serves callers that continue later: the objects before `after` are not read again.
        """
        _require_key(prefix)
        with self._translate_errors(prefix):
            if self._root is not None:
                yield from self._descend(prefix, tuple(after.split("/")))
                return
            # S3 lists in the order of keys, and can start after a given key.
            for page in obstore.list(self._backend, prefix, offset=after or None, chunk_size=_LISTED_AT_ONCE):
                for meta in page:
                    yield StoredObject(meta["path"], meta["size"], meta["last_modified"])

    def _descend(self, folder: str, after: tuple[str, ...]) -> Iterator[StoredObject]:
        """Walk folder by folder in the order of their names, skipping folders that lie entirely before `after`."""
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
        """A presigned URL with which clients can GET the object for `ttl` seconds (at most 7 days).

        None for a local folder, whose objects the API serves itself. Whether the object exists is not checked.
        """
        _reject_impossible_key(key)
        if self._signer is None:
            return None
        lifetime = max(timedelta(seconds=1), min(timedelta(seconds=ttl), _LONGEST_SIGNATURE))
        with self._translate_errors(key):
            return obstore.sign(self._signer, "GET", key, lifetime)

    @property
    def is_folder(self) -> bool:
        """Whether this is a local folder: there, a failure that lasts is never a busy service's."""
        return self._root is not None

    def check(self) -> None:
        """Check that objects can be written and read now: one small object each way.

        Raises:
            StorageRefused: they cannot, until a setting is corrected.
            StorageUnavailable: they cannot now.
        """
        self.put(_PROBE_KEY, _PROBE, "text/plain")
        if self.get(_PROBE_KEY) != _PROBE:
            raise StorageUnavailable("the object storage does not keep what is written", retry_after=_AWAY)

    def _chunks(self, key: str, chunks: obstore.BytesStream) -> Iterator[bytes]:
        with self._translate_errors(key):
            for chunk in chunks:
                yield bytes(chunk)

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if self._store_is_missing(error):
                raise self._failure(error) from error
            raise NotFound(f"no object {key!r}") from error
        except (BaseError, OSError) as error:
            if self._root is not None and f"(os error {ENOTDIR})" in str(error) and self._root.is_dir():
                raise NotFound(f"no object {key!r}") from error  # the key continues below an object
            raise self._failure(error) from error

    def _require_folder(self) -> None:
        """Raise when the folder is gone: a write would make it again, beside the objects that are elsewhere now."""
        if self._root is not None and not self._root.is_dir():
            raise StorageUnavailable(_MISSING_FOLDER, retry_after=_AWAY)

    def _store_is_missing(self, error: FileNotFoundError) -> bool:
        """Tell a missing store (or a proxy's 404 page) from a missing object, which arrive as the same error."""
        if self._root is not None:
            return not self._root.is_dir()
        # S3 says in the body which of the two it is; an answer to HEAD has no body, and counts as a missing object.
        return "<Code>NoSuchKey</Code>" not in str(error) and " HEAD " not in str(error)

    def _failure(self, error: Exception) -> StorageUnavailable:
        """The error as people may see it: what is wrong with the store, and what to do about it."""
        said = str(error)
        if self._root is None:
            if isinstance(error, PermissionDeniedError | UnauthenticatedError):
                return StorageRefused(
                    "the object storage refuses our credentials: correct TUWEN_S3_ACCESS_KEY_ID and "
                    "TUWEN_S3_SECRET_ACCESS_KEY, or give their owner the right to read and write"
                )
            if "<Code>NoSuchBucket</Code>" in said:
                return StorageRefused("the bucket does not exist: create it, or correct TUWEN_STORAGE_URL")
            return StorageUnavailable("object storage failed or did not answer", retry_after=_AWAY)
        if not self._root.is_dir():
            return StorageUnavailable(_MISSING_FOLDER, retry_after=_AWAY)
        for code, what in _FOLDER_FAILURES.items():
            if f"(os error {code})" in said or getattr(error, "errno", None) == code:
                return StorageUnavailable(what, retry_after=_AWAY)
        return StorageUnavailable("the storage folder failed", retry_after=_AWAY)


def _open_folder(place: str) -> LocalStore:
    # The path is taken literally, not percent-decoded: people write the folder's name with any characters.
    try:
        folder = Path(place).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    except (OSError, ValueError, BaseError) as error:
        raise ConfigurationError(f"the storage folder {place!r} cannot be used: {error}") from error


def open_bucket(place: str, settings: Settings, endpoint: str | None) -> S3Store:
    """Open the bucket and prefix `BUCKET/PREFIX`, with the settings' credentials; raises `ConfigurationError`."""
    bucket, _, prefix = place.partition("/")
    # Path style, because a service at an IP address or a plain host name has no subdomains for buckets.
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


def _reject_impossible_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise NotFound(f"no object {key!r}")
