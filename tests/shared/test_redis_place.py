"""Where a URL says that Redis is, and URLs that say nothing that can be."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from shared.queue import celery_app
from shared.redis_place import RedisPlace
from shared.settings import Settings
from tuwen.errors import ConfigurationError

SENTINELS = "redis+sentinel://me:p%40ss@a:1,[::1]:2,c/the%20master/3?sentinel_password=s"


def test_sentinels() -> None:
    place = RedisPlace(SENTINELS)
    assert place.sentinels == [("a", 1), ("::1", 2), ("c", 26379)]
    assert (place.master, place.database, place.user) == ("the master", 3, "me")
    client = place.client()
    assert client.connection_pool.connection_kwargs["password"] == "p@ss"
    assert client.connection_pool.connection_kwargs["db"] == 3
    [first, *_] = client.connection_pool.sentinel_manager.sentinels
    assert first.connection_pool.connection_kwargs["password"] == "s"


def test_celery_checks_certificates(tmp_path: Path) -> None:
    """kombu checks none by default."""
    ca = tmp_path / "ca.pem"
    ca.touch()
    conf = celery_app(Settings(redis_url=f"rediss://h:1/2?ssl_ca_certs={ca}")).conf
    assert conf.broker_url == "rediss://h:1/2"
    assert conf.broker_use_ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(ca)}
    assert celery_app(Settings(redis_url="rediss://h:1/2")).conf.broker_use_ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert celery_app(Settings(redis_url="redis://h:1/2")).conf.broker_use_ssl is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h", "must begin with redis://"),
        ("redis://h:port/0", "Port could not be cast"),
        ("redis://h/zero", "the number of a database"),
        ("redis+sentinel://a,b", "name the sentinels and the master"),
        ("redis+sentinel://a,b/", "name the sentinels and the master"),
        ("redis+sentinel://,b/master", "name the sentinels and the master"),
        ("redis+sentinel://a/master?ssl_ca_certs=x", "ssl_ca_certs: unknown; this scheme takes sentinel_username"),
        ("rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs: unknown"),
        ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "there is no file /nowhere/ca.pem"),
    ],
)
def test_what_cannot_be_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^TUWEN_REDIS_URL: .*{said}"):
        Settings(redis_url=url)
