import pytest

from gpt2lab.errors import LabError
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.widgets.lensgrid import LensGrid


def test_data_are_the_lens_and_a_position_that_does_not_exist_is_refused(tiny_lab):
    lens = logit_lens(tiny_lab, "The moon is small", next=True)
    widget = LensGrid(lens)
    [side] = widget.data["sides"]
    read = side["lens"]
    for entry in range(3):
        for t in range(len(lens.targets)):
            _, word, p = lens.top_predictions(entry, t)[0]
            assert read["words"][read["top"][entry][t]] == word
            assert read["top_probability"][entry][t] == pytest.approx(p, abs=1e-5)
            assert read["rank"][entry][t] == lens.rank[entry, t]
            for name in ("probability", "entropy", "divergence"):
                assert read[name][entry][t] == pytest.approx(float(getattr(lens, name)[entry, t]), abs=1e-3)
    widget.position = 2
    with pytest.raises(LabError, match="position 99 is out of range"):
        widget.position = 99
