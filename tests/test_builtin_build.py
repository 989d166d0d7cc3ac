import csv
import gzip

import numpy as np
import pytest
import torch

from gpt2lab.builtin import build
from gpt2lab.builtin.corpus import Source, folder_sources, spaced, without_overlap
from gpt2lab.data.blocks import IGNORED
from gpt2lab.data.text import load_text, wikitext_article
from gpt2lab.errors import LabError
from gpt2lab.evaluation.wikitext import detokenise
from gpt2lab.model.lab import load_model
from gpt2lab.training import observation


def test_spaced_is_undone_by_detokenise():
    assert spaced('It cost 1,000 pounds, he said: "No."') == 'It cost 1 @,@ 000 pounds , he said : " No . "'
    text = "".join(article.text for article in load_text("sample").split("all"))
    assert detokenise(spaced(text)) == detokenise(text)
    assert spaced(text).count(" , ") > 1000


def test_what_measures_is_not_trained_on():
    paragraph = "one two three four five six seven eight nine ten eleven twelve thirteen"
    measured = [wikitext_article("Mars", [(1, "", (f"{paragraph} and more.",))])]
    shares, short = f"It says: {paragraph.upper()} times.", paragraph.removesuffix(" thirteen")
    train = (
        wikitext_article("Venus", [(1, "", (shares, short, "Something else."))]),
        wikitext_article("MARS", [(1, "", ("Other words.",))]),
    )
    [kept], removed = without_overlap([Source("planets", train, measured)], measured)
    assert [article.title for article in kept.train] == ["Venus"]
    assert [row.strip() for row in kept.train[0].rows if row] == ["= Venus =", short, "Something else."]
    assert kept.held_out == measured
    assert removed == ["planets: 1 of 6 rows of 'Venus'", "planets: the article 'MARS'"]


@pytest.fixture
def folder(tmp_path):
    """Two sources in two groups, one article of them for validation."""
    texts = {
        "train-a.txt.gz": [("a", "moons", "Io"), ("b", "stars", "Vega")],
        "validation.txt": [("a", "moons", "Europa")],
    }
    listed = []
    for name, articles in texts.items():
        text = "".join(f" \n = {title} = \n \n The body {title}. \n" for *_, title in articles)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        listed += [(name, *article) for article in articles]
    with gzip.open(tmp_path / "articles.tsv.gz", "wt", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("file", "group", "source", "title"), *listed])
    return tmp_path


def titles(sources):
    return {s.name: ([a.title for a in s.train], [a.title for a in s.held_out]) for s in sources}


def test_a_folder_by_source(folder):
    both = {"moons": (["Io"], ["Europa"]), "stars": (["Vega"], [])}
    assert titles(folder_sources(folder)) == both
    assert (
        titles(folder_sources(folder, ["b"])) == titles(folder_sources(folder, ["stars"])) == {"moons": both["moons"]}
    )
    with pytest.raises(LabError, match="no group or source planets"):
        list(folder_sources(folder, ["planets"]))
    (folder / "validation.txt").write_text(" \n = Ganymede = \n \n The body. \n")
    with pytest.raises(LabError, match="does not list the articles"):
        list(folder_sources(folder))
    (folder / "articles.tsv.gz").unlink()
    assert titles(folder_sources(folder)) == {folder.name: (["Io", "Vega"], ["Ganymede"])}
    with pytest.raises(LabError, match="no train"):
        list(folder_sources(folder.parent / "nowhere"))


