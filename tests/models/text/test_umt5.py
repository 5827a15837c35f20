"""UMT5 from a folder: the real class's embeddings, unpadded, and one line for every unusable folder."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from models.config import TextConfig
from models.errors import CheckpointError, ConfigError, DataError
from models.text.kinds import text_kind
from models.text.umt5 import WEIGHTS, Umt5Encoder, check_files, cleaned, fingerprint
from tests.conftest import TEXT_DIM

CAPTIONS = ["a bay at dusk, amber sun", "", "a red moon", "streaked sky " * 30]


def config(folder: Path, **values: object) -> TextConfig:
    plain = TextConfig(kind="umt5", pretrained=str(folder), dim=TEXT_DIM, max_tokens=32)
    return dataclasses.replace(plain, **values)  # type: ignore[arg-type]


@pytest.fixture
def copied(umt5_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(umt5_folder, tmp_path / "wan"))


def test_tokens_are_those_of_the_real_class_for_each_caption_alone(umt5_folder: Path) -> None:
    from transformers import T5TokenizerFast, UMT5EncoderModel

    model = UMT5EncoderModel.from_pretrained(umt5_folder / "text_encoder").eval()
    tokenizer = T5TokenizerFast.from_pretrained(umt5_folder / "tokenizer")
    rows = Umt5Encoder.load(config(umt5_folder)).embed(CAPTIONS)
    for caption, row in zip(CAPTIONS, rows, strict=True):
        ids = tokenizer(caption, truncation=True, max_length=32, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model(ids).last_hidden_state[0]
        assert row.dtype == torch.float16
        assert row.shape == expected.shape
        torch.testing.assert_close(row.float(), expected, rtol=1e-3, atol=1e-5)
    assert [len(row) for row in rows][1::2] == [1, 32]


def test_captions_of_more_tokens_than_are_kept_are_told(umt5_folder: Path) -> None:
    kind = text_kind(config(umt5_folder))
    assert kind.cut_note([]) == kind.cut_note(CAPTIONS[:3]) == ""
    longest = len(Umt5Encoder.load(config(umt5_folder, max_tokens=500)).embed(CAPTIONS)[3])
    assert kind.cut_note(CAPTIONS).startswith(f"1 of 4 captions have more than 32 tokens, up to {longest};")


def test_encoder_and_tokenizer_may_share_a_folder(umt5_folder: Path, tmp_path: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(umt5_folder / part, tmp_path, dirs_exist_ok=True)
    one, two = (Umt5Encoder.load(config(f)).embed(["a sun"])[0] for f in (umt5_folder, tmp_path))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("  a\n  sun ", "a sun"),
        ("sun &amp;amp; moon", "sun & moon"),
        ("\uff0c\u201csun\u201d", ',"sun"'),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
    ],
)
def test_captions_are_cleaned_as_wan_cleans_them(caption: str, clean: str) -> None:
    assert cleaned(caption) == clean


def test_values_beyond_half_precision_are_refused(copied: Path) -> None:
    encoder = Umt5Encoder.load(config(copied))
    encoder._model.encoder.final_layer_norm.weight.data.fill_(1e6)
    with pytest.raises(DataError, match="not finite for the caption 'a sun'"):
        encoder.embed(["a sun"])


def test_a_gpu_that_is_not_there_is_refused(umt5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        Umt5Encoder.load(config(umt5_folder), "cuda")


def test_the_fingerprint_changes_with_all_that_decides_the_tokens(copied: Path) -> None:
    before = fingerprint(config(copied))
    assert before == fingerprint(config(copied, dropout=0.5))
    assert before != fingerprint(config(copied, max_tokens=16))
    path = copied / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert before != fingerprint(config(copied))


def test_no_folder_and_another_width_are_refused(umt5_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"text.pretrained is None.*text_encoder/ and tokenizer/"):
        check_files(TextConfig(kind="umt5"))
    with pytest.raises(ConfigError, match=rf"text.dim is 64.*gives {TEXT_DIM}.*Set text.dim={TEXT_DIM}"):
        check_files(config(umt5_folder, dim=64))


def _cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder" / WEIGHTS
    tensors = load_file(path)
    tensors.pop("encoder.final_layer_norm.weight")
    save_file(tensors, path, {"format": "pt"})


def _sharded(folder: Path) -> None:
    path = folder / "text_encoder" / WEIGHTS
    path.unlink()
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    Path(f"{path}.index.json").write_text(json.dumps(index))


SPOILED = {
    "no folder": (lambda f: shutil.rmtree(f), "is no folder", ""),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "holds no tokenizer", "tokenizer"),
    "a cut tokenizer": (lambda f: _cut(f / "tokenizer/tokenizer.json"), "cannot be read", "tokenizer"),
    "no config": (lambda f: (f / "text_encoder/config.json").unlink(), "no readable config", "text_encoder"),
    "another model": (
        lambda f: (f / "text_encoder/config.json").write_text('{"model_type": "t5"}'),
        "of type t5, not umt5",
        "text_encoder",
    ),
    "no weights": (
        lambda f: (f / "text_encoder" / WEIGHTS).unlink(),
        f"neither {WEIGHTS} nor its index. Give",
        "text_encoder",
    ),
    "a pickle": (
        lambda f: (f / "text_encoder" / WEIGHTS).rename(f / "text_encoder/pytorch_model.bin"),
        "only pytorch_model.bin, a pickle",
        "text_encoder",
    ),
    "a missing shard": (_sharded, "model-00001-of-00002.safetensors is missing", "text_encoder"),
    "cut weights": (lambda f: _cut(f / "text_encoder" / WEIGHTS), "cannot be read", "text_encoder"),
    "a missing weight": (_without_a_weight, "lacks 1 weights", "text_encoder"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_folder_that_cannot_be_used_is_named_in_one_line(copied: Path, fault: str) -> None:
    spoil, problem, part = SPOILED[fault]
    spoil(copied)
    with pytest.raises(CheckpointError) as caught:
        Umt5Encoder.load(config(copied))
    message = str(caught.value)
    assert problem in message
    assert str(copied / part) in message
    assert "\n" not in message
