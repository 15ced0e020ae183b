"""Schema migrations (alembic): `migrate` brings a database to this version of the code."""

from __future__ import annotations

import logging
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from shared.database.connections import complaint_of_access, translate_errors
from shared.database.watchdog import PATIENCE
from tuwen.errors import ConfigurationError, DatabaseUnavailable

log = logging.getLogger(__name__)


def _config(database_url: str) -> Config:
    config = Config()
    # Alembic expands % there.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config


def revisions() -> list[str]:
    """The revisions that this version knows, the oldest first."""
    scripts = ScriptDirectory.from_config(_config(""))
    return [script.revision for script in scripts.walk_revisions()][::-1]


def migrate(database_url: str) -> None:
    """Bring the schema to the newest revision; several processes may call it at once. One of a later version stays.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached.
        ConfigurationError: it is too old.
    """
    known, found = revisions(), _revision(database_url)
    if found and found not in known:
        log.warning("the schema %s is that of a later version, and stays; this version knows %s", found, known[-1])
        return
    with translate_errors():
        command.upgrade(_config(database_url), "head")


def is_current(database_url: str) -> bool:
    """Whether the schema is the one this code expects, or that of a later version, on which it runs as well.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached.
    """
    found, known = _revision(database_url), revisions()
    return found is not None and (found == known[-1] or found not in known)


def is_newer(database_url: str) -> bool:
    """Whether the schema is that of a later version; raises as `is_current`."""
    found = _revision(database_url)
    return found is not None and found not in revisions()


def require_schema(database_url: str) -> None:
    """Refuse to start on a schema of an earlier version. A PostgreSQL that is away passes: it may come.

    Raises:
        ConfigurationError: the database was not migrated to this version.
    """
    try:
        current = is_current(database_url)
    except DatabaseUnavailable:
        return
    if not current:
        found, newest = _revision(database_url), revisions()[-1]
        raise ConfigurationError(
            f"The database has {f'the schema {found}' if found else 'no schema'}, and this version of Tuwen needs "
            f"{newest}. Run: tuwen migrate. Processes of the version before go on beside it."
        )


def _revision(database_url: str) -> str | None:
    """Revision of the schema; None where there is none."""
    try:
        with psycopg.connect(database_url, connect_timeout=PATIENCE) as connection:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except psycopg.errors.UndefinedTable:
        return None
    except psycopg.Error as error:
        raise DatabaseUnavailable(complaint_of_access(error) or "PostgreSQL does not answer; try again.") from error
    return rows[0][0] if rows else None
