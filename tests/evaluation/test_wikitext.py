from collections import Counter

import pytest

from gpt2lab.evaluation import wikitext
from gpt2lab.evaluation.wikitext import RULES, detokenise, pages

# written by hand from the harness's published rules, one rule at work in each
ONE_RULE = [
    ("s '", "the dogs ' bones", "the dogs' bones"),
    ("s ' opens a quotation all the same", "he says ' no", "he says' no"),
    ("/' [0-9]/ puts its own pattern in", "a/' 6/b", "a/'[0-9]/b"),
    (" @-@ ", "a low @-@ pass filter", "a low-pass filter"),
    (" @,@ ", "1 @,@ 000 @,@ 000", "1,000,000"),
    (" @.@ ", "3 @.@ 5 million", "3.5 million"),
    (" : ", "a note : this", "a note: this"),
    (" ; ", "here ; there", "here; there"),
    (" . ", "One . Two", "One. Two"),
    (" ! ", "No ! Yes", "No! Yes"),
    (" ? ", "Who ? Me", "Who? Me"),
    (" , ", "one , two", "one, two"),
    ("( )", "x ( a b ) y (  c) z", "x (a b) y (c) z"),
    ("[ ]", "x [ a b ] y [  c] z", "x [a b] y [c] z"),
    ("{ }", "x { a b } y {  c} z", "x {a b} y {c} z"),
    ('" "', 'say " yes " and " no "', 'say "yes" and "no"'),
    ("' '", "it read ' no ' to", "it read 'no' to"),
    ("= = = =", "= = = = Deep = = = =", "==== Deep ===="),
    ("= = =", "= = = Mid = = =", "=== Mid ==="),
    ("= =", "= = Head = =", "== Head =="),
    (" ° ", "at 5 ° C", "at 5°C"),
    (" newline", "the end \nnext", "the end\nnext"),
    ("newline ", "the end\n next", "the end\nnext"),
    (" N ", "53 N 4 W", "53 1 4 W"),
    (" 's", "Ada 's cat", "Ada's cat"),
]
ORDER = [
    ("colons come before semicolons", "a : ; b", "a:; b"),
    ("semicolons come after colons", "a ; : b", "a ;: b"),
    ("full stops come before commas", "etc . , b", "etc., b"),
    ("marks of one kind share no space", "a , , b", "a, , b"),
    ("four equals signs come before three and two", "= = = = = x", "===== x"),
    ("degrees come before N", "5 ° N of", "5°N of"),
    ("line starts come before N", "a\n N b", "a\nN b"),
    ("line ends come before N", "a N \nb", "a N\nb"),
    ("s ' comes before quotations, which then swallow a space", "dogs ' tails ' end", "dogs'tails' end"),
    ("quotations come before 's, and pair its apostrophes", "Ada 's cat and Bob 's", "Ada's cat and Bob's"),
    ("brackets within brackets end at the first that closes", "( a ( b ) c )", "(a ( b) c )"),
    ("commas come before quotations", '" a " , " b "', '"a", "b"'),
]
LEFT_ALONE = [
    "",
    "plain words, already joined.",
    "in ' 68",  # what the rule for years was meant for
    "in /' 68/",
    "the end .",  # no space after it
    "x ( open",
    "a-b @ - @ c",
    "5° C",
    "  two  spaces  ",
]
PARAGRAPH = (
    " The boys ' low @-@ cost film ( 1 @,@ 250 @.@ 5 pounds ) was released in 1968 ; critics called it "
    '" the year \'s best " , at 53 ° N . \n \n = = = Cast = = = \n \n Who ? ; nobody . '
)
PARAGRAPH_DETOKENISED = (
    " The boys'low-cost film (1,250.5 pounds) was released in 1968; critics called it "
    '"the year\'s best", at 53°N.\n\n=== Cast ===\n\nWho ?; nobody. '
)  # the apostrophes of "boys'" and "year's" are taken for a quotation, hence the space that is missing
FILE = " \n = A = \n \n text . \n \n = = H = = \n \n more \n \n = B = \n \n end \n"


