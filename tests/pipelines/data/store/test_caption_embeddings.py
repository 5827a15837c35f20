"""Captions are embedded once each, stored with their sums, and read back as the encoder gave them."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.config import TextConfig
from models.errors import CheckpointError, ConfigError, DataError
from models.rng import Key
from models.text import umt5
from models.text.conditioning import NgramEncoder, drop_some, withhold
from models.text.umt5 import Umt5Encoder
from pipelines.data.store import caption_embeddings, shards
from pipelines.data.store.caption_embeddings import FOLDER, StoredEmbeddings, embed_captions, text_encoder
from pipelines.ray_map import Pool
from pipelines.storage import Storage, hash_of
from tests.conftest import TEXT_DIM
from tests.pipelines.data.made import make

ROOT = Path(__file__).parents[4]
MORE = ["a bay at dusk, amber sun, streaked sky", "a red moon"]


@pytest.fixture
def config(umt5_folder: Path) -> TextConfig:
    return TextConfig(
        kind="umt5",
        pretrained=str(umt5_folder),
        dim=TEXT_DIM,
        max_tokens=24,
        negative_caption="slow video",
        withheld_words=("red",),
        withhold_probability=0.3,
    )


@pytest.fixture
def made(tmp_path: Path) -> str:
    """A dataset with the captions `video 0` to `video 2`."""
    make(tmp_path / "data")
    return str(tmp_path / "data")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every caption that goes through an encoder in this process, as it does."""
    seen: list[str] = []
    inner = Umt5Encoder.embed

    def embed(self: Umt5Encoder, captions: tuple[str, ...]) -> list[torch.Tensor]:
        seen.extend(captions)
        return inner(self, captions)

    monkeypatch.setattr(Umt5Encoder, "embed", embed)
    return seen


def test_each_distinct_caption_is_embedded_once_and_only_what_is_missing_later(
    made: str, config: TextConfig, embedded: list[str]
) -> None:
    known = {"video 0", "video 1", "video 2", "", "slow video"}
    assert embed_captions(config, made) == len(known)
    assert sorted(embedded) == sorted(known)
    assert embed_captions(config, made) == 0
    assert embed_captions(config, made, ["video 1", "a red moon", "a red moon"]) == 2
    assert sorted(embedded) == sorted([*known, "a red moon", "a moon"])
    assert embed_captions(dataclasses.replace(config, negative_caption="clip"), made) == 1
    assert embed_captions(TextConfig(), made, MORE) == 0


def test_stored_is_direct_with_masks(made: str, config: TextConfig) -> None:
    embed_captions(config, made, MORE)
    given = text_encoder(config, made).encode([*MORE, "", MORE[0]])
    direct = Umt5Encoder.load(config).embed([*MORE, "", "slow video"])
    assert given.mask is not None
    for text, mask, row in zip(given.text, given.mask, [*direct[:3], direct[0]], strict=True):
        assert int(mask.sum()) == len(row)
        assert torch.equal(mask, mask.sort(descending=True).values)
        torch.testing.assert_close(text[mask], row.float(), rtol=1e-3, atol=1e-6)
        assert not text[~mask].any()
    assert given.text.shape[1] == len(direct[0])
    assert given.negative is not None
    torch.testing.assert_close(given.negative, direct[3].float(), rtol=1e-3, atol=1e-6)


def test_zeros_fill_all_captions_up_and_are_attended_to(made: str, config: TextConfig) -> None:
    embed_captions(config, made, MORE)
    masked = text_encoder(config, made).encode(MORE)
    given = text_encoder(dataclasses.replace(config, padding="zeros"), made).encode(MORE)
    assert given.mask is None
    assert given.text.shape == (2, 24, TEXT_DIM)
    assert torch.equal(given.text[:, : masked.text.shape[1]], masked.text)
    assert not given.text[:, masked.text.shape[1] :].any()
    assert given.null().text.shape == (2, 24, TEXT_DIM)


def test_guidance_leads_away_from_the_negative_caption_and_dropping_gives_the_empty_one(
    made: str, config: TextConfig
) -> None:
    embed_captions(config, made, MORE)
    encoder = text_encoder(config, made)
    negative, empty = encoder.encode(["slow video"]).text[0], encoder.encode([""]).text[0]
    folded = encoder.encode(MORE).repeat(3).select(torch.tensor([0, 5]))
    assert torch.equal(folded.null().text, negative.expand(2, -1, -1))
    assert folded.null().mask is None
    assert torch.equal(folded.null().null().text, folded.null().text)
    dropped = encoder.encode(drop_some(MORE, 1.0, Key(0), range(2)))
    assert torch.equal(dropped.text, empty.expand(2, -1, -1))
    assert not torch.equal(negative[-1], empty[-1])


def test_actors_embed_what_one_process_does(
    ray_local: None, made: str, config: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_embeddings, "PART_CAPTIONS", 2)
    make(tmp_path / "alone")
    told: list[tuple[str, int, int]] = []
    count = embed_captions(config, made, pool=Pool(1, 2), progress=lambda *step: told.append(step))
    assert embed_captions(config, str(tmp_path / "alone")) == count == 5
    assert told[-1] == ("text", 5, 5)
    captions = ["video 0", "video 2", ""]
    both = [
        StoredEmbeddings(config, folder).encode(captions).text for folder in (made, str(tmp_path / "alone"))
    ]
    assert torch.equal(*both)
    assert len(Storage(made).list(FOLDER)) == 6


