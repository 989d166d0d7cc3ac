from gpt2lab.inspection.lens import logit_lens
from gpt2lab.widgets.predictions import Predictions


def test_data_are_the_top_predictions_and_the_text_s_own_tokens(tiny_lab):
    lens = logit_lens(tiny_lab, "The moon is small", next=True, top=7)
    [side] = Predictions(lens).data["sides"]
    assert side["ids"] == lens.trace.ids.tolist()
    for t, rows in enumerate(side["next"]):
        expected = [[word, token, round(p, 5)] for token, word, p in lens.top_predictions(-1, t)]
        assert rows == expected and len(rows) == 7
