import random
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from gpt2lab.data import sources, text
from gpt2lab.data.text import (
    Article,
    joined_rows,
    load_text,
    read_articles,
    split_articles,
    wikitext_article,
    wikitext_rows,
)
from gpt2lab.errors import LabError

REAL_FILES = {
    "wikitext-2-raw/wiki.test.raw": (4358, 60, 241_211),
    "wikitext-2/wiki.valid.tokens": (3760, 60, 213_886),
    "wikitext-2/wiki.test.tokens": (4358, 60, 241_211),
}
TWO_ARTICLES = " \n = Moon = \n \n The moon . \n = x + 1 = \n More prose . \n \n = Sea = \n \n The sea . \n"
LAYOUTS = {
    "plain": ("train.txt", "validation.txt", "test.txt"),
    "short": ("train.raw", "valid.raw", "test.raw"),
    "raw": ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
    "v1": ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
}
UNREADABLE = {
    "empty": b"",
    "blank": b" \n\n \t\n",
    "binary": b"text\0more",
    "latin-1": "caf\xe9 au lait".encode("latin-1"),
    "utf-16": "moon".encode("utf-16"),
}


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def rows_of(articles):
    return [row for article in articles for row in article.rows]


def file_of(articles):
    return "".join(row or " \n" for row in rows_of(articles))


def wikitext_of(titles):
    return "".join(f" \n = {title} = \n \n About {title} . \n" for title in titles)


@pytest.mark.parametrize("name", REAL_FILES)
def test_wikitext_file_has_the_published_rows_articles_and_words(shared_data, name):
    articles = read_articles(shared_data / name)
    rows = rows_of(articles)
    assert (len(rows), len(articles), sum(len(row.split()) for row in rows)) == REAL_FILES[name]


@pytest.mark.parametrize("name", REAL_FILES)
def test_wikitext_articles_joined_equal_the_file_byte_for_byte(shared_data, name):
    assert file_of(read_articles(shared_data / name)).encode() == (shared_data / name).read_bytes()


def test_raw_test_file_has_1467_blank_rows_and_robert_boulter_first(shared_data):
    articles = read_articles(shared_data / "wikitext-2-raw/wiki.test.raw")
    assert rows_of(articles).count("") == 1467
    assert articles[0].title == "Robert Boulter"


def test_joined_raw_test_file_has_287644_gpt2_tokens(shared_data, gpt2_tokenizer):
    joined = joined_rows(read_articles(shared_data / "wikitext-2-raw/wiki.test.raw"))
    assert len(gpt2_tokenizer(joined, verbose=False)["input_ids"]) == 287_644


def test_joined_rows_puts_a_blank_line_between_all_rows_and_articles():
    articles = (Article("a", ("", " = a = \n")), Article("b", ("x\n",)))
    assert joined_rows(articles) == "\n\n = a = \n\n\nx\n"


def test_article_text_is_its_rows():
    assert Article("a", ("", " = a = \n", "", " b \n")).text == " = a = \n b \n"


def test_formula_between_rows_of_prose_is_no_title():
    articles = split_articles(wikitext_rows(TWO_ARTICLES))
    assert [article.title for article in articles] == ["Moon", "Sea"]
    assert " = x + 1 = \n" in articles[0].rows


@pytest.mark.parametrize(("before", "after"), [("", " y \n"), (" x \n", ""), (" x \n", " y \n")])
def test_formula_with_prose_on_either_side_is_no_title(before, after):
    rows = ["", " = Moon = \n", "", " prose \n", before, " = x + 1 = \n", after, " prose \n"]
    assert split_articles(rows) == (Article("Moon", tuple(rows)),)


@pytest.mark.parametrize("row", [" = = Section = = \n", " = = = Deep = = = \n", "= Flush =\n", " = \n", " = = \n"])
def test_other_rows_between_blank_ones_are_no_titles(row):
    assert split_articles(["", row, "", " prose \n"]) == (Article("", ("", row, "", " prose \n")),)


