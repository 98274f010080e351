"""labels.sqlite: the database beside a FeatureStore, opened for one transaction at a time.

    labels   latent (key), label, note, tags (JSON list), is_starred (0 or 1), score (JSON object or NULL): what stands now
    history  number, latent, before, after (JSON objects of the fields that changed), author, time (UTC), undoes: append-only

Version 1 had `labels (latent, label)` alone. Such a file is read as it is and gets the other columns with the first change.
A rollback journal, not a write-ahead log: a log cannot be read from a folder that is read-only, nor be trusted on a network
drive. Writers take their turn (BEGIN IMMEDIATE, then up to `wait_s`), so a change is made on what the one before it left.
The file may come from anyone: a schema that is no plain table is refused, and functions of the schema are not trusted.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ...errors import UserError

VERSION = 2
NEW_COLUMNS = {
    "note": "TEXT NOT NULL DEFAULT ''",
    "tags": "TEXT NOT NULL DEFAULT '[]'",
    "is_starred": "INTEGER NOT NULL DEFAULT 0",
    "score": "TEXT",
}
HISTORY = (
    "CREATE TABLE IF NOT EXISTS history (number INTEGER PRIMARY KEY AUTOINCREMENT, latent INTEGER NOT NULL, "
    "before TEXT NOT NULL, after TEXT NOT NULL, author TEXT NOT NULL, time TEXT NOT NULL, undoes INTEGER)",
    "CREATE INDEX IF NOT EXISTS history_latent ON history (latent)",
    "CREATE TRIGGER IF NOT EXISTS history_is_not_rewritten BEFORE UPDATE ON history "
    "BEGIN SELECT RAISE(ABORT, 'history is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS history_is_not_erased BEFORE DELETE ON history "
    "BEGIN SELECT RAISE(ABORT, 'history is append-only'); END",
)


@contextlib.contextmanager
def reading(path: Path, wait_s: float) -> Iterator[sqlite3.Connection]:
    """A connection within one transaction that sees one state of the file; UserError when it is damaged or locked."""
    with _connected(path, "rw", wait_s) as database:  # falls back to read-only where the file cannot be written
        database.execute("BEGIN")
        check(database, path)
        yield database


@contextlib.contextmanager
def writing(path: Path, wait_s: float) -> Iterator[sqlite3.Connection]:
    """A connection that alone may write, the file made or brought to this version; what raises within is rolled back."""
    with _connected(path, "rwc", wait_s) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            check(database, path)
            upgrade(database)
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


@contextlib.contextmanager
def _connected(path: Path, mode: str, wait_s: float) -> Iterator[sqlite3.Connection]:
    try:
        place = f"{path.absolute().as_uri()}?mode={mode}"
        with contextlib.closing(sqlite3.connect(place, wait_s, isolation_level=None, uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            yield database
    except sqlite3.Error as error:
        raise _explained(path, error, wait_s) from error


def _explained(path: Path, error: sqlite3.Error, wait_s: float) -> UserError:
    reason = str(error)
    if "locked" in reason:
        return UserError(
            f"expected to use {path} within {wait_s:g} s; another program keeps it locked; try again once that has finished"
        )
    if "readonly" in reason or "unable to open" in reason:
        return UserError(
            f"expected to write {path}; its folder or file cannot be written ({reason}); copy the store to a folder of your own"
        )
    return damaged(path, error)


def damaged(path: Path, reason: object) -> UserError:
    """The error for a file that holds something else than labels."""
    return UserError(f"expected a labels database at {path}; could not use it ({reason}); restore or remove it")


def check(database: sqlite3.Connection, path: Path) -> None:
    """UserError if the file is of a later version or its tables are no tables of labels."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise UserError(
            f"expected labels of version {VERSION} or earlier in {path}; got version {version}; update unweave"
        )
    kinds = dict(database.execute("SELECT name, type FROM sqlite_master WHERE name IN ('labels', 'history')"))
    needed = {"latent", "label"} | (set(NEW_COLUMNS) if version == VERSION else set())
    if not set(kinds.values()) <= {"table"} or ("labels" in kinds and not needed <= columns(database)):
        raise damaged(path, "its tables are others")


def columns(database: sqlite3.Connection) -> set[str]:
    """The columns that the table of labels has; none where there is no such table."""
    return {row[1] for row in database.execute("PRAGMA table_info(labels)")}


def has_history(database: sqlite3.Connection) -> bool:
    """False for a file of version 1."""
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'history'").fetchone() is not None


def upgrade(database: sqlite3.Connection) -> None:
    """Make what a file of this version has and this one lacks."""
    if database.execute("PRAGMA user_version").fetchone()[0] == VERSION:
        return
    database.execute("CREATE TABLE IF NOT EXISTS labels (latent INTEGER PRIMARY KEY, label TEXT NOT NULL)")
    present = columns(database)
    for name, kind in NEW_COLUMNS.items():
        if name not in present:
            database.execute(f"ALTER TABLE labels ADD COLUMN {name} {kind}")
    for statement in HISTORY:
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")
