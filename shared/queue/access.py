"""What Tuwen may do in Redis: the rights that its user needs, and a check at the start that it has them.

The commands, keys and channels were found by running the whole system under ever fewer of them;
tests/deployment/test_guarded_servers.py runs it under exactly these.
"""

from __future__ import annotations

from typing import Any

from redis import Redis, exceptions

from shared.queue.app import connect
from shared.redis_place import RedisPlace
from shared.settings import Settings
from tuwen.errors import ConfigurationError

KEYS = ("tuwen*", "_kombu.binding*", "*.celery.pidbox*", "celeryev.*")
CHANNELS = ("tuwen:*", "/{db}.celeryev/*", "/{db}.celery.pidbox")
"""The pattern of a subscription has to be an allowed one to the letter; `{db}` is the number in the URL."""

_KEY = "tuwen:probe"
_PROBES: dict[str, tuple[Any, ...]] = {
    "PING": (),
    "INFO": ("server",),
    "TIME": (),
    "GET": (_KEY,),
    "SET": (_KEY, "", "PX", 1),
    "MGET": (_KEY,),
    "EXISTS": (_KEY,),
    "SCAN": (0, "COUNT", 1),
    "LLEN": (_KEY,),
    "LTRIM": (_KEY, 0, 0),
    "BRPOP": (_KEY, 0.01),
    "BLPOP": (_KEY, 0.01),
    "BLMPOP": (0.01, 1, _KEY, "RIGHT"),
    "HGETALL": (_KEY,),
    "PUBLISH": ("tuwen:probe", ""),
    "SADD": (_KEY, ""),
    "SREM": (_KEY, ""),
    "SMEMBERS": (_KEY,),
    "ZADD": (_KEY, 0, ""),
    "ZREM": (_KEY, ""),
    "ZRANGEBYSCORE": (_KEY, 0, 0),
    "HINCRBYFLOAT": (_KEY, "", 0),
    "DEL": (_KEY,),
    "LPUSH": (_KEY, ""),
    "SCRIPT LOAD": ("return 1",),
    "SCRIPT EXISTS": ("",),
    "EVALSHA": ("", 0),
    "MULTI": (),
    "EXEC": (),
}
"""Each command that is used, with arguments that change nothing for longer than a moment."""
_OF_CONNECTIONS = ("HELLO", "AUTH", "SELECT", "SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE")


def acl_rules(database: int = 0) -> str:
    """The rules of an ACL with all that the processes need in this numbered database, and nothing else."""
    commands = sorted(name.lower().replace(" ", "|") for name in (*_OF_CONNECTIONS, *_PROBES))
    channels = [f"&{channel.format(db=database)}" for channel in CHANNELS]
    return " ".join(["resetchannels", *channels, *(f"~{key}" for key in KEYS), "-@all", *(f"+{c}" for c in commands)])


def complaint_of_access(error: BaseException) -> str | None:
    """What to say of Redis's refusal of a password, a certificate or a command; None for any other error."""
    if isinstance(error, exceptions.NoPermissionError):
        return f"Redis refuses a right that Tuwen needs ({error}): docs/operations.md has the rules for its user's ACL."
    if isinstance(error, exceptions.AuthenticationError):
        return f"Redis refuses the user or the password: {error}"
    if "SSL" in str(error) and isinstance(error, exceptions.ConnectionError):
        return f"The connection to Redis was refused: {error}"
    return None


def require_access(settings: Settings) -> None:
    """Refuse a Redis that refuses us, before anything waits for it without a word. One that is away passes.

    Raises:
        ConfigurationError: wrong user, password or certificates, or a command or channel that the user may not use.
    """
    try:
        with connect(settings) as client, client.client() as session:  # one connection for all
            place = RedisPlace(settings.redis_url)
            for command, arguments in _PROBES.items():
                _probe(session, command, arguments, user=place.user or "default")
            with client.pubsub() as subscription:
                subscription.subscribe("tuwen:probe")
                subscription.psubscribe(*(channel.format(db=place.database) for channel in CHANNELS))
                for _ in range(1 + len(CHANNELS)):
                    subscription.get_message(timeout=1)
    except (exceptions.RedisError, OSError) as error:
        if complaint := complaint_of_access(error) or _complaint_of_end(error, RedisPlace(settings.redis_url)):
            raise ConfigurationError(f"TUWEN_REDIS_URL: {complaint}") from error


def _complaint_of_end(error: BaseException, place: RedisPlace) -> str | None:
    """With TLS 1.3 a server that wants a client's certificate ends the connection after the client took it for made."""
    ended = any(word in str(error) for word in ("EOF", "closed", "reset", "Broken pipe"))
    if not (ended and place.has_tls and not place.has_certificate):
        return None
    return (
        "Redis ended the connection before it answered; "
        "if it wants certificates of its clients, name ours with ssl_certfile and ssl_keyfile"
    )


def _probe(session: Redis, command: str, arguments: tuple[Any, ...], user: str) -> None:
    try:
        session.execute_command(*command.split(), *arguments)  # type: ignore[no-untyped-call]
    except exceptions.NoPermissionError as error:
        raise ConfigurationError(
            f"TUWEN_REDIS_URL: Redis does not let the user {user} use {command} "
            f"({error}): docs/operations.md has the rules for its ACL."
        ) from error
    except exceptions.ResponseError:  # of the command itself, which is allowed
        return
