from dataclasses import replace

import pytest

from gpt2lab.data.text import Article, TextSplits
from gpt2lab.evaluation.perplexity import perplexity
from gpt2lab.pages.run_report import BYTES_A_TOKEN, FASTER, PROTOCOLS, SECONDS, evaluated

ARTICLES = tuple(
    Article(f"Moon {i}", ("", f" = Moon {i} = \n", "", f" The moon goes around the earth {'again and ' * i}. \n"))
    for i in range(10)
)


@pytest.fixture
def text():
    return TextSplits("moons", ARTICLES[:2], ARTICLES[2:4], ARTICLES)


@pytest.fixture
def labs(random_lab):
    return random_lab(0), random_lab(1)


def test_both_models_are_scored_on_the_test_split_by_the_named_protocols(labs, text):
    evaluation, split = evaluated(*labs, text, training_speed=1e6)
    assert (split, evaluation.models, evaluation.protocols) == ("test", ["before", "after"], list(PROTOCOLS))
    expected = [perplexity(lab, text.test, protocol=protocol) for protocol in PROTOCOLS for lab in labs]
    assert [result for _, result in evaluation.results] == expected


def test_slow_machine_scores_as_many_articles_as_the_time_is_enough_for(labs, text):
    size = sum(len(article.text) + 4 for article in ARTICLES)  # of two blank rows in each, of two bytes
    for share, count in ((1.01, None), (0.5, 5), (0.31, 3), (0.001, 2)):
        speed = share * size * 2 * len(PROTOCOLS) / (SECONDS * FASTER * BYTES_A_TOKEN)
        evaluation, _ = evaluated(*labs, text, training_speed=speed)
        assert evaluation.results[0][1].sample == (count and (count, 10)), share


@pytest.mark.parametrize("test", [(), (Article("", (" moon \n",)),)], ids=["no test split", "a word"])
def test_validation_split_is_scored_where_the_test_split_has_next_to_no_words(labs, text, test):
    evaluation, split = evaluated(*labs, replace(text, test=test, validation=ARTICLES), training_speed=1e6)
    assert split == "validation"
    assert evaluation.results[0][1] == perplexity(labs[0], ARTICLES)
