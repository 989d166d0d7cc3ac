"""What some steps of the course show besides a view: one block drawn, and what training costs as measured."""

from collections.abc import Sequence

from gpt2lab.app.language import _


def cost_tables() -> str:
    """How long training takes, and ways to cut its cost, as Markdown."""
    times = [
        (_("What"), _("Tokens per second"), _("Duration")),
        (
            _("the built-in model (7.0 M parameters), 84 steps on the sample, bf16"),
            "4,735",
            _("35 s"),
        ),
        (
            _("a model of GPT-2 small's shape (124 M), all weights, blocks of 1,024, fp32"),
            "143–363",
            _("1.8 to 4.7 hours for one pass over WikiText-2 (2.4 M tokens)"),
        ),
        (_("the same in bf16, on a processor with bf16 units"), "399", _("1.7 hours")),
    ]
    ways = [
        (_("Way to save"), _("Saves"), _("Costs")),
        (
            _("**LoRA**: train small matrices beside the frozen weights"),
            _(
                "1.2 (bf16) to 1.8 times (fp32) the tokens per second, 0.6 to 0.7 times the memory, checkpoints of a few MB"
            ),
            _(
                "Less is learned: test perplexity 172.3 against 157.9 after two passes over the sample (2.6 M parameters)"
            ),
        ),
        (
            _("**Shorter blocks**: 128 tokens in place of 256"),
            _("Memory: activations grow with the block"),
            _(
                "0.89 times the tokens per second with the built-in model; no quality: test perplexity 155.6 against 157.9"
            ),
        ),
        (
            _("**bf16**: multiply matrices in 16 bits"),
            _("2.8 times the tokens per second of training on CPUs with bf16 units; nothing on others"),
            _("Perplexity of the built-in model +0.02 % on the sample"),
        ),
        (
            _("**int8 weights**, for generation only"),
            _("2.6 to 2.95 times the tokens per second on an x86 CPU"),
            _("Perplexity +0.09 % on the sample; the top token stays the same in 98 % of cases"),
        ),
    ]
    heading = _(
        "Measured on two CPU cores, without a GPU. Estimate cost in the Train tab measures a few steps on your machine."
    )
    return "\n\n".join([heading, markdown_table(times), markdown_table(ways)])


def markdown_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a Markdown table; the first is its head."""
    lines = ["|" + "|".join(row) + "|" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def block_drawing() -> str:
    """One block, drawn."""
    texts = {
        "title": _(
            "One block: the state of a token passes through; layer norm and attention add to it, then layer norm and MLP"
        ),
        "norm": _("layer norm"),
        "attention": _("attention"),
        "each": _("each head:"),
        "reads": _("reads up to itself"),
        "enters": _("the token's state comes in"),
        "leaves": _("and leaves, added to twice"),
    }
    return DRAWING.format(**texts)


DRAWING = """
<svg viewBox="0 50 720 200" role="img" style="width: 100%; min-width: 560px; max-width: 720px" font-family="system-ui, sans-serif" font-size="13"
     fill="currentColor" stroke="none">
<title>{title}</title>
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
<text x="140" y="125">{norm}</text><text x="480" y="125">{norm}</text>
<text x="275" y="95">{attention}</text><text x="275" y="118" font-size="12">{each}</text>
<text x="275" y="138" font-size="12">softmax(QKᵀ/√d_k) V</text><text x="275" y="158" font-size="12">{reads}</text>
<text x="590" y="115">MLP</text><text x="590" y="135" font-size="12">GELU</text>
<text x="360" y="205" font-size="16">+</text><text x="650" y="205" font-size="16">+</text>
</g>
<text x="20" y="228">{enters}</text><text x="700" y="238" text-anchor="end">{leaves}</text>
</svg>
"""
