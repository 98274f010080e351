"""Labels: what people say of latents, kept in `labels.sqlite` with everything that was ever said.

    labels = Labels(store.folder)                 # or store.labels
    labels.set(3, label="Paris", tags=["place"], author="Ada")
    labels.set(3, note="also the myth")           # only what is given changes
    labels.get(3); labels.history(3); labels.undo(3)

Any number of threads and processes may read and write at once; each change is one transaction with its line of history.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from .labels_csv import read_csv, write_csv
from .labels_file import columns, damaged, has_history, reading, writing
from .mark import AUTHOR, EMPTY, Mark, changed, check_text, difference, from_columns, to_columns

KEEP: Any = object()  # what `set` leaves as it is
FIELDS = ("label", "note", "tags", "is_starred", "score")


class Change(NamedTuple):
    """One change: the fields it changed as they were and as they became; `undoes` is the number of the change it took back."""

    number: int
    latent: int
    before: dict[str, Any]
    after: dict[str, Any]
    author: str
    time: str
    undoes: int | None


class Labels:
    """The labels of one FeatureStore's folder; `latents` is how many it has (None: any number may be labelled).

    Reading never makes a file. Every method raises UserError when the database is damaged, stays locked for `wait_s`, or
    (those that change it) cannot be written.
    """

    def __init__(self, folder: str | Path, latents: int | None = None, *, wait_s: float = 10.0):
        self.path, self.latents, self.wait_s = Path(folder) / "labels.sqlite", latents, wait_s
        self._lock = threading.Lock()
        self._known: dict[int, Mark] = {}
        self._seen: tuple[int, tuple[int, ...]] | None = None

    def __repr__(self) -> str:
        return f"Labels({self.path})"

    def get(self, latent: int) -> Mark:
        """What stands for a latent now; an empty Mark where nobody said anything."""
        latent = self._check(latent)
        if not self.path.exists():
            return EMPTY
        with reading(self.path, self.wait_s) as database:
            return self._read(database, "WHERE latent = ?", latent).get(latent, EMPTY)

    def set(
        self,
        latent: int,
        *,
        label: str | None = KEEP,
        note: str | None = KEEP,
        tags: Iterable[str] = KEEP,
        is_starred: bool = KEEP,
        score: Mapping[str, Any] | None = KEEP,
        author: str = "",
    ) -> Mark:
        """Change what is given and keep the rest; None or empty takes it away. Returns what stands then.

        A label has at most 500 characters, a note 20,000, a tag 60; a latent at most 32 tags. A new label drops the score of
        the old one unless it comes with its own. Nothing is written where nothing changes.
        """
        given = {"label": label, "note": note, "tags": tags, "is_starred": is_starred, "score": score}
        row = {name: value for name, value in given.items() if value is not KEEP}
        return self._change([(self._check(latent), row)], author)[0][1]

    def tag(self, latent: int, add: Iterable[str] = (), remove: Iterable[str] = (), author: str = "") -> Mark:
        """Add and remove single tags: two people who tag a latent at once both have their way."""
        latent = self._check(latent)
        more, less = (changed(EMPTY, {"tags": tags}).tags for tags in (add, remove))
        check_text("author", author, AUTHOR)
        with writing(self.path, self.wait_s) as database:
            old = self._read(database, "WHERE latent = ?", latent).get(latent, EMPTY)
            tags = [tag for tag in (*old.tags, *more) if tag not in less]
            return self._put(database, latent, old, changed(old, {"tags": tags}), author)

    def history(self, latent: int) -> list[Change]:
        """Every change of a latent, the latest first."""
        latent = self._check(latent)
        if not self.path.exists():
            return []
        with reading(self.path, self.wait_s) as database:
            return self._changes(database, latent)

    def undo(self, latent: int, author: str = "") -> Change | None:
        """Take back the latest change that still stands (a further call the one before it); None where there is none left."""
        latent = self._check(latent)
        check_text("author", author, AUTHOR)
        if not self.path.exists():
            return None
        with writing(self.path, self.wait_s) as database:
            changes = self._changes(database, latent)
            gone = {change.undoes for change in changes}
            last = next((c for c in changes if c.undoes is None and c.number not in gone), None)
            if last is None:
                return None
            old = self._read(database, "WHERE latent = ?", latent).get(latent, EMPTY)
            new = changed(old, {"score": old.score, **last.before})
            self._put(database, latent, old, new, author, undoes=last.number)
            return self._changes(database, latent)[0]

    def all(self) -> dict[int, Mark]:
        """Every latent of which something is said. After the first call only what changed since is read."""
        with self._lock:
            if not self.path.exists():
                self._seen = None
                return {}
            file = self.path.stat()
            stamp = (file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size)
            with reading(self.path, self.wait_s) as database:
                self._refresh(database, stamp)
            return dict(self._known)

    def rows(self) -> list[dict[str, Any]]:
        """What stands as plain rows to share: latent, label, note, tags, is_starred, score; by latent."""
        return [
            {"latent": latent, **mark._asdict(), "tags": list(mark.tags)} for latent, mark in sorted(self.all().items())
        ]

    def add_rows(self, rows: Iterable[Mapping[str, Any]], author: str = "") -> int:
        """Take over rows such as `rows` gives; what a row lacks stays as it was. All or none; returns how many were news."""
        wanted = []
        for row in rows:
            if "latent" not in row:
                raise UserError(
                    f"expected rows with a latent; got one with {', '.join(map(str, row))[:80] or 'nothing'}"
                )
            wanted.append((self._check(row["latent"]), {name: row[name] for name in FIELDS if name in row}))
        return sum(old != new for old, new in self._change(wanted, author)) if wanted else 0

    def to_csv(self, path: str | Path) -> None:
        """Write `rows` as a CSV file, tags and score as JSON in their cells."""
        write_csv(Path(path), self.rows())

    def read_csv(self, path: str | Path, author: str = "") -> int:
        """Take over a CSV file such as `to_csv` writes; columns may be missing, `latent` aside. Returns how many changed."""
        return self.add_rows(read_csv(Path(path)), author)

    def _check(self, latent: Any) -> int:
        is_number = not isinstance(latent, bool) and hasattr(latent, "__index__")
        number = latent.__index__() if is_number else -1
        if not 0 <= number < (2**31 if self.latents is None else self.latents):
            most = "2^31" if self.latents is None else self.latents
            raise UserError(f"expected a latent in [0, {most}); got {str(latent)[:40]!r}")
        return number

    def _change(self, rows: list[tuple[int, dict[str, Any]]], author: str) -> list[tuple[Mark, Mark]]:
        wanted = []
        for latent, row in rows:
            mark = changed(EMPTY, row)  # a mistake is told before a file is made
            wanted.append((latent, {name: getattr(mark, name) for name in row}))
        check_text("author", author, AUTHOR)
        with writing(self.path, self.wait_s) as database:
            pairs = []
            for latent, row in wanted:
                old = self._read(database, "WHERE latent = ?", latent).get(latent, EMPTY)
                pairs.append((old, self._put(database, latent, old, changed(old, row), author)))
            return pairs

    def _put(
        self, database: sqlite3.Connection, latent: int, old: Mark, new: Mark, author: str, undoes: int | None = None
    ) -> Mark:
        before, after = difference(old, new)
        if before or undoes is not None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            database.execute(
                "INSERT INTO history (latent, before, after, author, time, undoes) VALUES (?, ?, ?, ?, ?, ?)",
                (latent, json.dumps(before), json.dumps(after), author, now, undoes),
            )
            database.execute(
                "INSERT OR REPLACE INTO labels (latent, label, note, tags, is_starred, score) VALUES (?, ?, ?, ?, ?, ?)",
                (latent, *to_columns(new)),
            )
        return new

    def _read(self, database: sqlite3.Connection, where: str = "", *values: Any) -> dict[int, Mark]:
        present = columns(database)
        if not present:
            return {}
        names = ", ".join(name for name in FIELDS if name in present)  # a file of version 1 has labels alone
        found = database.execute(f"SELECT latent, {names} FROM labels {where}", values)
        try:
            marks = {int(latent): from_columns(*cells) for latent, *cells in found}
        except (ValueError, TypeError) as error:
            raise damaged(self.path, error) from error
        return {latent: mark for latent, mark in marks.items() if mark != EMPTY or where}

    def _changes(self, database: sqlite3.Connection, latent: int) -> list[Change]:
        if not has_history(database):
            return []
        found = database.execute(
            "SELECT number, latent, before, after, author, time, undoes FROM history WHERE latent = ? ORDER BY number DESC",
            (latent,),
        ).fetchall()
        try:
            return [Change(n, j, json.loads(before), json.loads(after), *rest) for n, j, before, after, *rest in found]
        except (ValueError, TypeError) as error:
            raise damaged(self.path, error) from error

    def _refresh(self, database: sqlite3.Connection, stamp: tuple[int, ...]) -> None:
        """Bring what is known of all latents up to date, by the numbers of the changes since."""
        last = 0
        if has_history(database):
            last = database.execute("SELECT coalesce(max(number), 0) FROM history").fetchone()[0]
        if (
            self._seen is None
            or self._seen[1][:2] != stamp[:2]
            or (self._seen[0] >= last and self._seen != (last, stamp))
        ):
            self._known = self._read(database)
        elif last > self._seen[0]:
            since = "WHERE latent IN (SELECT latent FROM history WHERE number > ?)"
            for latent, mark in self._read(database, since, self._seen[0]).items():
                self._known[latent] = mark
                if mark == EMPTY:
                    del self._known[latent]
        self._seen = (last, stamp)
