"""Runs migrations in alembic: in one transaction, under a lock, so that processes that start together take turns."""

from alembic import context
from sqlalchemy import create_engine, func, select

from shared.database.connections import complaint_of_age, driver_url
from shared.database.tables import Base
from tuwen.errors import ConfigurationError

MIGRATION_LOCK = 0x7475_7765_6E02

# Nothing is prepared, since a pooler's next client would find it.
engine = create_engine(
    driver_url(context.config.attributes["database_url"]),
    connect_args={"connect_timeout": 3, "prepare_threshold": None},
)
try:
    with engine.begin() as connection:
        version = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
        if complaint := complaint_of_age(int(version)):
            raise ConfigurationError(complaint)
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
        context.run_migrations()
finally:
    engine.dispose()
