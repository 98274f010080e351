import gzip
import json
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from unweave.saes.corpus import bundled, read_documents
from unweave.saes.errors import UserError


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(*paths) -> list[str]:
    return [document.text for document in read_documents(paths)]


def test_bundled_corpus_mixes_its_kinds_in_every_prefix():
    documents = bundled()
    kinds = [document.kind.partition(":")[0] for document in documents]
    sizes = [len(document.text) for document in documents]
    total = list(accumulate(sizes))
    for kind, share in {"prose": 0.5, "language": 0.2, "code": 0.3}.items():
        of_kind = accumulate(size * (own == kind) for size, own in zip(sizes, kinds, strict=True))
        shares = [part / whole for part, whole in zip(of_kind, total, strict=True)]
        assert all(abs(value - share) < 0.05 for value in shares[20:]), kind
    assert total[-1] > 1_200_000
    assert len(documents) >= 150
    assert max(sizes) <= 12_000


def test_bundled_documents_have_their_own_ids_and_text():
    documents = bundled()
    assert len({document.id for document in documents}) == len(documents)
    assert len({document.text for document in documents}) == len(documents)
    assert {document.kind.partition(":")[0] for document in documents} == {"prose", "language", "code"}
    assert len({document.kind for document in documents}) >= 16
    assert list(read_documents("bundled")) == documents


def test_every_known_kind_of_file_is_read(tmp_path):
    write(tmp_path / "a.txt", "plain\nütf")
    write(tmp_path / "b.md", "\ufeff# head")
    write(tmp_path / "c.py", "x = 1\n")
    write(tmp_path / "d.jsonl", '{"text": "one", "id": "first"}\n\n{"text": "two", "kind": "prose", "more": 1}\n')
    write(tmp_path / "e.jsonl.gz", '{"text": "three"}')
    write(tmp_path / "f.txt.gz", "four")
    documents = list(read_documents(sorted(tmp_path.iterdir())))
    assert [document.text for document in documents] == [
        "plain\nütf",
        "# head",
        "x = 1\n",
        "one",
        "two",
        "three",
        "four",
    ]
    assert [document.kind for document in documents] == ["text", "text", "code", "text", "prose", "text", "text"]
    assert [document.id for document in documents] == [
        "a.txt", "b.md", "c.py", "first", "d.jsonl:3", "e.jsonl.gz:1", "f.txt.gz",
    ]  # fmt: skip


def test_a_folder_is_read_in_order_without_hidden_empty_and_unknown_files(tmp_path):
    folder = tmp_path / "texts"
    for name in ["b.txt", "a/z.md", "a/y.py", ".git/c.txt", "a/.hidden.txt", "picture.png", "c.tar.gz"]:
        write(folder / name, name)
    write(folder / "a" / "__init__.py", "\n")
    assert [document.id for document in read_documents([folder])] == ["texts/a/y.py", "texts/a/z.md", "texts/b.txt"]


def test_documents_are_read_one_at_a_time(tmp_path):
    good, bad = write(tmp_path / "a.txt", "good"), write(tmp_path / "b.txt", b"\xff")
    stream = read_documents([good, bad])
    assert next(stream).text == "good"
    with pytest.raises(UserError):
        next(stream)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.txt", b"", "empty file"),
        ("blank.md", b" \n\t\n", "empty file"),
        ("empty.jsonl", b"\n", "empty file"),
        ("latin.txt", b"one\ntwo \xe9\n", "0xe9 in line 2"),
        ("binary.txt", b"one\n\x00\x01", "zero byte in line 2"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "0xe9 in line 2"),
        ("list.jsonl", b"[1]\n", "line 1"),
        ("number.jsonl", b'{"text": 3}\n', "line 1"),
        ("field.jsonl", b'{"body": "a"}\n', "line 1"),
        ("blank.jsonl", b'{"text": "a"}\n{"text": " "}\n', "line 2"),
        ("deep.jsonl", b"[" * 100_000, "line 1"),
        ("picture.png", b"text", "ending in .txt"),
        ("archive.tar.gz", b"text", "ending in .txt"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, name, data, says):
    path = write(tmp_path / name, data)
    with pytest.raises(UserError) as caught:
        texts(path)
    assert name in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("keep", [1, 5, 15, 40])
def test_a_damaged_gzip_file_is_named(tmp_path, keep):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text that is long enough " * 20)[:keep])
    with pytest.raises(UserError, match=r"a\.txt\.gz"):
        texts(path)


def test_missing_paths_are_found_before_anything_is_read(tmp_path):
    good = write(tmp_path / "a.txt", "good")
    stream = read_documents([good, tmp_path / "absent.txt"])
    with pytest.raises(UserError, match=r"absent\.txt, which does not exist"):
        next(stream)


def test_nothing_to_read_is_an_error(tmp_path):
    for nothing in ([], [write(tmp_path / "sub" / "empty.py", "").parent]):
        with pytest.raises(UserError, match="expected"):
            list(read_documents(nothing))


def test_json_lines_keep_their_order(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": str(i)}) + "\n" for i in range(300)))
    assert all(int(b) == int(a) + 1 for a, b in pairwise(texts(path)))
