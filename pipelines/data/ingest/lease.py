"""A lease on a dataset: one ingest at a time, or two would delete each other's files.

The lease is a file in the dataset that its holder renews every BEAT_S. One that stays as it is for STALE_S
has expired, however the clocks of two machines differ; so has one whose process was this machine's and has
ended.
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

LEASE_FILE = "ingest.claim"
BEAT_S = 5.0
STALE_S = 30.0

Lease = dict[str, Any]


@contextmanager
def hold_lease(storage: Storage) -> Iterator[None]:
    """Hold a dataset for the length of a `with` block; of two that begin in the same moment both may.

    Raises:
        ClusterError: another ingest is writing it, or the storage cannot be written.
    """
    require_free(storage)
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "namespace": _pid_namespace(), "beat": 0}
    storage.write_json(LEASE_FILE, lease)
    over = threading.Event()
    heart = threading.Thread(target=_renew, args=(storage, lease, over), daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        with suppress(ClusterError):  # or what ended the work would be hidden; the lease expires soon
            if _is_own(storage, lease):
                storage.delete(LEASE_FILE)


def _renew(storage: Storage, lease: Lease, over: threading.Event) -> None:
    beat = 0
    while not over.wait(BEAT_S):
        beat += 1
        with suppress(ClusterError):  # the writers of shards meet it too, and raise it
            if not _is_own(storage, lease):
                return
            storage.write_json(LEASE_FILE, lease | {"beat": beat})


def _is_own(storage: Storage, lease: Lease) -> bool:
    """Whether the dataset's lease is still this one: after a long stall another ingest may hold it."""
    now = _read(storage)
    return now is not None and now | {"beat": 0} == lease


def require_free(storage: Storage) -> None:
    """Return once nobody holds the dataset; refuse as soon as its lease is seen to be renewed.

    Raises:
        ClusterError: another ingest is writing it.
    """
    before = _read(storage)
    deadline = time.monotonic() + STALE_S
    while before is not None and not _holder_has_ended(before) and time.monotonic() < deadline:
        time.sleep(BEAT_S / 10)
        now = _read(storage)
        if now is not None and now != before:
            raise ClusterError(
                f"another ingest is writing {storage}: process {now.get('pid')} on {now.get('host')}",
                "Wait until it has ended, or end it",
            )
        before = now


def _read(storage: Storage) -> Lease | None:
    if LEASE_FILE not in storage.list():
        return None
    lease: Lease = storage.read_json(LEASE_FILE)
    return lease


def _holder_has_ended(lease: Lease) -> bool:
    """Whether its process was one of this machine's and is no more."""
    here = (lease.get("host"), lease.get("namespace")) == (socket.gethostname(), _pid_namespace())
    return here and not os.path.exists(f"/proc/{lease.get('pid')}")


def _pid_namespace() -> str:
    """Where process ids count: containers of one host may share its name."""
    return os.readlink("/proc/self/ns/pid")
