"""What docs/data.md says of odd files is held by the tests that it names."""

import re

from tests.command import REPOSITORY
from tests.docs.shown import STORY

_TABLE = re.compile(r"^### What we read.*?(?=^## )", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"`(\w+/test_\w+\.py)::(test_\w+)`")


def test_each_row_names_a_test_that_exists():
    section = _TABLE.search(STORY.read_text())
    assert section is not None
    rows = [line for line in section[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = _TEST.search(row)
        assert named, row
        file = REPOSITORY / "tests" / "pipelines" / "data" / named[1]
        assert f"def {named[2]}(" in file.read_text(), row