def test_a_worker_tells_what_a_user_can_mend(
    ray_local: None, made: str, config: TextConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"text.dim is 8"):
        embed_captions(dataclasses.replace(config, dim=8), made, pool=Pool(1, 1))
    assert config.pretrained is not None
    folder = Path(shutil.copytree(config.pretrained, tmp_path / "cut"))
    weights = folder / "text_encoder" / umt5.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        embed_captions(dataclasses.replace(config, pretrained=str(folder)), made, pool=Pool(1, 1))


def test_little_is_held_and_nothing_is_read_twice_while_it_is(
    made: str, config: TextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_captions(config, made)
    captions = [f"video {i}" for i in range(3)]
    small = StoredEmbeddings(config, made, cache_bytes=1)
    large = StoredEmbeddings(config, made)
    opened: list[str] = []
    original = shards.open_shard
    monkeypatch.setattr(
        shards, "open_shard", lambda storage, file: opened.append(file) or original(storage, file)
    )
    few, many = small.encode(captions).text, large.encode(captions).text
    assert torch.equal(few, many)
    opened.clear()
    large.encode(captions)
    assert opened == []
    assert torch.equal(small.encode(captions).text, few)
    assert len(opened) == len([*captions, "the negative one"])
    assert small._rows.held_bytes < large._rows.held_bytes


def test_a_caption_without_an_embedding_is_named(made: str, config: TextConfig) -> None:
    embed_captions(config, made)
    encoder = text_encoder(config, made)
    with pytest.raises(DataError, match=r"'a red moon' has no embedding.*Run ingest again"):
        encoder.encode(["a red moon"])
    embed_captions(config, made, ["a red moon"])
    assert len(encoder.encode(["a red moon", withhold("a red moon", ["red"])])) == 2


def test_another_encoder_or_length_is_not_mixed_in(made: str, config: TextConfig, tmp_path: Path) -> None:
    embed_captions(config, made)
    with pytest.raises(DataError, match=r"24 tokens of 16 numbers.*Delete"):
        text_encoder(dataclasses.replace(config, max_tokens=12), made)
    part = next(Path(made).glob("text/*.json"))
    plain = json.loads(part.read_text())
    del plain["ledger_sha256"]
    plain["encoder"] = "another"
    Storage(made).write_json(f"{FOLDER}/{part.name}", {**plain, "ledger_sha256": hash_of(plain)})
    with pytest.raises(DataError, match="made by another encoder"):
        embed_captions(config, made, ["a red moon"])


def test_damage_is_noticed(made: str, config: TextConfig) -> None:
    embed_captions(config, made)
    part = next(Path(made).glob("text/*.parquet"))
    whole = part.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match="damaged"):
            StoredEmbeddings(config, made).encode(["video 0"])
    part.write_bytes(whole)
    ledger = part.with_suffix(".json")
    ledger.write_text(ledger.read_text().replace("video 0", "video 9"))
    with pytest.raises(DataError, match="damaged"):
        StoredEmbeddings(config, made)


def test_a_part_without_its_ledger_is_embedded_again(
    made: str, config: TextConfig, embedded: list[str]
) -> None:
    embed_captions(config, made)
    next(Path(made).glob("text/*.json")).unlink()
    assert embed_captions(config, made) == 5
    assert len(embedded) == 10
    assert len(Storage(made).list(FOLDER)) == 2


def test_without_an_encoder_captions_are_hashed(made: str) -> None:
    assert isinstance(text_encoder(TextConfig(), made), NgramEncoder)


STEP = """
import dataclasses, json, sys
from models.config import TextConfig
from pipelines.data.store.caption_embeddings import text_encoder
from pipelines.training.collectives import ALONE
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.training.makers import TEACHER, batches, recipe
from models.rng import Key
text = TextConfig(**json.loads(sys.argv[1]))
told = dataclasses.replace(recipe(TEACHER), text=text)
stage = SupervisedStage(told, ALONE, text_encoder(text, sys.argv[2]))
state = stage.init("cpu")
for i in range(2):
    loss = stage.step(state, batches(i, ALONE, 4, 0), Key(0, i, purpose="step")).metrics["loss"]
    assert 0 < loss < 10, loss
assert stage.captions.encode(["red sun", "blue moon over the bay"], "cpu").text.shape[1] > 4
print([name for name in ("transformers", "ftfy", "tokenizers") if name in sys.modules])
"""


def test_training_takes_many_tokens_and_no_text_encoder(made: str, config: TextConfig) -> None:
    captions = ["red sun", "blue sun", "red moon", "blue moon", "blue moon over the bay"]
    embed_captions(config, made, captions)
    plain = json.dumps({**dataclasses.asdict(config), "dropout": 0.5})
    done = subprocess.run(
        [sys.executable, "-c", STEP, plain, made], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
