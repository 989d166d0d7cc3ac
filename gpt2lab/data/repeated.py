"""Random words that recur: a text that is made when it is loaded, always the same.

An article has a few words of random characters, in random order. Which word comes next cannot be known, but once a word
has been seen, its later characters can: by who finds the earlier occurrence of the current character and reads what
followed it, an induction head (Olsson et al., In-context Learning and Induction Heads, 2022). The order is random because
in one sequence over and over, the next character is always the one not seen for longest, which needs no such head.
"""

import numpy as np

BLOCK = 32  # tokens of an article, its end token included: blocks of this size hold one article each
CHARACTERS = tuple(map(chr, range(ord(" "), ord("~") + 1)))  # 95: printable ASCII
WORDS = (2, 4)  # fewest and most different words of an article
LENGTHS = (2, 6)  # shortest and longest word
ARTICLES = {"train": 32_000, "validation": 256, "test": 256}


def repeated_words(split: str) -> list[str]:
    """Return the texts of a split, each of BLOCK - 1 characters.

    split  a name in `ARTICLES`; each has random numbers of its own

    Example: repeated_words("validation")[0] -> 31 characters
    """
    random = np.random.default_rng([*ARTICLES].index(split))
    return [_article(random) for _ in range(ARTICLES[split])]


def _article(random: np.random.Generator) -> str:
    lengths = random.integers(LENGTHS[0], LENGTHS[1] + 1, random.integers(WORDS[0], WORDS[1] + 1))
    letters = iter(random.integers(len(CHARACTERS), size=lengths.sum()))
    words = ["".join(CHARACTERS[next(letters)] for _ in range(length)) for length in lengths]
    order = random.integers(len(words), size=BLOCK // LENGTHS[0])
    return "".join(words[i] for i in order)[: BLOCK - 1]
