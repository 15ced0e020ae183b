"""Runs migrations in alembic, each in its own transaction, under a lock: processes that start together take turns.

A migration may leave its transaction (`op.get_context().autocommit_block()`), in order to make indexes of large tables
without stopping those who write to them.
"""

import time

from alembic import context
from sqlalchemy import Connection, create_engine, func, select

from shared.database.connections import complaint_of_age, driver_url
from shared.database.tables import Base
from tuwen.errors import ConfigurationError

MIGRATION_LOCK = 0x7475_7765_6E04
_LOOK = 0.2
"""Seconds between two looks whether another process has finished."""


def _wait_for_turn(connection: Connection) -> None:
    """Take the lock, which the end of the connection gives back.

    Not by waiting in PostgreSQL: an index that another process makes without a lock on the table waits for the end of
    every statement that is older, so each would wait for the other.
    """
    while not connection.execute(select(func.pg_try_advisory_lock(MIGRATION_LOCK))).scalar_one():
        connection.commit()
        time.sleep(_LOOK)
    connection.commit()


# Nothing is prepared, since a pooler's next client would find it.
engine = create_engine(
    driver_url(context.config.attributes["database_url"]),
    connect_args={"connect_timeout": 3, "prepare_threshold": None},
)
try:
    with engine.connect() as connection:
        version = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
        if complaint := complaint_of_age(int(version)):
            raise ConfigurationError(complaint)
        _wait_for_turn(connection)
        context.configure(
            connection=connection, target_metadata=Base.metadata, compare_type=True, transaction_per_migration=True
        )
        with context.begin_transaction():
            context.run_migrations()
finally:
    engine.dispose()
