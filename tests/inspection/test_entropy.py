import math

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.figures.entropy import entropy_figure
from gpt2lab.inspection.entropy import entropy_by_position
from gpt2lab.inspection.heads import trace_scores
from gpt2lab.inspection.trace import trace
from gpt2lab.pages.export import FORMATS, export

TEXT = "The moon is a small world."


def test_entropy_is_that_of_the_weights(tiny_lab):
    found, seen = entropy_by_position(tiny_lab, TEXT), trace(tiny_lab, TEXT)
    for layer in range(seen.n_layers):
        for t in range(len(seen.tokens)):
            rows = seen.attention(layer)[:, t, : t + 1].double()
            assert float(found.entropy[layer, t]) == pytest.approx(float(-(rows * rows.log()).sum(-1).mean()), abs=1e-5)
    torch.testing.assert_close(found.entropy.mean(-1), trace_scores(seen, ("entropy",))["entropy"].mean(-1))
    assert (found.entropy[:, 0] == 0).all() and (found.entropy <= found.limit + 1e-5).all()
    assert float(found.limit[3]) == pytest.approx(math.log(4))


def test_figure_has_a_line_per_layer_and_the_limit(tiny_lab):
    found = entropy_by_position(tiny_lab, TEXT)
    lines = entropy_figure(found).axes[0].lines
    for line, values in zip(lines, [*found.entropy, found.limit], strict=True):
        np.testing.assert_allclose(line.get_ydata(), values)


def test_every_format_is_written_and_a_bad_text_is_refused(tiny_lab):
    found = entropy_by_position(tiny_lab, TEXT)
    assert all(export(found, form) for form in FORMATS)
    assert export(found, "csv").decode().splitlines()[0].endswith("limit")
    with pytest.raises(LabError, match="is empty"):
        entropy_by_position(tiny_lab, "")
