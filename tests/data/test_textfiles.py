"""Files of texts in every format that is read, and those that are refused."""

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from gpt2lab.data import textfiles
from gpt2lab.data.text import load_text
from gpt2lab.data.textfiles import read_file, read_text
from gpt2lab.errors import LabError

LIMIT = 1_000_000
ROWS = ["The moon, a small world.", 'He said "no".\nThen he left.', "月亮 é 🌙", *(f"Sentence {i}." for i in range(17))]


def table_bytes(kind, columns):
    """A table with columns of values, as a file of a kind."""
    names = list(columns)
    rows = [dict(zip(names, values)) for values in zip(*columns.values())]
    if kind == "parquet":
        out = io.BytesIO()
        pyarrow.parquet.write_table(pa.table(columns), out)
        return out.getvalue()
    if kind == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    mark = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
    quoted = (mark.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells)
    return "\n".join(quoted).encode()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "jsonl", "parquet"])
def test_only_text_column_of_a_table_is_read_row_by_row_and_said(write, kind, packed):
    content = table_bytes(kind, {"id": list(range(20)), "body": ROWS})
    name = f"posts.{'csv' if kind == 'semicolon' else kind}"
    path = write(name + ".gz" * packed, gzip.compress(content, mtime=0) if packed else content)
    found = read_file(path, LIMIT)
    assert [text for _, text in found.parts] == ROWS
    assert found.parts[0][0] == "row 1" and found.is_rows
    assert found.note == "column 'body', 20 rows; not read: 'id'"
    splits = load_text(str(path))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [16, 2, 2]
    assert splits.train[2].text == ROWS[2] and splits.note == found.note


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_column_is_chosen_by_name_and_an_error_lists_those_there_are(write, kind):
    path = write(f"two.{kind}", table_bytes(kind, {"n": [1] * 20, "title": ["a"] * 20, "body": ROWS}))
    assert [text for _, text in read_file(path, LIMIT, "body").parts] == ROWS
    assert load_text(str(path), column="title").train[0].text == "a"
    known = r"it has 'n' \(no text\), 'title', 'body'$"
    with pytest.raises(LabError, match=r"has 2 text columns; choose one by --column: " + known):
        load_text(str(path))
    for column in ("n", "gone"):
        with pytest.raises(LabError, match=rf"has no text column '{column}'; " + known):
            load_text(str(path), column=column)


def test_empty_rows_are_left_out_and_counted(write):
    path = write("gaps.jsonl", "\n".join(json.dumps({"text": text}) for text in ["a", None, "  ", "b"]))
    splits = load_text(str(path))
    assert [(article.title, article.text) for article in splits.split("all")] == [("row 1", "a"), ("row 4", "b")]
    assert splits.note == "column 'text', 4 rows, 2 of them empty"


def test_wikitext_saved_as_a_table_has_its_articles(write):
    rows = ["", " = Moon = \n", "", " The moon . \n", "", " = Sea = \n", "", " The sea . \n"]
    splits = load_text(str(write("wiki.parquet", table_bytes("parquet", {"text": rows}))))
    assert {article.title for article in splits.split("all")} == {"Moon", "Sea"}


def test_folder_of_tables_has_their_splits(write):
    for split in ("train", "validation", "test"):
        path = write(f"{split}.csv", table_bytes("csv", {"id": [1, 2], "text": [f"{split} a", f"{split} b"]}))
    splits = load_text(str(path.parent), column="text")
    assert [article.text for article in splits.validation] == ["validation a", "validation b"]
    assert "validation: column 'text', 2 rows" in splits.note


def test_gzip_and_zip_of_texts_are_opened(write):
    assert (
        load_text(str(write("a.txt.gz", gzip.compress(b"word " * 300, mtime=0)))).split("all")[0].text == "word " * 300
    )
    files = {"b/two.txt": "Second.", "a.md": "# First", "__MACOSX/._a.md": b"\0", "picture.png": b"\x89PNG"}
    found = read_file(write("texts.zip", zipped(files)), LIMIT)
    assert found.parts == (("a.md", "# First"), ("b/two.txt", "Second."))
    assert found.note == "2 text files of the archive"


def test_archive_with_named_splits_is_as_a_folder_with_them(write):
    files = {
        f"wikitext-2-raw/wiki.{name}.raw": f" \n = {name} = \n \n text . \n" for name in ("train", "valid", "test")
    }
    splits = load_text(str(write("wikitext-2-raw.zip", zipped(files))))
    assert [splits.split(name)[0].title for name in ("train", "validation", "test")] == ["train", "valid", "test"]


