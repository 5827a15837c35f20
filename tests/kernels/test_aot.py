"""Every shipped kernel compiles for GPUs that are not here, to the instructions it has to have."""

import dataclasses
import json

import pytest

pytest.importorskip("triton")

from kernels import aot
from tests.command import sostenuto


def compiled(name, target="sm_90"):
    case = next(case for case in aot.configurations() if case.name == name)
    return case, aot.compile_for(target, case)


def test_every_configuration_has_a_name_of_its_own():
    names = [case.name for case in aot.configurations()]
    assert len(set(names)) == len(names)
    for kind in ("forward", "key_gradients", "query_gradients", "reverse_kl"):
        assert any(kind in name for name in names), kind


def test_float32_attention_keeps_float32_products():
    _, found = compiled("forward_fp32_64_many")
    assert found.ok
    assert found.tensor_core_ops == found.older_tensor_core_ops == 0


def test_a_kernel_that_spills_or_lacks_tensor_cores_is_not_ok():
    case, good = compiled("forward_bf16_64_many")
    assert good.ok
    assert good.tensor_core_ops > 0
    crowded = {**case.constants, "TILE": 256, "STEP": 128}
    few_warps = {"num_warps": 4, "num_stages": 2}
    spilled = aot.compile_for("sm_90", dataclasses.replace(case, constants=crowded, options=few_warps))
    assert spilled.spill_stores > 0
    assert not spilled.ok
    plain = dataclasses.replace(case, tensor_cores=False)
    assert not aot.compile_for("sm_90", plain).ok
    small = {**case.constants, "TILE": 32, "STEP": 32}
    older = aot.compile_for("sm_90", dataclasses.replace(case, constants=small))
    assert older.older_tensor_core_ops > 0
    assert not older.ok


def test_the_command_says_which_path_runs(tmp_path):
    done = sostenuto(tmp_path, "kernels", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cpu"] == "cpu"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("key_gradients_bf16_128_many", "sm_90"),
        ("query_gradients_bf16_24_many", "sm_90"),
        ("forward_bf16_128_many_wrap", "sm_90"),
        ("reverse_kl_score_kernel_bf16_guided", "sm_90"),
        ("forward_bf16_128_many", "sm_80"),
        ("key_gradients_bf16_24_many", "gfx942"),
        ("forward_bf16_24_many_loose", "sm_90"),
        ("query_gradients_bf16_24_many_loose", "sm_80"),
        ("key_gradients_bf16_24_many_loose", "gfx942"),
    ],
)
def test_a_kernel_of_each_kind_is_as_it_has_to_be(name, target):
    found = compiled(name, target)[1]
    assert found.ok
    assert found.tensor_core_ops > 0 or name.startswith("reverse_kl")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_shipped_kernel_is_as_it_has_to_be(tmp_path):
    done = sostenuto(tmp_path, "kernels", "--report", "--json", timeout_s=550)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    assert {row["target"] for row in found} == set(aot.TARGETS)
    assert len(found) == len(aot.compilations())
    hopper = [row for row in found if row["target"] == "sm_90"]
    half = [row for row in hopper if "_gradients" in row["name"] or row["name"].startswith("forward")]
    for row in (row for row in half if "fp32" not in row["name"]):
        assert row["tensor_core_ops"] > 0, row
        assert row["older_tensor_core_ops"] == 0, row
        assert row["spill_stores"] == 0, row
        assert row["shared_bytes"] <= 232_448, row
    assert all(row["ok"] for row in found)
