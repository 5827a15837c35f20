"""Words that every room of the data uses: the two corpora, and why a video is not in the dataset."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

CorpusName: TypeAlias = Literal["short", "long"]
Split: TypeAlias = Literal["train", "holdout"]
CORPORA: tuple[CorpusName, ...] = ("short", "long")

SAME_BYTES = "the same bytes as "
"""Start of the reason of a video that is there twice; the path of the other follows."""

NOT_A_VIDEO = "not a video: "
"""Start of the reason of a file that is named as videos are and is none."""

REMEDY = "Delete the dataset and ingest again"
"""For a dataset with a damaged file."""


@dataclass(frozen=True)
class Reject:
    """A stage and a reason."""

    stage: str
    """`manifest`, `fetch`, `bytes`, `open`, `limits`, `decode`, `memory`, `timeout`, `crash`, `window`,
    `curation` or `worker`."""
    reason: str
    """One line for a person."""


class Rejected(Exception):
    """A Reject that ends the reading of one video."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.reject = Reject(stage, reason)
