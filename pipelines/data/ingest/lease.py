"""Who writes a dataset: two ingests of one dataset would delete each other's files.

The claim is a file in the dataset that its owner writes anew every BEAT_S. One that stays as it is for
STALE_S is nobody's, however the clocks of two machines differ; so is one whose process was this machine's and
has ended.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from models.errors import ClusterError
from pipelines.storage import Storage

CLAIM_FILE = "ingest.claim"
BEAT_S = 5.0
STALE_S = 30.0

Claim = dict[str, Any]


@contextmanager
def claimed(storage: Storage) -> Iterator[None]:
    """Hold a dataset for the length of a `with` block; of two that begin in the same moment both may.

    Raises:
        ClusterError: another ingest is writing it, or the storage cannot be written.
    """
    require_free(storage)
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "namespace": _namespace(), "beat": 0}
    storage.write_json(CLAIM_FILE, claim)
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(storage, claim, over), daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        with suppress(ClusterError):  # or what ended the work would be hidden; the claim is stale soon
            if _is_own(storage, claim):
                storage.delete(CLAIM_FILE)


def _beat(storage: Storage, claim: Claim, over: threading.Event) -> None:
    beat = 0
    while not over.wait(BEAT_S):
        beat += 1
        with suppress(ClusterError):  # the writers of shards will tell of it
            if not _is_own(storage, claim):
                return
            storage.write_json(CLAIM_FILE, claim | {"beat": beat})


def _is_own(storage: Storage, claim: Claim) -> bool:
    """Whether the claim in the dataset is still this one: after a long stall another ingest may have it."""
    now = _read(storage)
    return now is not None and now | {"beat": 0} == claim


def require_free(storage: Storage) -> None:
    """Return once the dataset is nobody's; refuse as soon as its owner's heart is seen to beat.

    Raises:
        ClusterError: another ingest is writing it.
    """
    before = _read(storage)
    deadline = time.monotonic() + STALE_S
    while before is not None and not _has_ended(before) and time.monotonic() < deadline:
        time.sleep(BEAT_S / 10)
        now = _read(storage)
        if now is not None and now != before:
            raise ClusterError(
                f"another ingest is writing {storage}: process {now.get('pid')} on {now.get('host')}",
                "Wait until it has ended, or end it",
            )
        before = now


def _read(storage: Storage) -> Claim | None:
    if CLAIM_FILE not in storage.list():
        return None
    claim: Claim = storage.read_json(CLAIM_FILE)
    return claim


def _has_ended(claim: Claim) -> bool:
    """Whether its process was one of this machine's and is no more."""
    here = (claim.get("host"), claim.get("namespace")) == (socket.gethostname(), _namespace())
    return here and not os.path.exists(f"/proc/{claim.get('pid')}")


def _namespace() -> str:
    """In which process ids count: containers of one host may share its name."""
    return os.readlink("/proc/self/ns/pid")
