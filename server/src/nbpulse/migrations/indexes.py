"""Indexes made while the class goes on, on plain tables and on partitioned ones.

Promises: nobody who writes waits longer than `_LOCK_LIMIT_MS` at a time for any step; made again after a kill at any
point it comes to the same end, an index that is whole and valid. For migrations: what the migration did before is
committed by it, so it comes last in its migration.
"""

from __future__ import annotations

import time
from typing import Final

from alembic import op
from sqlalchemy.exc import DBAPIError

_LOCK_LIMIT_MS: Final = 300
_TRIES: Final = 200
_LOCK_NOT_AVAILABLE: Final = "55P03"
_IS_PARTITIONED: Final = "SELECT relkind = 'p' FROM pg_class WHERE oid = '{table}'::regclass"
_IS_PARTITIONED_INDEX: Final = "SELECT relkind = 'I' FROM pg_class WHERE oid = to_regclass('{index}')"
_IS_VALID: Final = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{index}')"
_CHILDREN: Final = """
SELECT quote_ident(n.nspname), c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = '{table}'::regclass AND NOT EXISTS (
    SELECT FROM pg_inherits ii JOIN pg_index x ON x.indexrelid = ii.inhrelid
    WHERE ii.inhparent = '{index}'::regclass AND x.indrelid = c.oid)
ORDER BY c.relname
"""


def make_index(name: str, table: str, definition: str) -> None:
    """
    Make the index `name` on `table` as by `CREATE INDEX name ON table definition`, unless it is there and valid.

    On a partitioned table: on the parent alone, then on each partition concurrently, then attached; partitions made
    meanwhile get theirs from the parent. Raises RuntimeError when it is not valid in the end.
    """
    schema = f"{table.rpartition('.')[0]}." if "." in table else ""
    with op.get_context().autocommit_block():
        if _find_validity(schema + name):
            return
        is_partitioned = _ask(_IS_PARTITIONED.format(table=table))
        if not is_partitioned:
            _make_concurrently(schema, name, table, definition)
        else:
            _run_briefly(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {table} {definition}")
            _fill_partitions(schema, name, table, definition)
        if not _find_validity(schema + name):
            raise RuntimeError(f"the index {name} is not valid: a partition is without it")


def drop_index(name: str) -> None:
    """Drop it, if it is there, while its table is read and written; a partitioned one keeps others out for a moment."""
    with op.get_context().autocommit_block():
        if _ask(_IS_PARTITIONED_INDEX.format(index=name)):
            _run_briefly(f"DROP INDEX {name}")
        else:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def _fill_partitions(schema: str, name: str, table: str, definition: str) -> None:
    children = op.get_bind().exec_driver_sql(_CHILDREN.format(table=table, index=schema + name)).fetchall()
    for child_schema, child in children:
        child_index = f"{child}_{name}"[:63]
        _make_concurrently(f"{child_schema}.", child_index, f"{child_schema}.{child}", definition)
        _run_briefly(f"ALTER INDEX {schema}{name} ATTACH PARTITION {child_schema}.{child_index}")


def _make_concurrently(schema: str, name: str, table: str, definition: str) -> None:
    if _find_validity(schema + name) is False:  # left by one that was killed: kept up to date, used by nobody
        op.execute(f"DROP INDEX CONCURRENTLY {schema}{name}")
    op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} {definition}")


def _run_briefly(statement: str) -> None:
    """
    Run what needs a lock that keeps writers out, for a moment: whoever waits for it makes all others wait behind.

    Raises what the driver raises after a minute of trying.
    """
    op.execute(f"SET lock_timeout = '{_LOCK_LIMIT_MS}ms'")
    try:
        for left in reversed(range(_TRIES)):
            try:
                op.execute(statement)
                return
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or not left:
                    raise
            time.sleep(0.1)
    finally:
        op.execute("RESET lock_timeout")


def _find_validity(index: str) -> bool | None:
    """Whether the index is valid; None where there is none."""
    validity: bool | None = _ask(_IS_VALID.format(index=index))
    return validity


def _ask(query: str) -> bool | None:
    found: bool | None = op.get_bind().exec_driver_sql(query).scalar()
    return found
