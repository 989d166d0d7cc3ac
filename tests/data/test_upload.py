"""A reader's own text: stored whole, found again, and refused in one line where it is hostile."""

import io
import json
import stat
import zipfile

import pytest

from gpt2lab.data import upload
from gpt2lab.data.text import load_text
from gpt2lab.data.upload import store_text, stored_texts
from gpt2lab.errors import LabError

PROSE = "The moon is a small world. The sea follows it twice a day. " * 40


def zipped(*members):
    """An archive of (name or ZipInfo, text)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members:
            archive.writestr(name, text)
    return content.getvalue()


def link(name, to):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, to


@pytest.fixture
def give(tmp_path):
    """A function: file name, content → what `store_text` makes of such a file, or raises."""

    def store(file_name, content, **options):
        file = tmp_path / "given" / file_name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return store_text(file, tmp_path / "runs", **options)

    return store


def test_a_text_is_stored_once_and_read_the_same_each_time(give, tmp_path):
    stored = give("my text.TXT", PROSE)
    assert (stored.name, stored.columns, stored.column()) == ("my-text.txt", (), None)
    assert stored.path.read_text() == PROSE and give("my text.TXT", PROSE) == stored
    assert stored_texts(tmp_path / "runs") == {stored.id: stored}
    first, second = (load_text(str(stored.path)) for _ in range(2))
    assert (
        first.train == second.train
        and first.validation
        and "".join(article.text for name in ("train", "validation", "test") for article in first.split(name)) == PROSE
    )


def test_a_table_has_its_longest_column_chosen_and_others_on_offer(give, tmp_path):
    rows = [{"id": i, "title": f"T{i}", "body": f"The moon is a small world, {i}."} for i in range(20)]
    stored = give("posts.jsonl", "\n".join(map(json.dumps, rows)))
    assert stored.columns == ("body", "title") and stored.column() == "body" and stored.column("title") == "title"
    assert stored_texts(tmp_path / "runs")[stored.id] == stored
    assert load_text(str(stored.path), column="body").train[0].text == rows[0]["body"]
    assert give("a.csv", "body;n\n" + "\n".join(f"row {i};{i}" for i in range(20))).columns == ("body",)
    with pytest.raises(LabError, match="column 'id' is unknown"):
        stored.column("id")


def test_an_archive_of_texts_is_read_without_being_unpacked(give, tmp_path):
    stored = give("both.zip", zipped(("b.txt", PROSE), ("a.txt", PROSE), ("notes.pdf", "x")))
    assert load_text(str(stored.path)).note == "2 text files of the archive"
    assert [path.name for path in stored.path.parent.iterdir() if path.suffix == ".txt"] == []


HOSTILE = {
    "another kind": ("a.exe", b"MZ", "no text that can be trained on"),
    "no ending": ("text", PROSE, "no text that can be trained on"),
    "empty": ("a.txt", "", "is empty"),
    "binary": ("a.txt", b"abc\0def", "zero byte"),
    "latin-1": ("a.txt", "caf\xe9 ".encode("latin-1") * 90, "not UTF-8"),
    "utf-16": ("a.txt", PROSE.encode("utf-16"), "UTF-16"),
    "html": ("a.txt", "<!doctype html><p>x", "HTML"),
    "too short": ("a.txt", "Moon", "has no validation split"),
    "absolute name": ("a.zip", zipped(("/etc/a.txt", PROSE)), "leads out of it"),
    "name with dots": ("a.zip", zipped(("../../a.txt", PROSE)), "leads out of it"),
    "drive": ("a.zip", zipped(("C:\\a.txt", PROSE)), "leads out of it"),
    "link": ("a.zip", zipped(link("a.txt", "/etc/passwd")), "holds a link"),
    "bomb": ("a.zip", zipped(("a.txt", "a" * (65 << 20))), "more bytes unpacked"),
    "no archive": ("a.zip", b"PK but not", "cannot be unpacked"),
    "archive without texts": ("a.zip", zipped(("a.pdf", "x")), "no text file in it"),
    "broken table": ("a.jsonl", '{"a": "b"\n{', "cannot be read as jsonl"),
    "table without text": ("a.csv", "n,m\n1,2\n3,4\n", "no column with text"),
}


@pytest.mark.parametrize(("name", "content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_trained_on_is_refused_in_one_line_and_leaves_nothing(give, tmp_path, name, content, reason):
    with pytest.raises(LabError, match=reason) as refused:
        give(name, content)
    assert str(tmp_path) not in str(refused.value) and "\n" not in str(refused.value)
    assert not stored_texts(tmp_path / "runs")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_names_do_not_lead_anywhere_and_sizes_are_limited(give, tmp_path, monkeypatch):
    for name in ("../../x.txt", "/etc/x.txt", "..\\x.txt", ".x.txt"):
        assert give("a.txt", PROSE, name=name).path.is_relative_to(tmp_path / "runs" / upload.FOLDER)
    assert give("a.txt", PROSE, name="月亮 <b>.txt").name == "月亮-b.txt"
    outside = tmp_path / "outside.txt"
    outside.write_text(PROSE)
    (tmp_path / "link.txt").symlink_to(outside)
    with pytest.raises(LabError, match="not an ordinary file"):
        store_text(tmp_path / "link.txt", tmp_path / "runs")
    monkeypatch.setattr(upload, "MAX_BYTES", 100)
    with pytest.raises(LabError, match="the limit is 100"):
        give("a.txt", PROSE + "!")
    monkeypatch.undo()
    monkeypatch.setattr(upload, "MAX_STORED", 3000)
    with pytest.raises(LabError, match="delete some"):
        give("b.txt", PROSE)


def test_what_was_changed_by_hand_is_left_out(give, tmp_path):
    stored = give("a.txt", PROSE)
    (stored.path.parent / "text.json").write_text('{"path": "../../../secret.txt", "columns": []}')
    assert stored_texts(tmp_path / "runs") == {}
