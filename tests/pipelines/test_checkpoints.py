"""Networks as folders: what is read of them, from where, and what they say of their heads."""

import json
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from models.errors import CheckpointError
from pipelines.checkpoints import (
    MANIFEST_FILE,
    NETWORK_FILE,
    NetworkSpec,
    check_seal,
    critic_weights,
    load_network,
    part_name,
    parts_of,
    read_spec,
    seal,
    seal_parts,
)
from pipelines.storage import Storage
from pipelines.training.distill import DistillStage
from pipelines.training.state import save_state
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.training.makers import CAPTIONS, DISTILL, SFT, recipe, run, trained_starts


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Teacher and student, and the critic of a warm-up."""
    folder = tmp_path_factory.mktemp("starts")
    made = trained_starts(folder)
    warm = DistillStage(recipe(DISTILL, made, critic_only=True), CAPTIONS)
    state = warm.init("cpu")
    run(warm, state, 1)
    (folder / "critic").mkdir()
    save_state(state, warm.spec, folder / "critic")
    return made | {"critic": str(folder / "critic")}


@pytest.fixture
def far(starts: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same in an object store."""
    root = Storage(f"memory://{tmp_path.name}")
    for role, folder in starts.items():
        root.put_folder(folder, role)
    return {role: str(root.child(role)) for role in starts}


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    own, other = ours.state_dict(), theirs.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


def test_stages_start_from_an_object_store(starts: dict[str, str], far: dict[str, str]) -> None:
    near_state, far_state = (DistillStage(recipe(DISTILL, at), CAPTIONS).init("cpu") for at in (starts, far))
    for role in ("student", "critic"):
        assert same(near_state.modules[role], far_state.modules[role]), role
    for roles in (["teacher"], ["student"]):
        near, remote = (
            SupervisedStage(recipe(SFT, {role: at[role] for role in roles})).init("cpu")
            for at in (starts, far)
        )
        assert same(near.modules["student"], remote.modules["student"]), roles


def test_only_what_is_used_comes_from_afar(far: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    get = MemoryFileSystem.get_file

    def recorded(self: MemoryFileSystem, rpath: str, lpath: str, **options: object) -> None:
        fetched.append(rpath.rsplit("/", 1)[-1])
        get(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", recorded)
    assert len(Storage(far["critic"]).list()) > 5
    read_spec(far["critic"])
    assert set(fetched) == {"manifest.json", NETWORK_FILE}
    load_network(far["critic"])
    assert set(fetched) == {"manifest.json", NETWORK_FILE, "student.average.safetensors"}
    fetched.clear()
    critic_weights(far["critic"])
    assert set(fetched) == {"manifest.json", NETWORK_FILE, "critic.safetensors"}


def damage(folder: str, name: str) -> None:
    path = Path(folder) / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_file_is_told_where_it_is_used(starts: dict[str, str], tmp_path: Path) -> None:
    folder = str(tmp_path / "copy")
    Storage(tmp_path).put_folder(starts["critic"], "copy")
    damage(folder, "critic.optimizer.safetensors")
    load_network(folder)
    critic_weights(folder)
    damage(folder, "critic.safetensors")
    load_network(folder)
    with pytest.raises(CheckpointError, match=r"critic.safetensors is missing or damaged"):
        critic_weights(folder)
    damage(folder, NETWORK_FILE)
    with pytest.raises(CheckpointError, match=r"network.json is missing or damaged"):
        load_network(folder)


def test_a_file_that_the_manifest_does_not_name_is_not_trusted(tmp_path: Path) -> None:
    seal(tmp_path)
    (tmp_path / NETWORK_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        read_spec(tmp_path)


def test_what_is_no_checkpoint_is_told_by_its_address(tmp_path: Path) -> None:
    root = Storage(f"memory://{tmp_path.name}")
    root.write_bytes("half/network.json", b"{}")
    with pytest.raises(CheckpointError, match=rf"memory://.*{tmp_path.name}/half is not a whole checkpoint"):
        load_network(str(root.child("half")))
    with pytest.raises(CheckpointError, match="nowhere is not a whole checkpoint"):
        load_network(tmp_path / "nowhere")


def test_a_network_is_made_where_it_is_wanted(starts: dict[str, str]) -> None:
    for parameter in load_network(starts["student"], "meta").model.parameters():
        assert parameter.device.type == "meta"


def test_only_distillation_says_that_the_dm_head_is_trained(starts: dict[str, str]) -> None:
    assert not read_spec(starts["student"]).distilled
    assert not read_spec(starts["critic"]).distilled
    spec = DistillStage(recipe(DISTILL, starts), CAPTIONS).spec
    assert spec.distilled
    plain = json.loads(json.dumps(spec.to_json()))
    assert NetworkSpec.from_json(plain) == spec
    del plain["distilled"]
    assert not NetworkSpec.from_json(plain).distilled


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.safetensors", "a-00001-of-00001.safetensors"], ["a.safetensors"]),
        (
            ["a-00002-of-00002.safetensors", "a-00001-of-00002.safetensors"],
            ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"],
        ),
        (["a-00001-of-00002.safetensors"], []),
        (["a-00002-of-00002.safetensors"], []),
        (["a.average-00001-of-00001.safetensors", "b.safetensors"], []),
    ],
)
def test_a_file_is_itself_or_all_of_its_parts(names: list[str], found: list[str]) -> None:
    assert parts_of("a.safetensors", names) == found


def test_the_manifests_of_parts_become_one(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        made = tmp_path / name
        made.mkdir()
        (made / f"{name}.txt").write_text(name)
        seal(made, part_name(MANIFEST_FILE, number, 2))
        Storage(tmp_path).put_files(made, "both")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        check_seal(tmp_path / "both")
    seal_parts(Storage(tmp_path), "both", 2)
    assert Storage(tmp_path).list("both") == ["first.txt", MANIFEST_FILE, "second.txt"]
    check_seal(tmp_path / "both")
    (tmp_path / "both" / "second.txt").write_text("other")
    with pytest.raises(CheckpointError, match="damaged"):
        check_seal(tmp_path / "both")
