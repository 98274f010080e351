"""Text in: documents from files, folders and the corpus that comes with the package.

A document is one piece of text that is cached and held out as a whole. `read_documents` takes what a user names on the
command line and yields documents in a fixed order:

    notes.txt  notes.md  module.py     one document a file
    records.jsonl                      one document a line, its field "text" (and "id", "kind" where they are strings)
    any of these with .gz              the same, unpacked while reading
    a folder                           its files with these suffixes, depth first, sorted by name; hidden ones left out
    the word "bundled"                 the corpus of the package: prose, 23 languages and Python code, 1.3 million
                                       characters, mixed 5 : 2 : 3 in every prefix; licences in data/SOURCES.md

Text is UTF-8, nothing else is guessed: a byte that is not UTF-8, a NUL byte, a damaged gzip stream, a line that is not
JSON, or a text without a visible character is a `UserError` that names file and line. Only inside a folder an empty file
(`__init__.py`) is passed over, since nobody named it; a folder with no text at all is an error.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import UserError

BUNDLED = "bundled"
SUFFIXES = (".txt", ".md", ".py", ".jsonl")
_BUNDLED_FILE = Path(__file__).parent / "data" / "corpus.jsonl.gz"


class Document(NamedTuple):
    """One text. `kind` is "prose", "language:<code>" or "code" in the bundled corpus, "text" or "code" for files."""

    id: str
    kind: str
    text: str


def bundled() -> list[Document]:
    """The corpus that comes with the package, always in the same order."""
    return list(_records(_BUNDLED_FILE, BUNDLED))


def read_documents(paths: str | Path | Iterable[str | Path]) -> Iterator[Document]:
    """The documents of `paths`, in order; every path is looked at before the first document is read.

    An id is the path below the folder that was named (beginning with the folder's name) or the file's name, and a line
    number for JSON lines without one. Raises UserError as the module describes; files are read one at a time.
    """
    named = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not named:
        raise UserError(f'expected at least one text file or folder; got none; name some, or the word "{BUNDLED}"')
    for path in named:
        _check(path)
    for path in named:
        if path == BUNDLED:
            yield from bundled()
        elif Path(path).is_dir():
            yield from _folder(Path(path))
        else:
            yield from _file(Path(path), Path(path).name)


def _check(path: str | Path) -> None:
    if path == BUNDLED:
        return
    if not Path(path).exists():
        raise UserError(f'expected a text file, a folder or the word "{BUNDLED}"; got {path}, which does not exist')
    if not Path(path).is_dir() and not _suffix(Path(path)):
        raise UserError(f"expected a file ending in {', '.join(SUFFIXES)} or these with .gz; got {path}; rename it")


def _suffix(path: Path) -> str:
    """The known suffix of `path` without .gz, or an empty string."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in SUFFIXES else ""


def _folder(folder: Path) -> Iterator[Document]:
    found = False
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        inner = path.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts) or not path.is_file() or not _suffix(path):
            continue
        if _is_empty(path):
            continue
        found = True
        yield from _file(path, f"{folder.resolve().name}/{inner.as_posix()}")
    if not found:
        raise UserError(f"expected a folder with text ({', '.join(SUFFIXES)}); got {folder}, where no file has any")


def _is_empty(path: Path) -> bool:
    """Whether the file holds white space only."""
    return not any(line.strip() for line in _lines(path))


def _file(path: Path, id: str) -> Iterator[Document]:
    if _suffix(path) == ".jsonl":
        yield from _records(path, id)
    else:
        text = _decode(_bytes(path), path, line=1)
        if not text.strip():
            raise UserError(f"expected text in {path}; got an empty file; leave it out")
        yield Document(id, "code" if _suffix(path) == ".py" else "text", text)


def _records(path: Path, id: str) -> Iterator[Document]:
    """One document a line, read as a stream; blank lines are passed over."""
    count = 0
    for number, line in enumerate(_lines(path), start=1):
        text = _decode(line, path, number)
        if text.strip():
            count += 1
            yield _record(text, path, number, f"{id}:{number}")
    if not count:
        raise UserError(f"expected JSON lines in {path}; got an empty file; leave it out")


def _record(line: str, path: Path, number: int, id: str) -> Document:
    where = f"{path} line {number}"
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"expected a JSON object in {where}; got {line[:40]!r} ({error}); one object a line") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise UserError(f'expected an object with a string "text" in {where}; got {line[:40]!r}; rename the field')
    if not record["text"].strip():
        raise UserError(f'expected text in {where}; got an empty "text"; leave the line out')
    own_id, kind = record.get("id"), record.get("kind")
    return Document(
        own_id if isinstance(own_id, str) else id, kind if isinstance(kind, str) else "text", record["text"]
    )


def _lines(path: Path) -> Iterator[bytes]:
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(f"expected to read {path}; got {error}; check its permissions") from error
    with opened as stream:
        while line := _guarded(stream.readline, path):
            yield line


def _bytes(path: Path) -> bytes:
    return b"".join(_lines(path))


def _guarded(read: Callable[[], bytes], path: Path) -> bytes:
    try:
        return read()
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"expected to read {path}; got {error}; check the file or fetch it again") from error


def _decode(data: bytes, path: Path, line: int) -> str:
    """`data` as text without a byte order mark; `line` is the number of its first line, for messages."""
    nul = data.find(b"\0")
    if nul >= 0:
        where = line + data.count(b"\n", 0, nul)
        raise UserError(f"expected text in {path}; got a binary file (a zero byte in line {where}); leave it out")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = line + data.count(b"\n", 0, error.start)
        byte = f"0x{data[error.start]:02x}"
        raise UserError(f"expected UTF-8 in {path}; got byte {byte} in line {where}; convert the file") from error