def test_nothing_of_an_archive_reaches_the_disk(write, tmp_path):
    paths = [write("plain.zip", zipped({"ok.txt": "in"}))]
    paths += [
        write(f"{i}.zip", zipped({evil: "out", "ok.txt": "in"})) for i, evil in enumerate(("../a.txt", "/tmp/a.txt"))
    ]
    before = set(tmp_path.parent.rglob("*"))
    assert len(read_file(paths[0], LIMIT).parts) == 1
    for path in paths[1:]:
        with pytest.raises(LabError, match="leads out of it"):
            read_file(path, LIMIT)
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bomb.txt.gz", gzip.compress(b"x" * 5000, mtime=0)),
        ("bomb.zip", zipped({"a.txt": b"x" * 600, "b.txt": b"x" * 600})),
    ],
)
def test_what_unpacks_to_more_than_the_limit_is_refused(write, name, content):
    with pytest.raises(LabError, match=r"more bytes unpacked; the limit is 1,000"):
        read_file(write(name, content), 1000)


def test_archive_of_too_many_files_is_refused(write, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_MEMBERS", 2)
    with pytest.raises(LabError, match=r"holds 3 files; the limit is 2"):
        read_file(write("many.zip", zipped({f"{i}.txt": "x" for i in range(3)})), LIMIT)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.html", "<p>moon</p>", "HTML or XML, .* save its plain text"),
        ("page.txt", "\n<!DOCTYPE html><html>", "HTML or XML"),
        ("page.md", "<html lang=en>", "HTML or XML"),
        ("feed.xml", "<rss/>", "HTML or XML"),
        ("data.json", '[{"text": "moon"}]', r"JSON; write one object per line into a \.jsonl"),
        ("data.txt", '[\n{"text": "moon"}]', r"JSON; write one object per line"),
        ("lines.txt", '{"text": "a"}\n{"text": "b"}\n', r"JSON Lines; .* ending \.jsonl"),
        ("paper.txt", b"%PDF-1.7 ...", "a PDF; save its text"),
        ("essay.docx", b"PK\x03\x04rest", "a zip archive or an Office document"),
        ("text.txt", gzip.compress(b"moon", mtime=0), r"compressed with gzip; .* \.gz"),
        ("text.csv", gzip.compress(b"moon", mtime=0), r"compressed with gzip; .* \.gz"),
        ("broken.gz", b"\x1f\x8bbroken", "not a complete gzip file"),
        ("broken.zip", b"PK\x03\x04broken", "cannot be unpacked"),
        ("empty.zip", zipped({"a.png": b"x"}), r"has no text file in it"),
        ("broken.parquet", b"PAR1broken", "a Parquet file|cannot be read as parquet"),
        ("broken.jsonl", '{"text": "a"}\n{"text', "cannot be read as jsonl"),
        ("latin.csv", b"text\ncaf\xe9", "not UTF-8 text"),
        ("numbers.csv", "a,b\n1,2\n", r"0 text columns; .* 'a' \(no text\)"),
        ("blank.csv", "a,b\n,2\n", "0 text columns"),
        ("empty.csv", "", "is empty"),
        ("zero.csv", "text\na\0b", "is binary"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line_that_says_what_to_do(write, name, content, message):
    with pytest.raises(LabError, match=message) as caught:
        load_text(str(write(name, content)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1] A note.\nMore.", "{curly} prose", "[Applause]", "<b> is a tag of HTML"])
def test_prose_that_begins_like_markup_is_read(write, content):
    assert load_text(str(write("prose.txt", content))).split("all")[0].text == content


@pytest.mark.parametrize("name", ["sample", "text.txt"])
def test_column_of_what_is_no_table_is_refused(write, name, tmp_path):
    write("text.txt", "words")
    with pytest.raises(LabError, match=r"column 'text'.*leave (it|the column) out"):
        load_text(name if name == "sample" else str(tmp_path / name), column="text")


def test_text_to_summarise_may_be_packed_but_no_table(write):
    assert read_text(write("a.txt.gz", gzip.compress(b"moon", mtime=0)), LIMIT) == "moon"
    with pytest.raises(LabError, match="is a table"):
        read_text(write("a.csv", "text\nmoon\n"), LIMIT)