def test_blank_row_before_a_title_goes_with_it():
    first, second = split_articles(wikitext_rows(TWO_ARTICLES))
    assert first.rows[:2] == ("", " = Moon = \n")
    assert second.rows[:2] == ("", " = Sea = \n")


def test_text_before_the_first_title_is_kept_in_an_article_without_title():
    articles = split_articles(["", " preface \n", "", " = Moon = \n", "", " prose \n"])
    assert articles == (Article("", ("", " preface \n")), Article("Moon", ("", " = Moon = \n", "", " prose \n")))


@pytest.mark.parametrize("seed", range(5))
def test_split_articles_gives_back_every_row_of_random_rows(seed):
    kinds = ("", "", " = A = \n", " = = B = = \n", " prose \n", "\n")
    rows = random.Random(seed).choices(kinds, k=200)
    articles = split_articles(rows)
    assert rows_of(articles) == rows
    assert len(articles) > 1


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (" \n = A = \n", ["", " = A = \n"]),
        ("a", ["a\n"]),
        ("a\n\n\nb\n", ["a\n", "", "", "b\n"]),
        ("\n", [""]),
        ("", []),
        ("a\x0bb\u2028c\n", ["a\x0bb\u2028c\n"]),
    ],
)
def test_wikitext_rows_by_hand(content, rows):
    assert wikitext_rows(content) == rows


def test_wikitext_article_is_cut_out_again_by_split_articles():
    moon = wikitext_article("Moon", [(1, "", ["Lead ."]), (2, "Orbit", ["It turns .", "Slowly ."])])
    sea = wikitext_article("Sea", [(1, "", ["Salt ."])])
    assert " = = Orbit = = \n" in moon.rows
    assert split_articles(moon.rows + sea.rows) == (moon, sea)


@pytest.mark.parametrize("content", [TWO_ARTICLES, "plain é\n\ntext 🌙\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_crlf_change_nothing(write, content, bom, newline):
    path = write("text.txt", bom + content.replace("\n", newline).encode())
    articles = read_articles(path)
    assert (file_of(articles) if len(articles) > 1 else articles[0].text) == content


def test_plain_file_is_one_article_with_the_exact_text(write):
    content = "  first\n\n\tsecond \n = not a title =\nlast without newline"
    assert read_articles(write("story.txt", content)) == (Article("story", (content,)),)


def test_sample_has_48_6_6_articles_of_different_titles_and_100_kb():
    sample = load_text("sample")
    articles = sample.train + sample.validation + sample.test
    assert [len(sample.train), len(sample.validation), len(sample.test)] == [48, 6, 6]
    assert len({article.title for article in articles} - {""}) == 60
    assert sum(len(article.text.encode()) for article in articles) >= 100_000
    assert sample.train[0].title == "Honey bee"


def test_auto_reads_what_auto_choice_names(monkeypatch):
    monkeypatch.setattr(sources, "auto_choice", lambda: sources.Choice("builtin", "sample", "a test"))
    assert load_text("auto") == load_text("sample")


def test_lone_plain_file_is_cut_80_10_10_in_its_order(write):
    words = [f"word{i:03}é\n" for i in range(100)]
    splits = load_text(str(write("lone.txt", "".join(words))))
    parts = [splits.split(name)[0].text.splitlines(keepends=True) for name in text.SPLITS]
    assert parts == [words[:80], words[80:90], words[90:]]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            "one two three four five six seven eight nine ten end",
            ("one two three four five six seven eight nine ", "ten ", "end"),
        ),
        ("a b c d e f g h i j k l\n", ("a b c d e f g h i j ", "k ", "l\n")),
        ("word " * 8 + "x" * 60 + " end more", ("word " * 8 + "x" * 60 + " ", "end ", "more")),
        ("1234567890 \n\n tail and end", ("1234567890 \n\n tail and ", "end")),
    ],
)
def test_plain_text_is_cut_by_hand_after_white_space(write, content, parts):
    splits = load_text(str(write("lone.txt", content)))
    assert tuple(getattr(splits, name)[0].text for name in text.SPLITS if getattr(splits, name)) == parts