def examples(cases):
    return pytest.mark.parametrize(("tokens", "text"), [case[1:] for case in cases], ids=[case[0] for case in cases])


@examples(ONE_RULE)
def test_each_rule_of_the_detokeniser_alone(tokens, text):
    assert detokenise(tokens) == text


@examples(ORDER)
def test_rules_of_the_detokeniser_follow_on_each_other_in_the_published_order(tokens, text):
    assert detokenise(tokens) == text


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_text_that_no_rule_matches_is_left_alone(text):
    assert detokenise(text) == text


def test_paragraph_under_several_rules():
    assert detokenise(PARAGRAPH) == PARAGRAPH_DETOKENISED


def test_two_apostrophes_swallow_the_line_ends_next_to_them():
    assert detokenise("the dogs ' \n \n = = Head = = \n a ' b") == "the dogs'== Head ==\na' b"


@pytest.mark.parametrize("dropped", range(len(RULES)))
def test_every_rule_is_needed_for_one_of_the_examples(monkeypatch, dropped):
    monkeypatch.setattr(wikitext, "RULES", RULES[:dropped] + RULES[dropped + 1 :])
    assert any(detokenise(tokens) != text for _, tokens, text in ONE_RULE + ORDER)


def test_file_is_cut_before_its_titles_and_a_blank_page_is_dropped():
    assert pages(FILE) == [
        " = A = \n \n text . \n \n = = H = = \n \n more \n ",
        " = B = \n \n end \n",
    ]


def test_pages_are_the_file_but_for_the_newlines_between_them():
    text = FILE.removeprefix(" \n")
    assert "\n".join(pages(text)) == text


def test_formula_on_a_line_of_its_own_begins_a_page():
    assert pages(" a \n = x + 1 = \n b \n") == [" a ", " = x + 1 = \n b \n"]


@pytest.mark.parametrize("marks", ["= =", "= = =", "= = = =", "= = = = ="])
def test_heading_begins_no_page(marks):
    text = f" = A = \n {marks} H {marks} \n more"
    assert pages(text) == [text]


@pytest.mark.parametrize("line", ["= a", "a =", "=a=", "== a ==", "x = y", "="])
def test_line_that_is_no_title_begins_no_page(line):
    assert pages(f"before\n{line}\nafter") == [f"before\n{line}\nafter"]


@pytest.mark.parametrize("line", ["= a =", "   = a =   ", "\t= a b =", " = = "])
def test_white_space_around_a_title_does_not_matter(line):
    expected = [f"before\n{line}\nafter"] if line == " = = " else ["before", f"{line}\nafter"]
    assert pages(f"before\n{line}\nafter") == expected


def test_text_without_titles_is_one_page():
    assert pages("one\n\ntwo\n") == ["one\n\ntwo\n"]


@pytest.mark.parametrize("text", ["", "\n", " \n \n\t\n"])
def test_blank_text_has_no_pages(text):
    assert pages(text) == []


def test_real_file_has_62_pages_of_which_two_begin_with_a_formula(shared_data):
    text = (shared_data / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")
    found = pages(text)
    assert len(found) == 62
    assert sum(len(page.encode()) for page in found) == len(text.encode()) - len(" ") - 62  # a newline before each
    firsts = Counter(page.split("\n")[1].strip() == "" for page in found)  # a title has a blank line after it
    assert firsts == {True: 60, False: 2}
    assert [page.split("\n")[0] for page in found if page.split("\n")[1].strip()] == [
        " = 1 rad / s and a nominal impedance k = ",
        " = 1 henry and capacitance C = ",
    ]


@pytest.mark.parametrize("unit", ["( ", "[ ", "{ ", '" ', "' ", "(", ") (", "= "])
def test_text_made_to_be_slow_is_read_in_linear_time(unit):
    text = unit * 200_000  # by the harness' own patterns the first would take days
    assert len(detokenise(text)) <= len(text)