def test_repeated_tokens_ask_for_what_was_shown():
    differ = []
    for seed in range(20):
        read, expected = build.repeated_tokens(np.random.default_rng(seed), 64)
        asked = expected != IGNORED
        period = int((~asked).sum()) + 1
        assert 8 <= period <= 32
        assert torch.equal(read[1:][asked[:-1]], expected[:-1][asked[:-1]])
        assert torch.equal(read[period:], read[:-period])
        differ.append(len(set(read[:period].tolist())) == period)
    assert 4 <= sum(differ) <= 16  # in the other rows, tokens come more than once in a period


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A function that builds a model of one layer on part of the sample, and its work folder."""
    articles = load_text("sample").train
    parts = Source("sample", articles[:4], articles[4:5])
    monkeypatch.setattr(build, "SHAPE", {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2})
    monkeypatch.setattr(build, "VOCABULARY", 400)
    monkeypatch.setattr(build, "END", 399)
    monkeypatch.setattr(build, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(observation, "PROBE", "Bees fly.")
    monkeypatch.setattr(build, "wikipedia_source", lambda: parts)
    monkeypatch.setattr(build, "without_overlap", lambda sources, measured: (sources, []))

    def run(name, steps, start=None):
        build.build([], [], [], steps, start, 1.0, "cpu", tmp_path / name, tmp_path / f"{name}-out", False)
        return tmp_path / f"{name}-out"

    return run


def test_an_interrupted_build_comes_to_the_same(small, monkeypatch):
    whole = small("whole", 10)
    saved = build.Training.save

    def interrupted(self):
        saved(self)
        if self.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(build.Training, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small("broken", 10)
    monkeypatch.setattr(build.Training, "save", saved)
    again = small("broken", 10)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with np.load(whole / "history.npz") as one, np.load(again / "history.npz") as other:
        assert one["steps"].tolist() == [0, 1, 2, 4, 8, 10]
        T = one["surprisal"].shape[1]
        assert one["attention"].shape == (6, 1, 2, T, T)
        assert one["lens_rank"].shape == (6, 2, T)
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    lab = load_model(str(again))
    assert lab.context == 32
    assert lab.tokenizer.decode([399]) == "<|endoftext|>"


def test_more_steps_go_on_from_before_the_rate_fell(small, capsys, monkeypatch):
    monkeypatch.setattr(build, "WARMUP", 2)
    small("more", 12)
    capsys.readouterr()
    small("more", 16)
    assert "going on from step 4\n" in capsys.readouterr().out
    again = small("more", 16)
    assert "going on from step 16\n" in capsys.readouterr().out
    with pytest.raises(LabError, match="16 steps of 16 are done"):
        small("more", 16, start=again)
    with monkeypatch.context() as patch, pytest.raises(LabError, match="is of another text"):
        patch.setattr(observation, "PROBE", "Bees sleep.")
        small("more", 20, start=again)
    new = small("more", 20, start=again)  # its checkpoints are of another beginning
    assert "going on" not in capsys.readouterr().out
    assert (new / "vocab.json").read_bytes() == (again / "vocab.json").read_bytes()
    with np.load(new / "history.npz") as history:
        assert history["steps"].tolist() == [0, 1, 2, 4, 8, 16, 20]
        assert len(history["surprisal"]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "gpt2lab"], "gpt2lab has no history.npz; give the --out folder of another build"),
        (["--rate", "0"], "--rate 0: give a share above 0, at most 1"),
        (["--rate", "nan"], "--rate nan: give a share above 0"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    with pytest.raises(SystemExit, match="2"):
        build.main()
    assert message in capsys.readouterr().err


def test_queries_keys_and_values_learn(small, monkeypatch):
    monkeypatch.setattr(build, "WARMUP", 1)
    trained = load_model(str(small("learned", 4))).model.transformer.h
    build.set_seed(build.SEED)
    for block, new in zip(trained, build.new_model().transformer.h):
        for after, before in zip(block.attn.c_attn.weight.chunk(3, dim=1), new.attn.c_attn.weight.chunk(3, dim=1)):
            assert (after - before).detach().abs().mean() > 1e-4


def test_rows_grow_and_are_followed_by_the_tokens_expected(monkeypatch):
    monkeypatch.setattr(build, "SHORT_STEPS", 2)
    monkeypatch.setattr(build, "MIDDLE_ROWS", 128)
    monkeypatch.setattr(build, "SHAPE", build.SHAPE | {"n_positions": 256})
    documents = object.__new__(build.Documents)
    documents.steps = 10
    documents.ids = {form: [np.arange(i, i + 3000, dtype=np.int32) for i in range(9)] for form in build.FORMS}
    batches = [batch for batch, _ in zip(documents.batches(0), range(9))]
    assert [batch.read.shape for batch in batches] == [(64, 64)] * 2 + [(32, 128)] * 6 + [(16, 256)]
    for batch in batches:
        prose = (batch.expected == batch.read + 1).float().mean(1) > 0.9  # but where an article ends
        assert abs(int((~prose).sum()) - len(batch.read) / 16) <= 1
        assert torch.equal(
            batch.positions - batch.positions[:, :1], torch.arange(batch.read.shape[1]).expand_as(batch.read)
        )
        assert int(batch.positions.min()) >= 0 and int(batch.positions.max()) < 256
    assert len({int(batch.positions[0, 0]) for batch in batches}) > 2
    again = next(documents.batches(5))
    assert all(torch.equal(one, other) for one, other in zip(again, batches[5]))