@pytest.mark.parametrize(
    "content", ["word " * 30, "word " * 30 + "\n", "\n".join(["A line of eight words stands in this file."] * 5)]
)
def test_plain_file_of_few_lines_has_all_splits(write, content):
    splits = load_text(str(write("lone.txt", content)))
    for name, share in zip(text.SPLITS, (0.8, 0.1, 0.1)):
        assert len(splits.split(name)[0].text) / len(content) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("content", ["word", "a" * 990 + "\n", "two words"])
def test_plain_file_too_short_to_hold_anything_back_says_so(write, content):
    splits = load_text(str(write("lone.txt", content)))
    assert splits.split("train")[0].text == content
    for name in ("validation", "test"):
        with pytest.raises(LabError, match=rf"lone\.txt has no {name} split; it has train: give a longer text"):
            splits.split(name)


@pytest.mark.parametrize(
    "content",
    [
        "one line",
        "a\n\nb\r\nc\n",
        "no-space" * 9,
        "two  words \n",
        " \n" * 9 + "x",
        "mot é " * 50,
        "a\x0cb\u2028c\n" * 7,
        "x\n" * 9 + "end",
    ],
)
def test_lone_plain_file_loses_nothing(write, content):
    splits = load_text(str(write("lone.txt", content)))
    joined = "".join(article.text for article in splits.train + splits.validation + splits.test)
    assert joined == content.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        ("月亮是一个小世界，它绕着地球转。", "。"),
        ("Луна вращается вокруг Земли за 27.3 дня. ", ". "),
        ("هل القمر بعيد؟", "؟"),
        ("चाँद दूर है। ", "। "),
        ("月亮很远", "远"),
        ("x", "x"),
    ],
)
def test_long_line_is_cut_after_a_sentence_of_any_script_or_anywhere_and_the_shares_are_stated(write, sentence, end):
    content = sentence * (30_000 // len(sentence))
    splits = load_text(str(write("lone.txt", content)))
    parts = [splits.split(name)[0].text for name in text.SPLITS]
    assert "".join(parts) == content
    assert [part.endswith(end) for part in parts] == [True] * 3
    first, second = 100 * len(parts[0]) / len(content), 100 - 100 * len(parts[2]) / len(content)
    assert (first, second) == (pytest.approx(80, abs=0.2), pytest.approx(90, abs=0.2))
    assert f"validation split: {first:.3g} to {second:.3g} % of the file" in splits.extent("validation")


def test_text_is_not_cut_before_a_mark_that_belongs_to_the_character_before(write):
    content = "ab\u0301" * 1000  # 80 % of it ends before an accent
    splits = load_text(str(write("lone.txt", content + "c")))
    assert [splits.split(name)[0].text[0] for name in text.SPLITS] != ["a", "\u0301", "\u0301"]
    assert not any(splits.split(name)[0].text.startswith("\u0301") for name in text.SPLITS)


def test_shares_that_came_out_are_stated(write):
    paragraphs = ["word " * 900 + "\n", "word " * 90 + "\n", "word " * 10]
    splits = load_text(str(write("lone.txt", "".join(paragraphs))))
    sizes = [len(splits.split(name)[0].text) for name in text.SPLITS]
    extents = [splits.extent(name) for name in text.SPLITS]
    assert f"the first {100 * sizes[0] / sum(sizes):.3g} % of the file" in extents[0]
    assert f"the last {100 * sizes[2] / sum(sizes):.3g} % of the file" in extents[2]


def test_lone_wikitext_file_is_cut_between_articles(write):
    titles = [f"Title {i}" for i in range(20)]
    splits = load_text(str(write("lone.txt", wikitext_of(titles))))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [16, 2, 2]
    assert [article.title for article in splits.train + splits.validation + splits.test] == titles


@pytest.mark.parametrize("count", [1, 3, 9, 10, 25])
def test_lone_wikitext_file_loses_nothing(write, count):
    content = wikitext_of(f"Title {i}" for i in range(count))
    splits = load_text(str(write("lone.txt", content)))
    assert file_of(splits.train + splits.validation + splits.test) == content


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_gives_each_file_to_its_split(write, layout):
    for name in LAYOUTS[layout]:
        path = write(name, wikitext_of([f"{name} 1", f"{name} 2"]))
    splits = load_text(str(path.parent))
    titles = [[article.title for article in splits.split(split)] for split in text.SPLITS]
    assert titles == [[f"{name} 1", f"{name} 2"] for name in LAYOUTS[layout]]


def test_split_that_a_folder_lacks_is_named_with_those_it_has(write):
    splits = load_text(str(write("train.txt", "words\n").parent))
    with pytest.raises(LabError, match=r"no test split; it has train: give a longer text, or a folder with all three$"):
        splits.split("test")


def test_unknown_split_is_named_with_the_known_ones():
    with pytest.raises(LabError, match=r"'dev' is unknown; use train, validation, test"):
        load_text("sample").split("dev")


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", ["odd.txt", "folder/train.txt"])
def test_unreadable_file_is_refused_by_name_with_what_to_do(write, kind, name):
    path = write(name, UNREADABLE[kind])
    with pytest.raises(LabError, match=rf"{path.name} .*(give|save)") as caught:
        load_text(str(path if name == "odd.txt" else path.parent))
    assert "\n" not in str(caught.value)


def test_zero_byte_and_wrong_encoding_are_reported_with_their_place(write):
    with pytest.raises(LabError, match=r"zero byte at 4\)"):
        read_articles(write("zero.txt", b"text\0more"))
    with pytest.raises(LabError, match=r"not UTF-8 text \(byte 3\)"):
        read_articles(write("latin.txt", UNREADABLE["latin-1"]))


def test_file_past_the_limit_is_refused_with_both_numbers(write, monkeypatch):
    monkeypatch.setattr(text, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(LabError, match=r"1,001 bytes; the limit is 1,000"):
        read_articles(write("large.txt", "x" * 1001))
    assert len(read_articles(write("fits.txt", "x" * 1000))[0].text) == 1000


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(LabError, match=r"gone\.txt cannot be read"):
        read_articles(tmp_path / "gone.txt")


@pytest.mark.parametrize("name", ["nonsense", "", "a\0b", "~nobody-of-that-name/text.txt", "n" * 5000, None, 7])
def test_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(LabError, match=r"sample, repeated, wikitext-2, wikitext-2-v1, a folder or a text file"):
        load_text(name)


def test_folder_without_splits_is_refused_by_name(tmp_path):
    with pytest.raises(LabError, match=rf"{tmp_path} has no train, validation or test file"):
        load_text(str(tmp_path))


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-2-v1"])
def test_wikitext_out_of_reach_is_reported_in_one_line_that_names_the_sample(monkeypatch, name):
    monkeypatch.setattr(sources, "is_cached", lambda *_: False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)
    with pytest.raises(LabError, match=rf"^'{name}' is not in the local cache .* use 'sample'") as caught:
        load_text(name)
    assert "\n" not in str(caught.value)


def test_cached_text_that_cannot_be_read_is_one_line(monkeypatch):
    download = Mock(side_effect=LocalEntryNotFoundError("no connection"))
    monkeypatch.setattr(sources, "is_cached", lambda *_: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(LabError, match=r"^'wikitext-2' cannot be loaded: no connection; try again, or use 'sample'$"):
        load_text("wikitext-2")
    assert download.call_args.kwargs["local_files_only"] is True
