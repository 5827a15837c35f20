"""Captions as conditioning."""

import pytest
import torch

from models.config import TextConfig
from models.rng import Key
from models.text.conditioning import Conditioning, NgramEncoder, drop_some, withhold, withhold_some
from models.text.kinds import text_kind

CAPTIONS = ["a bay at dusk, streaked sky, amber sun", "a bay, dotted sky"]


def test_each_phrase_is_one_token_of_unit_rms() -> None:
    given = NgramEncoder(TextConfig()).encode(CAPTIONS)
    assert given.text.shape == (2, 3, 64)
    assert given.mask is not None
    assert given.mask.tolist() == [[True, True, True], [True, True, False]]
    assert torch.allclose(given.text[0].square().mean(-1), torch.ones(3))
    assert torch.equal(given.text[1, 2], torch.zeros(64))


def test_the_same_phrase_is_the_same_token_wherever_it_stands() -> None:
    encoder = NgramEncoder(TextConfig())
    a = encoder.encode(["x, amber sun"]).text[0, 1]
    b = encoder.encode(["Amber Sun , y"]).text[0, 0]
    assert torch.equal(a, b)
    assert not torch.equal(a, encoder.encode(["teal sun"]).text[0, 0])


def test_long_captions_are_cut_and_empty_ones_still_have_a_token() -> None:
    encoder = NgramEncoder(TextConfig(max_tokens=2))
    assert encoder.encode(["a, b, c"]).text.shape[1] == 2
    empty = encoder.encode([""])
    assert empty.text.shape == (1, 1, 64)
    assert empty.mask is None


@pytest.mark.parametrize(
    ("captions", "note"),
    [
        ([], ""),
        (["a, b", "a,, b ,", ""], ""),
        (["a, b, c", "a", "a,b,c,d, e"], "2 of 3 captions have more than 2 phrases between commas, up to 5"),
    ],
)
def test_captions_that_are_cut_are_told(captions: list[str], note: str) -> None:
    kind = text_kind(TextConfig(max_tokens=2))
    found = kind.cut_note(captions)
    assert found.split(";")[0] == note
    assert ("text.max_tokens=5 keeps all" in found) == bool(note)
    for caption in captions:
        tokens = NgramEncoder(TextConfig(max_tokens=100)).encode([caption]).text
        is_cut = not torch.equal(tokens, NgramEncoder(TextConfig(max_tokens=2)).encode([caption]).text)
        assert is_cut == bool(kind.cut_note([caption]))


def test_repeat_repeats_each_row_in_turn() -> None:
    rows = Conditioning(torch.arange(3.0)[:, None, None], torch.ones(3, 1, dtype=torch.bool))
    assert rows.repeat(2).text.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert float(rows.null().text.abs().sum()) == 0


def test_dropout_is_keyed_by_sample_and_hits_its_share() -> None:
    dropped = drop_some(["a sun"] * 2000, 0.1, Key(0), range(2000))
    assert dropped.count("") / 2000 == pytest.approx(0.1, abs=0.02)
    assert set(dropped) == {"", "a sun"}
    assert drop_some(["a sun"] * 5, 0.1, Key(0), range(995, 1000)) == dropped[995:1000]


def test_a_dropped_caption_is_a_zero_token() -> None:
    given = NgramEncoder(TextConfig()).encode([*CAPTIONS, ""])
    assert not given.text[2].any()
    assert given.mask is not None
    assert given.mask[2].tolist() == [True, False, False]


def test_guidance_leads_away_from_zeros_or_from_the_negative_caption() -> None:
    assert not NgramEncoder(TextConfig()).encode(CAPTIONS).null().text.any()
    encoder = NgramEncoder(TextConfig(negative_caption="amber sun, slow waves"))
    null = encoder.encode(CAPTIONS).repeat(2).null()
    assert torch.equal(null.text, encoder.encode(["amber sun, slow waves"] * 4).text)
    assert null.mask is None


def test_zeros_pad_to_the_largest_number_of_tokens() -> None:
    given = NgramEncoder(TextConfig(padding="zeros", max_tokens=5)).encode(CAPTIONS)
    assert given.mask is None
    assert given.text.shape == (2, 5, 64)
    assert not given.text[:, 3:].any()


def test_withheld_words_leave_the_rest_of_the_caption() -> None:
    assert withhold("a bay at dusk, amber sun, slow waves", ["amber"]) == "a bay at dusk, sun, slow waves"
    config = TextConfig(withheld_words=("amber",), withhold_probability=0.3)
    some = withhold_some(["amber sun"] * 1000, config, Key(1), range(1000))
    assert some.count("sun") == pytest.approx(300, abs=45)
    assert withhold_some(["amber sun"], TextConfig(), Key(1), [0]) == ["amber sun"]
