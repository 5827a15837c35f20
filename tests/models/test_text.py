"""Captions as conditioning."""

import pytest
import torch

from models.config import TextConfig
from models.errors import ConfigError
from models.rng import Key
from models.text import Conditioning, TextEncoder, withhold, withhold_some

CAPTIONS = ["a bay at dusk, streaked sky, amber sun", "a bay, dotted sky"]


def test_one_token_a_phrase_with_unit_rms() -> None:
    given = TextEncoder(TextConfig()).encode(CAPTIONS)
    assert given.text.shape == (2, 3, 64)
    assert given.mask is not None
    assert given.mask.tolist() == [[True, True, True], [True, True, False]]
    assert torch.allclose(given.text[0].square().mean(-1), torch.ones(3))
    assert torch.equal(given.text[1, 2], torch.zeros(64))


def test_the_same_phrase_is_the_same_token_wherever_it_stands() -> None:
    encoder = TextEncoder(TextConfig())
    a = encoder.encode(["x, amber sun"]).text[0, 1]
    b = encoder.encode(["Amber Sun , y"]).text[0, 0]
    assert torch.equal(a, b)
    assert not torch.equal(a, encoder.encode(["teal sun"]).text[0, 0])


def test_long_captions_are_cut_and_empty_ones_still_have_a_token() -> None:
    encoder = TextEncoder(TextConfig(max_tokens=2))
    assert encoder.encode(["a, b, c"]).text.shape[1] == 2
    empty = encoder.encode([""])
    assert empty.text.shape == (1, 1, 64)
    assert empty.mask is None


def test_repeat_folds_each_row_in_turn() -> None:
    rows = Conditioning(torch.arange(3.0)[:, None, None], torch.ones(3, 1, dtype=torch.bool))
    assert rows.repeat(2).text.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert float(rows.null().text.abs().sum()) == 0


def test_dropout_is_keyed_by_sample_and_hits_its_share() -> None:
    rows = Conditioning(torch.ones(2000, 1, 1))
    dropped = rows.dropout(0.1, Key(0), range(2000)).text.flatten() == 0
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
    part = Conditioning(torch.ones(5, 1, 1)).dropout(0.1, Key(0), range(995, 1000)).text.flatten() == 0
    assert torch.equal(part, dropped[995:1000])


def test_withheld_words_leave_the_rest_of_the_caption() -> None:
    assert withhold("a bay at dusk, amber sun, slow waves", ["amber"]) == "a bay at dusk, sun, slow waves"
    config = TextConfig(withheld_words=("amber",), withhold_probability=0.3)
    some = withhold_some(["amber sun"] * 1000, config, Key(1), range(1000))
    assert some.count("sun") == pytest.approx(300, abs=45)
    assert withhold_some(["amber sun"], TextConfig(), Key(1), [0]) == ["amber sun"]


def test_an_encoder_that_needs_weights_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="ngram"):
        TextEncoder(TextConfig(kind="umt5"))
