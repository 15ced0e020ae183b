"""Migrations after the previous release only add: its processes go on beside the new schema, or come back to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command

from api.cli import doctor
from shared.database import Database
from shared.migrations import _config, is_current, migrate, require_schema
from shared.settings import Settings
from tests.support.plain_sql import Sql
from tests.support.previous_release import previous_release
from tuwen.errors import ConfigurationError

VERSIONS = Path(__file__).parents[3] / "shared" / "migrations" / "versions"
_INDEXES = "indexes made and dropped while others work, a column with a default, and when tables are vacuumed"
EXEMPT = {
    ("0011", "execute"): "triggers that add up what each tenant stores, and refuse nothing",
    **{("0014", call): _INDEXES for call in ("execute", "get_context", "get_bind")},
}
"""(revision, operation) → why the previous release goes on nevertheless."""

HARMLESS = {"create_table", "create_index", "drop_index", "bulk_insert", "f"}


def test_new_processes_refuse_a_schema_of_an_earlier_version(settings: Settings) -> None:
    require_schema(settings.database_url)
    command.downgrade(_config(settings.database_url), previous_release().schema)
    with pytest.raises(ConfigurationError, match=f"has the schema {previous_release().schema}.*Run: tuwen migrate"):
        require_schema(settings.database_url)
    command.downgrade(_config(settings.database_url), "base")
    with pytest.raises(ConfigurationError, match="has no schema"):
        require_schema(settings.database_url)
    require_schema("postgresql://nobody@127.0.0.1:9/nothing")  # it may be migrated when it comes


def test_a_schema_of_a_later_version_is_left_as_it_is(settings: Settings, sql: Sql) -> None:
    sql("UPDATE alembic_version SET version_num = '9999'")
    require_schema(settings.database_url)
    assert is_current(settings.database_url)
    migrate(settings.database_url)
    assert sql("SELECT version_num FROM alembic_version") == [("9999",)]


def test_doctor_names_workers_of_another_version(settings: Settings, database: Database, sql: Sql) -> None:
    database.workers.register("old@host", "cpu", {})
    assert "releases" not in {finding.subject for finding in doctor._workers(settings)}
    sql("UPDATE workers SET release = NULL")  # as a worker of the previous release leaves it
    [found] = [finding for finding in doctor._workers(settings) if finding.subject == "releases"]
    assert "0.1.0" in found.found


def new_migrations() -> list[Path]:
    newest = previous_release().schema
    return [file for file in sorted(VERSIONS.glob("[0-9]*.py")) if file.name[:4] > newest]


def complaints(source: str) -> Iterator[str]:
    """What the function `upgrade` does that a process that does not know of it may trip over."""
    module = ast.parse(source)
    [upgrade] = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"]
    made_here = re.findall(r"create_table\(\s*'(\w+)'", ast.unparse(upgrade))
    for call in ast.walk(upgrade):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        if not (isinstance(call.func.value, ast.Name) and call.func.value.id == "op"):
            continue
        match call.func.attr:
            case "add_column":
                if not _may_be_left_out(call):
                    yield "add_column of a column that is not nullable and has no server_default"
            case "create_index" if any(k.arg == "unique" and ast.unparse(k.value) != "False" for k in call.keywords):
                if ast.literal_eval(call.args[1]) not in made_here:
                    yield "create_index that is unique"
            case "execute":
                given = call.args[0]
                first = str(given.value).split()[0] if isinstance(given, ast.Constant) else ast.unparse(given)
                if first.upper() not in ("INSERT", "UPDATE", "CREATE"):
                    yield f"execute of {first}"
            case name if name not in HARMLESS:
                yield name


def _may_be_left_out(call: ast.Call) -> bool:
    """Whether an INSERT that does not know the column works."""
    column = call.args[1]
    assert isinstance(column, ast.Call)
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in column.keywords}
    return "server_default" in said or said.get("nullable") == "True"


@pytest.mark.parametrize("file", new_migrations(), ids=lambda file: file.stem)
def test_it_only_adds(file: Path) -> None:
    found = [said for said in complaints(file.read_text()) if (file.name[:4], said.split()[0]) not in EXEMPT]
    assert found == [], f"{file.name}: the previous release's processes may fail; see CONTRIBUTING.md, … a migration"


def test_there_are_migrations_to_look_at() -> None:
    assert "0006_running_batches.py" in {file.name for file in new_migrations()}


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("op.drop_column('jobs', 'deadline')", "drop_column"),
        ("op.drop_table('jobs')", "drop_table"),
        ("op.rename_table('jobs', 'tasks')", "rename_table"),
        ("op.alter_column('jobs', 'deadline', nullable=False)", "alter_column"),
        ("op.add_column('jobs', sa.Column('deadline', sa.Double(), nullable=False))", "add_column"),
        ("op.add_column('jobs', sa.Column('deadline', sa.Double()))", "add_column"),
        ("op.create_check_constraint('c', 'jobs', 'true')", "create_check_constraint"),
        ("op.create_unique_constraint('c', 'jobs', ['tenant'])", "create_unique_constraint"),
        ("op.create_index('i', 'jobs', ['tenant'], unique=True)", "create_index"),
        ("op.execute('ALTER TABLE jobs DROP COLUMN deadline')", "execute"),
        ("op.execute('DELETE FROM jobs')", "execute"),
    ],
)
def test_what_breaks_the_previous_release_is_found(operation: str, said: str) -> None:
    [found] = complaints(f"def upgrade():\n    {operation}\n")
    assert found.startswith(said)


def test_the_migration_that_broke_the_release_before_is_found() -> None:
    found = list(complaints((VERSIONS / "0005_deadlines_of_retries.py").read_text()))
    assert found == ["alter_column"]
