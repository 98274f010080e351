"""Labels as a CSV file: latent, label, note, tags (a JSON list), is_starred (0 or 1), score (a JSON object or nothing)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io import atomic_path

COLUMNS: tuple[str, ...] = ("latent", "label", "note", "tags", "is_starred", "score")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `Labels.rows`."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(COLUMNS))
    table.writeheader()
    for row in rows:
        cells = {"label": row["label"] or "", "tags": json.dumps(row["tags"]), "is_starred": int(row["is_starred"])}
        table.writerow({**row, **cells, "score": json.dumps(row["score"]) if row["score"] else ""})
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows for `Labels.add_rows`; UserError where the file is no such table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return [_from_cells(row) for row in csv.DictReader(handle)]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"expected a CSV file of labels at {path}; could not read it ({error}); mend it") from error


def _from_cells(row: dict[Any, Any]) -> dict[str, Any]:
    if "latent" not in row:
        raise ValueError("there is no column named latent")
    if None in row or None in row.values():
        raise ValueError("a row has another number of cells than the header")
    plain = {name: row[name] for name in ("label", "note") if name in row}
    plain["latent"] = int(row["latent"])
    if "tags" in row:
        plain["tags"] = json.loads(row["tags"] or "[]")
    if "is_starred" in row:
        plain["is_starred"] = row["is_starred"].strip().lower() in ("1", "true", "yes")
    if "score" in row:
        plain["score"] = json.loads(row["score"]) if row["score"] else None
    return plain
