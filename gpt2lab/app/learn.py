"""The Learn tab: what GPT-2 is, what it is trained on here, one block drawn, what training costs. Text only."""

import gradio as gr

WHAT = """## What GPT-2 is
A **causal language model**: it reads tokens, pieces of words, from left to right, and gives every token of its vocabulary a
probability of coming next. It is trained by predicting the next token of text, and nothing else. It is **not a masked
language model**: BERT is one, which fills gaps and reads on both sides of them; GPT-2 never sees what comes after.

What it gives are *logits*, a number per token of the vocabulary; softmax makes them probabilities. Logits are no text, and
decoding them is a mistake: one token is **chosen** by them, and *that* is decoded. The **Generate** tab shows every choice.

## What it is fine-tuned on
**WikiText-2** is about 2 million words of Wikipedia's good and featured articles: 600 of them for training, 60 each for
validation and test, 13 MB of text in all. (The 240 GB that are sometimes stated are off by four orders of magnitude.) GPT-2
itself was trained on 40 GB of web pages. Without a network, a sample text of the same form and the built-in small model stand
in for them."""
BLOCK = """## One block
GPT-2 small has 12 such blocks one after another, each with 12 heads; gpt2-xl has 48 with 25. Every token has a *state*, a row of
numbers, which runs through them all. Each block only **adds** to it: first what its heads bring from earlier tokens,
`softmax(QKᵀ/√d_k) V`, then what its MLP makes of the token itself. After the last block, a norm and the embedding matrix turn
the state into logits. The **Explore** tab walks any token through it with the model's own numbers, and shows what the
heads look at."""
COST = """## How long training takes
Measured on two CPU cores, without a GPU:

| what | tokens per second | duration |
|---|---|---|
| the built-in model (7.0 M parameters), the demo's 84 steps on the sample | 4,735 | 35 s |
| a model of GPT-2 small's shape (124 M), all weights, blocks of 1,024, fp32 | 143–363 | one pass over WikiText-2 (2.4 M tokens): 1.8 to 4.7 hours |
| the same in bf16, on a processor with bf16 units | 399 | 1.7 hours |

A GPU is much faster; that was not measured here. **Estimate cost** in the Train tab (`--dry-run` on the command line)
measures a few steps on your machine and estimates training, validation, memory and disk before anything is started.

## Ways to cut the cost, and what they cost
"""
WAYS = [
    ("way", "saves", "costs"),
    (
        "**LoRA**: train small matrices beside the frozen weights",
        "1.2 (bf16) to 1.8× (fp32) the tokens per second of training all weights, 0.6 to 0.7× the memory, checkpoints of a few MB",
        "less is learned: two passes over the sample took the test perplexity of a model of 2.6 M parameters from 175.5 to 172.3, training all weights to 157.9",
    ),
    (
        "**shorter blocks**: 128 tokens in place of 256",
        "memory: activations grow with the block",
        "time here, 0.89× the tokens a second with the built-in model; quality no: test perplexity 155.6 against 157.9 after "
        "the same two passes",
    ),
    (
        "**bf16**: multiply matrices in 16 bits, for training, scoring and generation",
        "on CPUs with bf16 units 2.8× the tokens per second of training in fp32; nothing on others",
        "the built-in model's perplexity +0.02 % on the sample; weights and their updates stay in fp32",
    ),
    (
        "**int8 weights**, for generation only",
        "2.6 to 2.95× the tokens per second on an x86 CPU",
        "perplexity +0.09 % on the sample, +0.19 % on WikiText-2; the top token stays the same in 98 % of cases",
    ),
]
PLACES = {
    "explore": "Explore a text",
    "generate": "Generate text",
    "train": "Fine-tune a model",
    "evaluate": "Measure its perplexity",
}
DRAWING = """
<svg viewBox="0 50 720 200" role="img" style="width: 100%; min-width: 560px; max-width: 720px" font-family="system-ui, sans-serif" font-size="13"
     fill="currentColor" stroke="none">
<title>One block: the state of a token passes through; layer norm and attention add to it, then layer norm and MLP add to it</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z" fill="currentColor"/></marker></defs>
<g fill="none" stroke="currentColor" stroke-width="1.5">
<path d="M20 200H700" marker-end="url(#tip)"/>
<path d="M70 200V120H100" marker-end="url(#tip)"/><path d="M180 120H210" marker-end="url(#tip)"/>
<path d="M340 120H360V190" marker-end="url(#tip)"/>
<path d="M410 200V120H440" marker-end="url(#tip)"/><path d="M520 120H550" marker-end="url(#tip)"/>
<path d="M630 120H650V190" marker-end="url(#tip)"/>
<rect x="100" y="100" width="80" height="40" rx="6"/><rect x="440" y="100" width="80" height="40" rx="6"/>
<rect x="210" y="70" width="130" height="100" rx="6" stroke="#d55e00" stroke-width="2.5"/>
<rect x="550" y="90" width="80" height="60" rx="6" stroke="#0072b2" stroke-width="2.5"/>
<circle cx="360" cy="200" r="10"/><circle cx="650" cy="200" r="10"/>
</g>
<g text-anchor="middle">
<text x="140" y="125">layer norm</text><text x="480" y="125">layer norm</text>
<text x="275" y="95">attention</text><text x="275" y="118" font-size="12">each head:</text>
<text x="275" y="138" font-size="12">softmax(QKᵀ/√d_k) V</text><text x="275" y="158" font-size="12">reads up to itself</text>
<text x="590" y="115">MLP</text><text x="590" y="135" font-size="12">GELU</text>
<text x="360" y="205" font-size="16">+</text><text x="650" y="205" font-size="16">+</text>
</g>
<text x="20" y="228">the token's state comes in</text><text x="700" y="238" text-anchor="end">and leaves, added to twice</text>
</svg>
"""


def build_learn_tab(tabs: gr.Tabs) -> None:
    """What to know before the other tabs, in a few minutes, with ways into them."""
    gr.Markdown(WHAT)
    gr.Markdown(BLOCK)
    gr.HTML(DRAWING, elem_id="learn-block")
    rows = "\n".join("|" + "|".join(row) + "|" for row in [WAYS[0], ("---",) * 3, *WAYS[1:]])
    gr.Markdown(COST + rows, elem_id="learn-cost")
    with gr.Row():
        for name, title in PLACES.items():
            go = gr.Button(title, min_width=160, elem_id=f"learn-{name}")
            go.click(lambda name=name: gr.Tabs(selected=name), None, tabs, api_visibility="private")
