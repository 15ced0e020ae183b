"""Schema migrations (alembic): `migrate` brings a database to this version of the code."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from shared.database.connections import driver_url, translate_errors


def _config(database_url: str) -> Config:
    config = Config()
    # Alembic expands % there.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str) -> None:
    """Bring the schema to the newest revision; several processes may call it at once.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached.
        ConfigurationError: it is too old.
    """
    with translate_errors():
        command.upgrade(_config(database_url), "head")


def is_current(database_url: str) -> bool:
    """Whether the schema is the one this code expects.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached.
    """
    return _revision(database_url) == ScriptDirectory.from_config(_config(database_url)).get_current_head()


def is_newer(database_url: str) -> bool:
    """Whether a release that has more revisions than this one has migrated the schema; raises as `is_current`."""
    current = _revision(database_url)
    known = {script.revision for script in ScriptDirectory.from_config(_config(database_url)).walk_revisions()}
    return current is not None and current not in known


def _revision(database_url: str) -> str | None:
    engine = create_engine(driver_url(database_url), connect_args={"connect_timeout": 3})
    try:
        with translate_errors(), engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
