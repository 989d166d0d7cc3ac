"""WikiText as lm-evaluation-harness reads it: cut into pages at whatever looks like a title, and detokenised.

Knows strings alone. Both are the harness's own rules, with their quirks, since its published numbers depend on them.
Source: its task `wikitext` (lm_eval/tasks/wikitext) and the data set it reads, EleutherAI/wikitext_document_level
"""

import re

# In this order. Plain strings are replaced as they are, patterns as regular expressions.
RULES: tuple[tuple[str | re.Pattern, str], ...] = (
    ("s '", "s'"),  # the dogs ' → the dogs'
    (re.compile(r"/' [0-9]/"), r"/'[0-9]/"),  # meant for years such as '68, but matches only between slashes
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenise(text: str) -> str:
    """WikiText's tokens as running text, as far as the rules go; it cannot be undone.

    Example: detokenise("It cost 1 @,@ 000 pounds , he said .") -> "It cost 1,000 pounds, he said ."
    """
    for found, instead in RULES:
        text = text.replace(found, instead) if isinstance(found, str) else found.sub(instead, text)
    return text


def pages(text: str) -> list[str]:
    """A WikiText file's text, cut before each line that begins and ends like a title; blank pages are left out.

    A formula such as ` = x + 1 = ` on a line of its own begins a page too: there are 62 in WikiText-2's raw test
    split, which has 60 articles. The newline before a page belongs to none.
    """
    found, page = [], []
    for line in text.split("\n"):
        marks = line.replace("= = =", "===").replace("= =", "==").strip()
        if marks.startswith("= ") and marks.endswith(" ="):
            found.append("\n".join(page))
            page = []
        page.append(line)
    return [page for page in [*found, "\n".join(page)] if page.strip()]
