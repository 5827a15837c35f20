"""Numbered parts on Ray: order, pieces, and the errors of workers."""

import numpy as np
import pytest

from models.errors import CheckpointError
from pipelines.evaluation.parts import PART, cut, join, run_parts, within


def square(batch):
    number = int(batch["id"][0])
    return {"value": np.full(number + 1, number**2), PART: np.full(number + 1, number)}


def broken(batch):
    raise CheckpointError("the weights are gone", "train again")


def test_parts_come_back_by_their_number(ray_local):
    counted = []
    columns = run_parts(square, 5, counted.append, num_cpus=1)
    assert [column["value"].tolist() for column in columns] == [[n**2] * (n + 1) for n in range(5)]
    assert counted[-1] == 5
    assert run_parts(square, 0, counted.append) == []


def test_a_workers_error_keeps_its_remedy(ray_local):
    with pytest.raises(CheckpointError, match="train again"):
        run_parts(broken, 2, print, num_cpus=1)


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (0, 3, []), (2, 9, [2])]
)
def test_cut_covers_everything_once(count, size, sizes):
    parts = cut(count, size)
    assert [len(part) for part in parts] == sizes
    assert [i for part in parts for i in part] == list(range(count))


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (10, 0), (12, 2), (15, 5), (99, 5)])
def test_within(count, expected):
    assert within(count, range(10, 15)) == expected


def test_join_takes_the_median_of_the_seconds():
    parts = [
        {"factors": np.full((2, 3), i), "sampling": np.full(2, seconds), "decoding": np.zeros(2)}
        for i, seconds in enumerate((9.0, 1.0, 2.0))
    ]
    table = join([["a", "b"]] * 3, parts)
    assert table.captions == ("a", "b") * 3
    assert table.seconds == {"sampling": 2.0, "decoding": 0.0}
    assert table.columns.keys() == {"factors"}
    assert table.factors[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
