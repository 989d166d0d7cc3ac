import csv
import json

import numpy as np
import pytest

from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.heads import SCORES, head_scores
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.trace import trace
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.model.lab import load_model

TEXT, CORRUPTED = "The moon is a small world.", "The moon is a small world!"
EACH = {
    "surprisal": ["--surprisal"],
    "lens": ["--lens"],
    "heads": ["--heads"],
    "entropy": ["--entropy"],
    "attribution": ["--attribution"],
    "sweep": ["--sweep"],
    "ablate": ["--ablate", "1.2,0.mlp"],
    "patch": ["--patch", CORRUPTED],
    "walk": ["--walk", "1.3"],
}
STARTS = {"html": b"<!doctype html>", "png": b"\x89PNG", "svg": b"<?xml", "csv": b"", "npz": b"PK", "json": b"{"}
FILES = [*((part, "npz") for part in EACH), *(("attribution", form) for form in STARTS)]  # export() makes them all


@pytest.fixture
def call(tmp_path, monkeypatch, run_cli):
    """A function: arguments → (exit status, standard output, standard error) of `inspect`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_cli("inspect", *arguments)


@pytest.fixture
def inspected(call, tiny_folder):
    """A function: options → the JSON object that is all of standard output."""

    def run(*options, text=TEXT):
        status, out, err = call("--model", tiny_folder, "--text", text, "--json", *options)
        assert (status, out.count("\n"), err) == (0, 1, "")
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, random_gpt2, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("other") / "model"
    random_gpt2(seed=5).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def near(expected):
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_surprisal_is_the_default(inspected, tiny_lab):
    found = inspected()
    seen = surprisal(tiny_lab, TEXT)
    assert set(found) == {"model", "tokens", "ids", "bytes", "surprisal", "ranks"}
    assert found["ranks"] == dict(seen.buckets)
    assert (found["tokens"], found["ids"]) == (list(seen.tokens), seen.ids.tolist())
    first, *others = found["surprisal"]
    assert first is None and len(others) == len(seen.tokens) - 1
    for at, one in enumerate(others, 1):
        assert set(one) == {"nll", "bits", "rank", "entropy"}
        assert one == near({name: float(getattr(seen, name)[at]) for name in one})


def test_ranks_are_counted_up_to_the_limits_given(inspected, tiny_lab):
    ranks = inspected("--limits", "1, 50")["ranks"]
    assert ranks == dict(surprisal(tiny_lab, TEXT, limits=(1, 50)).buckets) and sum(ranks.values()) == 11


def test_surprisal_takes_a_text_past_the_context(inspected, tiny_lab):
    text = TEXT * 12
    found = inspected("--surprisal", text=text)["surprisal"]
    assert len(found) > tiny_lab.context
    assert [one["nll"] for one in found[1:]] == near(surprisal(tiny_lab, text).nll[1:].tolist())


@pytest.mark.parametrize("target", [None, " moon", "t"])
def test_lens_is_given_by_layer_and_position(inspected, tiny_lab, target):
    target = target if target is None or len(tiny_lab.encode(target)) == 1 else "o"
    record = inspected("--lens", *([] if target is None else ["--token", target]))
    found = record["lens"]
    lens = logit_lens(tiny_lab, TEXT, target=target)
    assert [len(row) for row in found] == [len(lens.trace.tokens)] * lens.trace.n_layers
    for layer, row in enumerate([record["lens_embedding"], *found], -1):
        for at, cell in enumerate(row):
            assert {"top", "rank", "probability"} <= set(cell)
            numbers = ("rank", "probability", "entropy", "divergence")
            assert {name: cell[name] for name in numbers} == near(
                {name: float(getattr(lens, name)[layer + 1, at]) for name in numbers}
            )
            assert [one["id"] for one in cell["top"]] == lens.top[layer + 1, at].tolist()
            assert [one["token"] for one in cell["top"]] == [lens.names[i] for i in lens.top[layer + 1, at].tolist()]
            assert [one["probability"] for one in cell["top"]] == near(lens.top_probability[layer + 1, at].tolist())
            assert cell["target"] == lens.targets[at]


def test_last_layer_of_the_lens_is_the_model_s_own_prediction(inspected, tiny_lab):
    last = inspected("--lens")["lens"][-1]
    logits = trace(tiny_lab, TEXT, logits=True).logits
    assert [cell["top"][0]["id"] for cell in last] == logits.argmax(-1).tolist()
    assert [cell["top"][0]["probability"] for cell in last] == near(logits.softmax(-1).amax(-1).tolist())
    assert all(cell["rank"] == 1 and cell["divergence"] == near(0) for cell in last)


def test_heads_are_a_number_per_layer_and_head_of_each_score(inspected, tiny_lab):
    found, scores = inspected("--heads")["heads"], head_scores(tiny_lab, [TEXT])
    assert set(found) >= set(SCORES)
    for name in SCORES:
        assert np.shape(found[name]) == (2, 4)
        np.testing.assert_allclose(np.array(found[name], float), getattr(scores, name), atol=1e-5)  # null is NaN


@pytest.mark.parametrize("options", [{}, {"position": 2}, {"token": "x", "against": "z"}, {"token": "#65"}])
def test_attribution_is_given_part_by_part(inspected, tiny_lab, options):
    given = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    found, expected = inspected("--attribution", *given)["attribution"], attribution(tiny_lab, TEXT, **options)
    assert found["parts"] == near(dict(expected.parts))
    assert sum(found["parts"].values()) == near(found["total"]) == near(expected.total)
    assert (found["token"], found["against"], found["position"]) == (*expected.words, expected.position)


@pytest.mark.parametrize("mean", [False, True])
def test_sweep_is_the_loss_without_each_head(inspected, tiny_lab, mean):
    found = inspected("--sweep", *["--mean"][:mean])["sweep"]
    expected = sweep(tiny_lab, TEXT, mean=mean)
    assert found["loss"] == near(expected.loss)
    np.testing.assert_allclose(found["losses"], expected.losses, atol=1e-5)
    alone = ablate(tiny_lab, TEXT, [(1, 2)], mean=mean).after.loss
    assert found["losses"][1][2] == near(alone)


@pytest.mark.parametrize("mean", [False, True])
def test_ablation_is_two_losses_and_two_lists_of_top_predictions(inspected, tiny_lab, mean):
    found = inspected("--ablate", "1.2, 0.mlp", *["--mean"][:mean])["ablate"]
    expected = ablate(tiny_lab, TEXT, [(1, 2)], mlps=[0], mean=mean)
    assert [found["loss"], found["loss_ablated"]] == near([expected.before.loss, expected.after.loss])
    assert found["loss"] != near(found["loss_ablated"])
    for name, each in (("top", expected.before), ("top_ablated", expected.after)):
        assert [one["id"] for one in found[name]] == each.top[-1].tolist()


def test_patching_is_logit_differences(inspected, tiny_lab):
    found, expected = inspected("--patch", CORRUPTED)["patch"], patching(tiny_lab, TEXT, CORRUPTED)
    np.testing.assert_allclose(found["values"], expected.values, atol=1e-4)
    assert [found["clean"], found["corrupted"]] == near([expected.clean, expected.corrupted])
    assert (found["answer"], found["against"]) == expected.words
    assert found["values"][-1][-1] == near(found["clean"])


def test_walk_has_every_step_s_numbers(inspected, tiny_lab):
    found, expected = inspected("--walk", "1.3", "--position", 2)["walk"], walk(tiny_lab, TEXT, 1, 3, 2)
    assert (found["layer"], found["head"], found["position"]) == (1, 3, 2)
    numbers = found.get("steps", found)
    for step in expected.steps:
        values = np.array(numbers[step.name], float)  # null is minus infinity, of what lies ahead
        np.testing.assert_allclose(np.nan_to_num(values, nan=-np.inf), step.values, atol=1e-5)


def test_every_part_can_be_asked_for_at_once(inspected):
    options = [option for options in EACH.values() for option in options]
    assert set(inspected(*options)) == {"model", "tokens", "ids", "bytes", "ranks", "lens_embedding", *EACH}


def test_second_model_reads_the_same_text(inspected, other_folder):
    found = inspected("--surprisal", "--sweep", "--compare", other_folder)
    other = load_model(str(other_folder))
    assert found["compare"]["ids"] == found["ids"]
    assert [one["nll"] for one in found["compare"]["surprisal"][1:]] == near(surprisal(other, TEXT).nll[1:].tolist())
    np.testing.assert_allclose(found["compare"]["sweep"]["losses"], sweep(other, TEXT).losses, atol=1e-5)
    assert found["compare"]["surprisal"] != found["surprisal"]


@pytest.mark.parametrize("part", EACH)
def test_tables_name_part_and_model(call, tiny_folder, tiny_lab, part):
    status, out, _ = call("--model", tiny_folder, "--text", TEXT, *EACH[part])
    assert status == 0
    title, head, *rows = out.splitlines()
    assert tiny_lab.name in title
    assert head and rows


def test_table_of_surprisal_has_a_line_per_token_with_its_cost(call, tiny_folder, tiny_lab):
    _, out, _ = call("--model", tiny_folder, "--text", TEXT)
    seen, [_, _, *rows, _] = surprisal(tiny_lab, TEXT), out.splitlines()
    assert [row.split()[1] for row in rows] == list(seen.tokens)
    assert [float(row.split()[2]) for row in rows[1:]] == pytest.approx(seen.nll[1:].tolist(), abs=6e-4)


@pytest.mark.parametrize(("part", "form"), FILES)
def test_each_part_and_each_format_is_written(call, tmp_path, tiny_folder, part, form):
    name = f"{part}.{form}"
    status, out, _ = call("--model", tiny_folder, "--text", TEXT, *EACH[part], "--out", name)
    content = (tmp_path / name).read_bytes()
    assert (status, out) == (0, f"{name}  {len(content):,} bytes\n")
    assert content.startswith(STARTS[form]) and len(content) > 100


def test_written_file_holds_the_numbers(call, tmp_path, tiny_folder, tiny_lab):
    common = ["--model", tiny_folder, "--text", TEXT]
    call(*common, "--lens", "--out", "lens.npz")
    call(*common, "--sweep", "--out", "sweep.csv")
    lens, losses = logit_lens(tiny_lab, TEXT), sweep(tiny_lab, TEXT).map().values
    with np.load(tmp_path / "lens.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["probability"], lens.probability, atol=1e-6)
    rows = list(csv.reader((tmp_path / "sweep.csv").open(encoding="utf-8", newline="")))
    assert [float(row[-1]) for row in rows[1:]] == pytest.approx(losses.flatten().tolist(), abs=1e-5)


def test_surprisal_of_two_models_is_one_file(call, tmp_path, tiny_folder, tiny_lab, other_folder):
    status, _, _ = call("--model", tiny_folder, "--text", TEXT, "--compare", other_folder, "--out", "both.npz")
    assert status == 0
    with np.load(tmp_path / "both.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["nll"], surprisal(tiny_lab, TEXT).nll, atol=1e-5)
        np.testing.assert_allclose(found["other_nll"], surprisal(load_model(str(other_folder)), TEXT).nll, atol=1e-5)


@pytest.mark.parametrize("form", ["html", "png", "csv"])
def test_change_between_two_models_is_written(call, tmp_path, tiny_folder, other_folder, form):
    options = ["--compare", other_folder, "--out", f"both.{form}"]
    assert call("--model", tiny_folder, "--text", TEXT, *options)[0] == 0
    assert (tmp_path / f"both.{form}").read_bytes().startswith(STARTS[form])


BAD = [
    (["--text", ""], "the text is empty; type at least one character"),
    (["--text", "", "--lens"], "is empty; type at least one character"),
    (["--text", "x" * 200_001], "the text has 200,001 characters; the limit is 200,000"),
    *((["--text", "x" * 65, *EACH[part]], "65 tokens") for part in EACH if part != "surprisal"),
    (["--text", "x", "--sweep"], "one token has no prediction; give at least 2"),
    (["--ablate", "0.4"], "head 4 is out of range; use a whole number from 0 to 3"),
    (["--ablate", "2.0"], "layer 2 is out of range; use a whole number from 0 to 1"),
    (["--ablate", "2.mlp"], "mlp 2 is out of range; use a whole number from 0 to 1"),
    (["--ablate", ""], "'' names no head or MLP; give layer.head or layer.mlp, as 0.3 or 1.mlp"),
    (["--ablate", "0.1,,1.1"], "'' names no head or MLP"),
    (["--ablate", "-1.0"], "'-1.0' names no head or MLP"),
    (["--ablate", "²."], "names no head or MLP"),
    (["--walk", "0.9"], "head 9 is out of range"),
    (["--walk", "9.0"], "layer 9 is out of range"),
    (["--walk", "0.mlp"], "'0.mlp' names no single head; give layer.head, as 0.3"),
    (["--walk", "0.1,0.2"], "names no single head"),
    (["--walk", "first"], "'first' names no head"),
    (["--walk", "0.1", "--position", "99"], "position 99 is out of range"),
    (["--attribution", "--position", "99"], "position 99 is out of range"),
    (["--attribution", "--position", "last"], "'--position': Input should be a valid integer"),
    (["--attribution", "--token", "moon moon"], "'moon moon' is "),
    (["--lens", "--token", "moon moon"], "give text of one, often with a space before"),
    (["--patch", CORRUPTED, "--token", "moon moon"], "give text of one, often with a space before"),
    (["--lens", "--token", ""], "'' is 0 tokens (none); give text of one"),
    (["--lens", "--token", "#300"], "token 300 is out of range; use a whole number from 0 to 299"),
    (["--lens", "--token", "🌙🌙"], "give text of one"),
    (["--attribution", "--token", "x", "--against", "x"], "against itself is 0; give two tokens"),
    (["--patch", "x"], "1 in the corrupted one do not pair up"),
    (["--patch", ""], "is empty"),
    (["--patch", TEXT], "the two prompts are the same"),
    (["--patch", CORRUPTED, "--token", "x", "--against", "x"], "are the same token, 'x'; name two that differ"),
    (["--lens", "--heads", "--out", "a.csv"], "--out writes one part, not lens, heads; ask for one of them"),
    (
        ["--lens", "--compare", "TINY", "--out", "a.csv"],
        "a file of --lens is of one model; leave --compare out, or use --json",
    ),
    (["--mean"], "--mean changes nothing of surprisal; leave it out"),
    (["--sweep", "--position", "0"], "--position changes nothing of sweep; leave it out"),
    (["--walk", "0.1", "--token", "x", "--against", "z"], "--token, --against changes nothing of walk; leave it out"),
    (["--lens", "--limits", "10"], "--limits changes nothing of lens; leave it out"),
    (["--limits", "ten"], "limits must be numbers separated by commas, such as 10,100,1000; got 'ten'"),
    (["--limits", "10,5"], "do not rise"),
    (["--lens", "--position", "99"], "position 99 is out of range"),
    (["--out", "a.pdf"], "format 'pdf' is unknown; end the file's name in .html, .png, .svg, .csv, .npz, .json"),
    (["--walk", "0.1", "--out", "a.png"], "a Walkthrough has no picture; use html, csv, npz or json"),
    (["--model", "/no/model"], "no model '/no/model'"),
    (["--compare", "/no/model"], "no model '/no/model'"),
    (["--colour"], "No such option: --colour"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[" ".join(one[0])[:60] for one in BAD])
def test_bad_input_ends_with_2_and_one_line_and_writes_nothing(call, tmp_path, tiny_folder, options, message):
    options = [str(tiny_folder) if option == "TINY" else option for option in options]
    usual = {"--model": tiny_folder, "--text": TEXT}
    usual = [argument for pair in usual.items() if pair[0] not in options for argument in pair]
    status, out, err = call(*usual, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gpt2lab: ") and message in err
    assert [path.name for path in tmp_path.iterdir() if path.name != "gpt2lab-cache"] == []


def test_text_that_is_missing_is_bad_usage(call):
    status, out, err = call("--lens")
    assert (status, out) == (2, "")
    assert "Missing option '--text'" in err and err.count("\n") == 1
