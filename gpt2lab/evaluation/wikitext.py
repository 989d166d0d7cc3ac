"""WikiText as lm-evaluation-harness reads it: cut into pages at whatever looks like a title, and detokenised.

Both are the harness's own rules, with their quirks, since its published numbers depend on them.
Source: its task `wikitext` (lm_eval/tasks/wikitext) and the data set it reads, EleutherAI/wikitext_document_level
"""

import re
from collections.abc import Callable


def _put(instead: str, found: str) -> Callable[[str], str]:
    return lambda text: text.replace(found, instead)


def _tight(opening: str, closing: str) -> Callable[[str], str]:
    """No white space next to the inside of a pair; in linear time, which the harness' own pattern does not take."""
    inside = re.compile(f"{re.escape(opening)}([^{re.escape(closing)}]*){re.escape(closing)}")

    def tight(text: str) -> str:
        end = text.rfind(closing) + 1  # behind it nothing can match, but a search would run to the end for each opening
        return inside.sub(lambda found: f"{opening}{found[1].strip()}{closing}", text[:end]) + text[end:]

    return tight


RULES: tuple[Callable[[str], str], ...] = (  # in this order
    _put("s'", "s '"),  # the dogs ' → the dogs'
    lambda text: re.sub(
        r"/' [0-9]/", r"/'[0-9]/", text
    ),  # meant for years such as '68, but matches only between slashes
    _put("-", " @-@ "),
    _put(",", " @,@ "),
    _put(".", " @.@ "),
    _put(": ", " : "),
    _put("; ", " ; "),
    _put(". ", " . "),
    _put("! ", " ! "),
    _put("? ", " ? "),
    _put(", ", " , "),
    _tight("(", ")"),
    _tight("[", "]"),
    _tight("{", "}"),
    _tight('"', '"'),
    _tight("'", "'"),
    _put("====", "= = = ="),
    _put("===", "= = ="),
    _put("==", "= ="),
    _put("°", " ° "),
    _put("\n", " \n"),
    _put("\n", "\n "),
    _put(" 1 ", " N "),
    _put("'s", " 's"),
)


def detokenise(text: str) -> str:
    """WikiText's tokens as running text, as far as the rules go; it cannot be undone.

    Example: detokenise("It cost 1 @,@ 000 pounds , he said .") -> "It cost 1,000 pounds, he said ."
    """
    for rule in RULES:
        text = rule(text)
    return text


def pages(text: str) -> list[str]:
    """A WikiText file's text, cut before each line that begins and ends like a title; blank pages are left out.

    A formula such as ` = x + 1 = ` on a line of its own begins a page too: there are 62 in WikiText-2's raw test
    split, which has 60 articles. The newline before a page belongs to none.
    """
    found: list[str] = []
    page: list[str] = []
    for line in text.split("\n"):
        marks = line.replace("= = =", "===").replace("= =", "==").strip()
        if marks.startswith("= ") and marks.endswith(" ="):
            found.append("\n".join(page))
            page = []
        page.append(line)
    return [page for page in [*found, "\n".join(page)] if page.strip()]
