"""docs/architecture.md names functions and classes that exist."""

import ast
import re

import pytest

from tests.command import REPOSITORY

NAMED = sorted(
    set(
        re.findall(
            r"`([\w/]+\.py): (\w+)`", (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
        )
    )
)


def test_the_page_names_functions():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}:{name}" for file, name in NAMED])
def test_a_named_function_exists(file, name):
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    assert name in {getattr(node, "name", None) for node in tree.body}
