"""Signed URLs of the API: whoever has one may fetch what it leads to, without a header and for a limited time.

Clients hand addresses of pictures on to browsers and other programs, which send no API key. The signature is an HMAC
with a secret that PostgreSQL keeps, so every API process and housekeeper makes and accepts the same ones. It covers the
path, every parameter, the time, and the key for which it was made: when that key is revoked, its URLs end with it.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Iterable
from hashlib import sha256
from urllib.parse import urlencode
from uuid import UUID

from shared.database import Database
from shared.settings import Settings
from tuwen.errors import Forbidden, LinkExpired

EXPIRES, KEY, SIGNATURE = "expires", "key", "signature"
"""Names of the parameters that are added."""
_SECRET = "signed-urls"  # noqa: S105 (its name)
_STEP = 60
"""Seconds: URLs that are made within a minute are equal, so that caches know them again."""


class UrlSigner:
    """Makes and checks signatures. Thread-safe."""

    def __init__(self, settings: Settings, database: Database):
        self._ttl = settings.result_url_ttl
        self._database = database
        self._secret: bytes | None = None

    @property
    def ready(self) -> bool:
        """Whether the next call will not ask PostgreSQL."""
        return self._secret is not None

    def load(self) -> bytes:
        """The secret, which is fetched once. Raises DatabaseUnavailable."""
        if self._secret is None:
            self._secret = self._database.secrets.get(_SECRET)
        return self._secret

    def sign(self, path: str, parameters: Iterable[tuple[str, str]] = (), *, key_id: UUID | None = None) -> str:
        """The path with its parameters and a signature, which holds for `result_url_ttl` seconds and up to one more
        minute.

        Args:
            path: as the API has it, without a host.
            key_id: the API key for whose owner it is made; None: it holds while the tenant has any key.
        """
        expires = math.ceil((time.time() + self._ttl) / _STEP) * _STEP
        signed = [*parameters, (EXPIRES, str(expires)), *([(KEY, key_id.hex)] if key_id else [])]
        return f"{path}?{urlencode([*signed, (SIGNATURE, self._signature(path, signed))])}"

    def verify(self, path: str, parameters: Iterable[tuple[str, str]]) -> UUID | None:
        """The key for which the URL was made, as `sign` was given it.

        Raises:
            Forbidden: the signature is not that of this path and these parameters.
            LinkExpired: it is, and its time is over.
        """
        sent = list(parameters)
        given = [value for name, value in sent if name == SIGNATURE]
        signed = [(name, value) for name, value in sent if name != SIGNATURE]
        # Bytes, because the comparison refuses text that is not ASCII.
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(), self._signature(path, signed).encode()):
            raise Forbidden("The signature of this URL is not valid; fetch a new URL from the API.")
        values = dict(signed)
        if float(values[EXPIRES]) < time.time():
            raise LinkExpired("This URL has expired; fetch a new one from the API.")
        return UUID(hex=values[KEY]) if KEY in values else None

    def _signature(self, path: str, parameters: Iterable[tuple[str, str]]) -> str:
        message = f"{path}?{urlencode(sorted(parameters))}"
        return hmac.new(self.load(), message.encode("utf-8", "replace"), sha256).hexdigest()


class ResultUrls:
    """Absolute URLs of results, for one reader: signed, so that they need no header."""

    def __init__(self, signer: UrlSigner, base_url: str, key_id: UUID | None = None):
        """`base_url`: where readers reach the API, without a trailing slash; `key_id` as in `UrlSigner.sign`."""
        self._signer = signer
        self._key_id = key_id
        self.base_url = base_url

    def image(self, job_id: UUID, candidate: int = 0) -> str:
        """URL of the image of a generate job, or of one of the candidates that it kept."""
        wanted = [("candidate", str(candidate))] if candidate else []
        return self.base_url + self._signer.sign(f"/v1/jobs/{job_id}/image", wanted, key_id=self._key_id)

    def preview(self, dataset_id: UUID, image: int) -> str:
        """URL of the preview of an image of a data set."""
        return self.base_url + self._signer.sign(
            f"/v1/datasets/{dataset_id}/items/{image}/preview", key_id=self._key_id
        )
