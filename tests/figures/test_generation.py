from dataclasses import replace

import numpy as np
import pytest

from gpt2lab.figures.drawing import figure, figure_bytes
from gpt2lab.figures.generation import MAX_SHOWN
from gpt2lab.generation.generate import generate

HOSTILE = ("$\\frac$", "_a^{", "</script>", "שלום", "🌙", "\x00", "\n", "")


@pytest.fixture(scope="module")
def text(tiny_lab):
    return generate(tiny_lab, "The moon", max_new_tokens=8, seed=1)


def test_bars_are_surprisal_and_the_line_is_entropy(text):
    [axes] = figure(text).axes
    np.testing.assert_allclose(
        [bar.get_height() for bar in axes.patches], [-np.log(one.probability) for one in text.steps]
    )
    [line] = axes.lines
    np.testing.assert_allclose(line.get_ydata(), [one.entropy for one in text.steps])


def test_any_text_has_a_picture(text, small_pictures):
    hostile = replace(text, steps=tuple(replace(step, token=word) for step, word in zip(text.steps, HOSTILE)))
    for one in (hostile, replace(text, steps=()), replace(text, steps=text.steps * 20)):
        assert figure_bytes(figure(one, dark=True), "png").startswith(b"\x89PNG")
        assert len(figure(one).axes[0].patches) == min(len(one.steps), MAX_SHOWN)
