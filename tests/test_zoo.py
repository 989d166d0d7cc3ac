"""Every command, function and handler of the page over checkpoints of every kind: equal to plain transformers, or one line.

The kinds are those of `tests.zoo`. What is compared with is transformers' and peft's own code on the same folders.
"""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoTokenizer, BertTokenizer, GPT2LMHeadModel

from gpt2lab import cli
from gpt2lab.app.app import build_app
from gpt2lab.app.evaluate import OWN
from gpt2lab.app.events import ALONE, escaped
from gpt2lab.app.models import ModelStore
from gpt2lab.data import hub
from gpt2lab.data.blocks import token_ids
from gpt2lab.data.text import Article, articles_of, load_text
from gpt2lab.data.tokens import DecodeStream, display_tokens, token_bytes, tokens_and_starts
from gpt2lab.errors import LabError
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.evaluation.perplexity import read
from gpt2lab.generation.generate import beam_search, generate, generate_batch, prompt_hint, prompt_ids
from gpt2lab.generation.measures import measure
from gpt2lab.inspection.exploration import exploration
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.model.lab import Lab, load_model, without_peft_warning
from gpt2lab.pages.explore import explore_answer
from gpt2lab.results import readable
from gpt2lab.training import worker
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.prepare import prepare
from tests.zoo import CHINESE, ENGLISH, KINDS, build

TEXTS = ("The moon is", "we 我们是 🌙", "Don't ask: it isn't.", " two  spaces ", "line\nline", "é")
PROMPT, LONG = "The moon goes around the earth", ENGLISH + CHINESE
WITHOUT_END = ("bert", "vocab.txt", "metaspace", "word-level")
DRAWN = ("byte-level", "bert")  # whose pictures are drawn; of the others the figures are made, with the same labels
VISITOR = SimpleNamespace(session_hash="one")


@dataclass
class Animal:
    """A checkpoint: its kind, its folder, how gpt2lab loads it, and how transformers does."""

    kind: str
    folder: Path
    lab: Lab
    model: GPT2LMHeadModel
    tokenizer: object

    @property
    def ends(self) -> set[int]:
        """Every id that transformers would end at, by any of the three places."""
        ids = set()
        for place in (self.tokenizer, self.model.config, self.model.generation_config):
            ends = place.eos_token_id
            ids |= set(ends) if isinstance(ends, list) else {ends}
        return {i for i in ids if i is not None and i < self.model.config.vocab_size}

    def ids(self, text: str) -> list[int]:
        """What transformers reads of a text when it adds nothing."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids) -> str:
        """The text of ids, as transformers spells it for any kind of tokenizer."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module", params=KINDS)
def animal(request, tmp_path_factory):
    folder = build(request.param, tmp_path_factory.mktemp("zoo") / request.param.replace(" ", "-").replace(",", ""))
    base = folder.with_name(f"{folder.name}-base") if request.param == "adapter" else folder
    model = GPT2LMHeadModel.from_pretrained(base, attn_implementation="eager")
    if request.param == "adapter":
        with without_peft_warning():
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    made = BertTokenizer if request.param == "vocab.txt" else AutoTokenizer
    return Animal(request.param, folder, load_model(str(folder)), model.eval(), made.from_pretrained(base))


def only(*kinds: str):
    """Run a test over some kinds alone."""
    return pytest.mark.parametrize("animal", kinds, indirect=True, scope="module")


