import copy

import pytest

from gpt2lab.data.tokens import BYTES, display_tokens


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\n", ("·", "a", "⏎")),
        ("\t\r", ("⇥", "␍")),
        ("🌙", ("🌙⟨F0⟩", "🌙⟨9F⟩", "🌙⟨8C⟩", "🌙⟨99⟩")),
        ("\"<'&", ('"', "<", "'", "&")),
        ("<|endoftext|>", ("<|endoftext|>",)),
    ],
)
def test_display_tokens_by_hand(tiny_tokenizer, text, shown):
    spelled = [i for part in ([text] if "endoftext" in text else text) for i in tiny_tokenizer.encode(part)]
    assert display_tokens(tiny_tokenizer, spelled) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" moon\n", ("·moon", "⏎")),
        ("Hello world", ("Hello", "·world")),
        ("🌙", ("🌙⟨F0 9F⟩", "🌙⟨8C⟩", "🌙⟨99⟩")),
        ("\n\n  x", ("⏎⏎", "·", "·x")),
    ],
)
def test_display_tokens_of_gpt2_by_hand(gpt2_tokenizer, text, shown):
    assert display_tokens(gpt2_tokenizer, gpt2_tokenizer.encode(text)) == shown


def test_quotes_and_markup_are_kept_as_text(tiny_tokenizer, gpt2_tokenizer):
    text = '</script><b>"it\'s"&amp;'
    for tokenizer in (tiny_tokenizer, gpt2_tokenizer):
        assert "".join(display_tokens(tokenizer, tokenizer.encode(text))) == text


def test_replacement_character_in_the_text_is_shown_as_itself(gpt2_tokenizer):
    assert display_tokens(gpt2_tokenizer, gpt2_tokenizer.encode("a\ufffd")) == ("a", "\ufffd")


@pytest.mark.parametrize(
    ("token", "shown"),
    [("a\u200b月", "a⟨U+200B⟩月"), ("\u202e", "⟨U+202E⟩"), ("月 \ufffd", "月·\ufffd"), ("<|x|>", "<|x|>")],
)
def test_added_token_is_shown_with_what_is_invisible_as_code_points(tiny_tokenizer, token, shown):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([token])
    assert display_tokens(tokenizer, [tokenizer.convert_tokens_to_ids(token)]) == (shown,)


def test_ids_past_the_tokenizer_are_shown(tiny_tokenizer):
    assert display_tokens(tiny_tokenizer, [305, 309]) == ("⟨305⟩", "⟨309⟩")


def test_no_single_byte_is_shown_as_nothing_or_as_something_invisible(tiny_tokenizer):
    ids = [i for i in range(len(tiny_tokenizer)) if len(tiny_tokenizer.convert_ids_to_tokens(i)) == 1]
    shown = display_tokens(tiny_tokenizer, ids)
    assert len(shown) == 256
    assert [text for text in shown if not text.isprintable() or not text.strip()] == []


def test_no_token_of_gpt2_is_shown_as_nothing_or_as_something_invisible(gpt2_tokenizer):
    shown = display_tokens(gpt2_tokenizer, range(len(gpt2_tokenizer)))
    assert [(i, text) for i, text in enumerate(shown) if not text.isprintable() or not text.strip()] == []


def test_bytes_are_all_256_and_those_of_the_tokenizer(tiny_tokenizer):
    assert sorted(BYTES.values()) == list(range(256))
    for character, byte in BYTES.items():
        assert tiny_tokenizer.convert_tokens_to_ids(character) is not None
        if byte < 128:
            assert tiny_tokenizer.decode(tiny_tokenizer.convert_tokens_to_ids([character])) == chr(byte)