@pytest.fixture
def call(animal, monkeypatch, capsys, tmp_path):
    """A function: arguments → the object that a command prints with --json, or (status, output, errors) without."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments, as_json=True):
        given = [command, *arguments, "--model", animal.folder, *(["--json"] if as_json else [])]
        monkeypatch.setattr(sys, "argv", ["gpt2lab", *map(str, given)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        if not as_json or status:
            return status, out, err
        return json.loads(out)

    return run


def test_special_tokens_are_added_at_no_door(animal, call):
    lab = animal.lab
    for text in TEXTS:
        ids = animal.ids(text)
        assert lab.encode(text).tolist() == ids
        assert prompt_ids(lab, text).tolist() == ids
        assert token_ids(lab.tokenizer, [Article("", (text,))]).tolist() == ids + [
            i for i in [animal.tokenizer.eos_token_id] if i is not None
        ]
        found, starts = tokens_and_starts(lab.tokenizer, text)
        assert found.tolist() == ids and (np.diff(starts) >= 0).all() and starts.max() < len(text)
    record = call("inspect", "--text", PROMPT)
    assert record["ids"] == animal.ids(PROMPT)


def test_greedy_text_is_what_transformers_adds_to_the_prompt(animal, call):
    for prompt in (PROMPT, "我们是"):
        ids = animal.ids(prompt)
        prompts = torch.tensor([ids])
        made = animal.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=sorted(animal.ends) or None,
            pad_token_id=0,
        )[0].tolist()
        kept = [*ids, *(i for i in made[len(ids) :] if i not in animal.ends)]
        expected = animal.decode(kept)[len(animal.decode(ids)) :]
        found = generate(animal.lab, prompt, max_new_tokens=24, temperature=0)
        assert [step.id for step in found.steps] == made[len(ids) :]
        assert found.text == expected
    options = ["--prompt", prompt, "--temperature", 0, "--max-new-tokens", 24]  # the last of the two
    status, out, err = call("generate", *options, as_json=False)
    assert (status, out) == (0, f"{prompt}{expected}\n")
    assert "Warning" not in err and "[transformers]" not in err
    assert call("generate", *options)["text"] == expected


def test_text_in_a_stream_is_the_text_at_once(animal):
    ids = animal.ids(PROMPT)
    found = generate(animal.lab, PROMPT, max_new_tokens=30, temperature=1.5, seed=1)
    stream = DecodeStream(animal.lab.tokenizer, ids)
    written = "".join(stream.add(step.id) for step in found.steps if step.id not in animal.ends)
    assert found.text.startswith(written) and set(found.text[len(written) :]) <= {"\ufffd"}


def test_every_token_is_shown_and_json_has_its_bytes(animal, call):
    tokenizer, rows = animal.lab.tokenizer, animal.lab.model.config.vocab_size
    shown = display_tokens(tokenizer, range(rows))
    assert all(text and text.isprintable() for text in shown)
    record = call("generate", "--prompt", PROMPT, "--max-new-tokens", 12, "--seed", 2, "--temperature", 1.5)
    for step in record["steps"]:
        for token in (step, *step["alternatives"]):
            raw = token_bytes(tokenizer, token["id"])
            assert token["bytes"] == (None if raw is None else list(raw))
            assert token["token"]
    if animal.kind == "byte-level":  # bytes after one another are the text
        text = b"".join(bytes(step["bytes"] or b"") for step in record["steps"] if step["id"] not in animal.ends)
        assert text.decode(errors="replace") == record["text"]


def test_model_that_ends_its_text_is_stopped_by_each_of_its_end_tokens(animal):
    lab = animal.lab
    assert lab.end_ids == animal.ends
    assert ("no end token" in " ".join(lab.notes)) == (animal.kind in WITHOUT_END)
    for end in animal.ends:
        head = torch.nn.Linear(lab.model.config.n_embd, lab.model.config.vocab_size)
        torch.nn.init.zeros_(head.weight)
        head.bias.data = F.one_hot(torch.tensor(end), len(head.bias)).float() * 50
        model, lab.model.lm_head = lab.model.lm_head, head
        try:
            found = generate(lab, PROMPT, max_new_tokens=8, temperature=0)
        finally:
            lab.model.lm_head = model
        assert ([step.id for step in found.steps], found.finish, found.text) == ([end], "end of text", "")


def test_prompt_that_is_empty_begins_from_the_beginning_token_or_is_refused_in_a_line(animal, call):
    tokenizer = animal.tokenizer
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    status, out, err = call("generate", "--prompt", "", "--max-new-tokens", 3, "--temperature", 0, as_json=False)
    if first is None:
        assert (status, out) == (2, "") and "has no token to begin a text from; type at least one" in err.splitlines()[
            -1
        ]
        return
    assert status == 0 and f"the model begins from {tokenizer.convert_ids_to_tokens(first)}" in err
    assert prompt_ids(animal.lab, "").tolist() == [first]


def test_other_ways_to_generate_and_their_measures(animal, call, tmp_path):
    lab = animal.lab
    batch = generate_batch(lab, PROMPT, 2, max_new_tokens=6, seed=4)
    assert [one.text for one in batch] == [generate(lab, PROMPT, max_new_tokens=6, seed=4 + i).text for i in range(2)]
    assert beam_search(lab, PROMPT, beams=2, max_new_tokens=5).steps
    found = generate(lab, PROMPT, max_new_tokens=12, seed=4)
    if len(found.text) > 3:
        stopped = generate(lab, PROMPT, max_new_tokens=12, seed=4, stop=found.text[1:3])
        assert found.text.startswith(stopped.text) and found.text[1:3] not in stopped.text
    (tmp_path / "text.txt").write_text(LONG * 4, encoding="utf-8")
    training = token_ids(lab.tokenizer, load_text(str(tmp_path / "text.txt")).train)
    assert measure(lab, found, labs=[lab], training=training).perplexity[lab.name] > 1
    record = call("generate", "--prompt", PROMPT, "--max-new-tokens", 4, "--measure", tmp_path / "text.txt")
    assert record["measures"]["tokens"] == len(record["steps"])
    assert (prompt_hint(lab, "The moon ") is None) == (animal.kind in ("bert", "vocab.txt", "word-level"))


def test_surprisal_and_perplexity_are_the_cross_entropy_of_transformers(animal, call, tmp_path):
    ids = torch.tensor([animal.ids(PROMPT)])
    with torch.no_grad():
        logits = animal.model(ids).logits[0]
    nll = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none").tolist()
    record = call("inspect", "--text", PROMPT)
    assert [one["nll"] for one in record["surprisal"][1:]] == pytest.approx(nll, rel=1e-3)
    (tmp_path / "text.txt").write_text(PROMPT)
    scored = call("perplexity", "--data", tmp_path / "text.txt", "--split", "all", "--protocol", "sliding")
    assert scored["results"][0]["perplexity"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-3)


def test_all_protocols_are_scored_but_the_one_that_needs_a_token_which_is_not_there(animal, call, tmp_path):
    (tmp_path / "text.txt").write_text(LONG * 6, encoding="utf-8")
    record = call("perplexity", "--data", tmp_path / "text.txt", "--split", "all", "--protocol", "all", "--context", 32)
    names = [one["protocol"] for one in record["results"]]
    if animal.kind in WITHOUT_END:
        assert names == ["sliding", "blocks"]
        assert "lm-eval: not scored: the tokenizer has no beginning or end token" in " ".join(record["verdicts"])
        status, _, err = call("perplexity", "--data", tmp_path / "text.txt", "--protocol", "lm-eval")
        assert status == 2 and err.splitlines()[-1].endswith("use sliding or blocks")
        return
    assert names == ["sliding", "lm-eval", "blocks"]
    reading = read(animal.lab, load_text(str(tmp_path / "text.txt")).split("all"), "lm-eval", context=32)
    first = animal.tokenizer.bos_token_id
    assert reading.ids[0] == first


def test_attention_is_that_of_transformers_eager_code(animal, call, tmp_path):
    ids = torch.tensor([animal.ids(PROMPT)])
    with torch.no_grad():
        weights = torch.cat(animal.model(ids, output_attentions=True).attentions).numpy()
    for format in ("npz", "html", "csv", *(["svg"] if animal.kind in DRAWN else [])):
        out = tmp_path / f"file.{format}"
        status, _, err = call("attention", "--text", PROMPT, "--out", out, as_json=False)
        assert (status, out.stat().st_size > 100) == (0, True), err
    file = np.load(tmp_path / "file.npz")
    np.testing.assert_allclose(file["weights"], weights, atol=2e-5)
    assert file["ids"].tolist() == ids[0].tolist()
    assert file["tokens"].tolist() == list(display_tokens(animal.tokenizer, ids[0].tolist()))


def test_every_part_of_inspect(animal, call):
    ids = animal.ids(PROMPT)
    record = call("inspect", "--text", PROMPT, "--lens", "--heads", "--attribution", "--sweep", "--ablate", "0.1,1.mlp")
    with torch.no_grad():
        own = animal.model(torch.tensor([ids])).logits[0].softmax(-1)
    last = record["lens"][-1]
    assert [cell["top"][0]["id"] for cell in last] == own.argmax(-1).tolist()
    assert last[-1]["top"][0]["probability"] == pytest.approx(own[-1].max().item(), rel=1e-3)
    assert record["sweep"]["loss"] == pytest.approx(record["ablate"]["loss"], rel=1e-4)
    assert record["attribution"]["total"] > 0
    record = call("inspect", "--text", PROMPT, "--walk", "1.2", "--position", 1)
    assert sum(record["walk"]["steps"]["weights"]) == pytest.approx(1, abs=1e-5)
    word = animal.decode([ids[0]])
    if animal.ids(word) == [ids[0]]:  # a word that is one token by itself can be followed
        followed = call("inspect", "--text", PROMPT, "--lens", "--token", word)
        assert followed["lens"][0][0]["target"] == ids[0]


@only("bert", "vocab.txt")
def test_one_character_that_is_a_token_can_be_followed_and_patched(animal, call):
    record = call("inspect", "--text", "我们是", "--lens", "--token", "我")
    assert record["tokens"] == ["我", "们", "是"]
    patched = call("inspect", "--text", "我们是", "--patch", "我是们", "--token", "我", "--against", "们")
    assert len(patched["patch"]["values"][0]) == 3


def test_training_reads_what_transformers_reads_and_ends_articles_where_there_is_an_end(animal, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(LONG * 3, encoding="utf-8")
    config = TrainConfig(model=str(animal.folder), data=str(tmp_path), steps=1, block_size=32, batch_size=1)
    job = prepare(config, PartialState())
    ids = animal.ids(LONG * 3) + [i for i in [animal.tokenizer.eos_token_id] if i is not None]
    assert job.train.input_ids.flatten().tolist()[: len(ids) - 1] == ids[: len(ids) - 1]
    assert job.notes == animal.lab.notes
    scratch = prepare(replace(config, method="scratch"), PartialState())
    assert torch.equal(scratch.train.input_ids, job.train.input_ids)


def test_tasks_are_texts_that_go_on(animal, call):
    greedy, drawn = {"temperature": 0, "stop": "\n"}, {"top_k": 2, "seed": 0}
    for options, command in (
        (drawn, ["summarize", "--text", LONG]),
        (greedy, ["translate", "--text", "moon", "--example", "a = b"]),
        (greedy, ["answer", "--document", "The moon", "--question", "a", "--example", "b = c"]),
    ):
        record = call("task", *command, "--max-new-tokens", 3)
        expected = [generate(animal.lab, prompt, max_new_tokens=3, **options).text for prompt in record["prompts"]]
        assert record["generated"] == expected and expected


@only("added, not resized")
def test_text_with_a_token_that_has_no_embedding_is_refused_in_a_line_at_every_door(animal, call, tmp_path):
    refused = r"no embedding for the token <\|pad\|>; remove it"
    (tmp_path / "text.txt").write_text(f"{LONG * 3}<|pad|>{LONG}")
    for command in (
        ["generate", "--prompt", "a <|pad|>"],
        ["inspect", "--text", "a <|pad|>"],
        ["perplexity", "--data", tmp_path / "text.txt", "--split", "all"],
        ["finetune", "--data", tmp_path / "text.txt", "--steps", 1, "--block-size", 32, "--run", "r"],
    ):
        status, out, err = call(*command)
        assert (status, out) == (2, "") and "no embedding for the token <|pad|>" in err.splitlines()[-1]
    with pytest.raises(LabError, match=refused):
        animal.lab.encode("<|pad|>")


@only("bert", "adapter")  # of all others the tokens are those of `prepare`, above
def test_finetuning_on_the_command_line(animal, call, tmp_path, monkeypatch):
    method = {"bert": "full", "adapter": "lora"}[animal.kind]
    if animal.kind not in DRAWN:
        monkeypatch.setattr(worker, "write_report", lambda folder: None)  # takes seconds
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(LONG * 3, encoding="utf-8")
    options = ["--steps", 1, "--block-size", 32, "--batch-size", 1, "--eval-tokens", "all", "--run", "one"]
    record = call("finetune", "--data", tmp_path, "--method", method, "--precision", "fp32", *options)
    ids = torch.tensor(animal.ids(LONG * 3) + [i for i in [animal.tokenizer.eos_token_id] if i is not None])
    with torch.no_grad():
        nll = [
            F.cross_entropy(animal.model(block[None]).logits[0, :-1], block[1:], reduction="none")
            for block in ids.split(32)
            if len(block) > 1
        ]
    assert record["val_loss_before"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-3)
    tuned = load_model(record["model_dir"])
    assert tuned.end_ids == animal.lab.end_ids
    assert tuned.encode(PROMPT).tolist() == animal.ids(PROMPT)


@pytest.fixture(scope="module")
def page(tmp_path_factory, request):
    """The handlers of the whole page by name, where a model is chosen by the name of its kind."""
    folder = tmp_path_factory.mktemp("page")
    labs = {"builtin": load_model("builtin")}  # what the page opens with
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr(hub, "is_downloaded", lambda name: True)
        patch.setattr(ModelStore, "lab", lambda self, label: replace(labs[label], name=label))
        for module in ("evaluate", "evaluate_content"):  # no tokens are in a picture, and it takes a second
            patch.setattr(f"gpt2lab.app.{module}.as_image", lambda figure: None)
        patch.setattr(ModelStore, "version", lambda self, label: labs[label].model.name_or_path)
        demo = build_app(folder / "runs")
        [texts] = [block for block in demo.blocks.values() if block.elem_id == "generate-page"]
        named = {event.fn.__qualname__: event.fn for event in demo.fns.values() if hasattr(event.fn, "__qualname__")}
        handlers = {name.rpartition(".")[2]: handler for name, handler in named.items() if not name.startswith("Api")}
        handlers["explore"] = named["build_explore_tab.<locals>.run"]
        yield SimpleNamespace(labs=labs, of_texts=texts.answer, **handlers)


@pytest.fixture
def tab(animal, page):
    """The page with the checkpoint as its model."""
    page.labs["builtin"] = replace(animal.lab, name="builtin")
    return page


def test_model_is_described_with_its_notes(animal, tab):
    line = tab.describe("builtin", ALONE)
    assert animal.lab.shape in line
    assert all(escaped(note) in line for note in animal.lab.notes)


def test_generate_tab(animal, tab):
    lab = tab.labs["builtin"]
    options = [5, 0.8, 0, 0.95, 0, 0, 1, 0, "fp32"]
    *_, (key, _, written) = tab.generate(VISITOR, "", "builtin", ALONE, PROMPT, 1, False, *options)
    expected = generate(lab, PROMPT, max_new_tokens=5, seed=0, temperature=0.8, top_p=0.95)
    [text] = written["data"]["texts"]
    steps = [json.loads(line) for line in text["steps"].splitlines()]
    assert text["text"] == expected.text
    assert [step[1] for step in steps] == [step.id for step in expected.steps]
    assert all(step[0] for step in steps)
    subject = {"subject": {"key": key}}
    settings = {"text": 1, "index": 0, "temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0}
    assert len(tab.of_texts(subject | {"kind": "redraw", "options": settings})["low"]) == 10
    other = {"text": 1, "index": 0, "token": expected.steps[0].alternatives[3].id, "shown": [1], "side": 0}
    *_, (_, _, branched) = tab.continue_from(VISITOR, key, SimpleNamespace(_data=other))
    assert json.loads(branched["data"]["texts"][1]["steps"].splitlines()[0])[1] == other["token"]
    [column] = tab.of_texts(subject | {"kind": "measure", "options": {"texts": [1], "data": "sample"}})["columns"]
    assert column["tokens"] == len(expected.steps)


def test_explore_tab(animal, tab):
    lab = tab.labs["builtin"]
    value = tab.explore("builtin", PROMPT, ALONE)
    json.dumps(value, allow_nan=False)
    [side] = value["data"]["sides"]
    assert side["tokens"] == [*display_tokens(lab.tokenizer, animal.ids(PROMPT))]
    np.testing.assert_allclose(side["surprisal"]["nll"][1:], surprisal(lab, PROMPT).nll[1:], atol=2e-3)
    corrupted = PROMPT.replace("moon", "earth")

    def ask(kind, **options):
        [answer] = explore_answer([lab], [exploration(lab, PROMPT)], kind, options)["sides"]
        return answer

    asked = {
        "ablate": {"off": [[0, 1]]},
        "attention": {"layer": 1},
        "qk": {"layer": 1, "head": 1},
        "sweep": {"layer": 1},
    }
    asked |= {"contributions": {"position": 1}, "walk": {"layer": 1, "head": 1, "position": 2}}
    asked |= {"why": {"position": 2, "method": "gradient-x-input", "unit": "word", "curves": True}}
    for kind, options in asked.items():
        assert "error" not in ask(kind, **options), kind
    patched = ask("patch", corrupted=corrupted, layer=1)
    if "error" in patched:  # prompts of different length, or with the same answer: the error is the package's
        with pytest.raises(LabError) as refused:
            patching(lab, PROMPT, corrupted)
        assert patched["error"] == str(refused.value)


def test_evaluate_tab(animal, tab):
    questions = {"data": OWN, "split": "test", "protocols": ["sliding", "lm-eval", "blocks"]}
    questions |= {"context": 32, "stride": 0, "quick": 0, "seed": 0, "precision": "fp32", "text": LONG * 4}
    *_, shown = tab.evaluate("builtin", ALONE, False, *questions.values())
    [key] = [value for value in shown.values() if isinstance(value, str) and len(value) == 16]
    protocols = ["sliding", "blocks"] if animal.kind in WITHOUT_END else ["sliding", "lm-eval", "blocks"]
    expected = evaluate(tab.labs["builtin"], articles_of(LONG * 4, ""), protocols, context=32)
    text = " ".join(value if isinstance(value, str) else str(getattr(value, "value", "")) for value in shown.values())
    assert all(readable(found.perplexity) in text for _, found in expected.results)
    assert tab.show_document(key, "sliding", 0, False)
    assert tab.show_breakdown(key, "sliding", "position", False)[1]
    assert Path(tab.make_file(key, "sliding", "part", "tokens.csv").value["path"]).stat().st_size > 1000


@only("bert")  # the cost depends on the shape alone
def test_cost_of_a_run_is_estimated(animal, call, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2lab.training.cost.import_seconds", lambda: 5.0)
    (tmp_path / "text.txt").write_text(LONG * 6, encoding="utf-8")
    options = ["--steps", 2, "--block-size", 32, "--batch-size", 1, "--eval-tokens", 32, "--dry-run"]
    assert call("finetune", "--data", tmp_path / "text.txt", *options)["in_words"]
