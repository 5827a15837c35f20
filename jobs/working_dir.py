"""What of a folder travels with a job: how large it is, and what stays here."""

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from models.errors import ClusterError
from pipelines.data.source.corpus import VIDEO_SUFFIXES

FOLDERS = (
    ".git .venv venv runs mlruns mlflow.db corpora pretrained __pycache__ .mypy_cache .pytest_cache "
    ".ruff_cache .hypothesis *.egg-info"
).split()
WEIGHTS = ".safetensors .ckpt .pt .pth .bin .gguf .onnx .pkl .h5 .npy .npz".split()
ARCHIVES = ".tar .zip .gz .tgz .bz2 .xz .zst .7z .rar".split()


def any_capitals(suffix: str) -> str:
    """The pattern for a suffix in capitals or not."""
    return "*" + "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in suffix)


EXCLUDES = (*FOLDERS, *map(any_capitals, sorted({*VIDEO_SUFFIXES, *WEIGHTS, *ARCHIVES})))
"""Patterns of what stays here, besides what `.gitignore` and `.rayignore` name."""

MAX_BYTES = 100 << 20
"""Longest package that a Jobs server takes, compressed."""

_BLOCK = 1 << 20


class WorkingDir:
    """A folder that travels with a job, but for EXCLUDES and what its ignore files name.

    Args:
        folder: it has to exist.
    """

    def __init__(self, folder: str) -> None:
        from ray._private.runtime_env.packaging import _get_excludes

        self.folder = Path(folder).absolute()
        self._stays: list[Path] = []
        files = self._files(self.folder, [_get_excludes(self.folder, list(EXCLUDES))])
        self.sizes = {path: path.stat().st_size for path in files}
        """Bytes of each file that travels."""

    def _files(self, folder: Path, excludes: list[Callable[[Path], bool]]) -> Iterator[Path]:
        """Files that travel, by the rules that Ray packs by; notes the topmost of what does not."""
        from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

        silent = logging.getLogger("sostenuto.submit")
        excludes = [*excludes, *get_excludes_from_ignore_files(folder, include_gitignore=True, logger=silent)]
        for path in sorted(folder.iterdir()):
            if any(excluded(path) for excluded in excludes):
                self._stays.append(path)
            elif path.is_dir():
                yield from self._files(path, excludes)
            elif path.is_file():
                yield path

    @property
    def num_bytes(self) -> int:
        """Of all files that travel."""
        return sum(self.sizes.values())

    @property
    def left_out(self) -> list[str]:
        """What stays here: `.git/`, `__pycache__/ (24)`, `clips/a.mp4`, `more/*.MOV (12)`."""
        kinds: dict[str, list[str]] = {}
        for path in self._stays:
            name = path.relative_to(self.folder)
            kind = f"{name.name}/" if path.is_dir() else str(name.with_name(f"*{name.suffix}"))
            kinds.setdefault(kind, []).append(f"{name}/" if path.is_dir() else str(name))
        return [f"{kind} ({len(found)})" if found[1:] else found[0] for kind, found in kinds.items()]

    @property
    def largest(self) -> list[str]:
        """The three largest folders at its top, with their sizes; `./` has the files beside them."""
        folders: Counter[str] = Counter()
        for path, size in self.sizes.items():
            *parents, _ = path.relative_to(self.folder).parts
            folders[f"{parents[0] if parents else '.'}/"] += size
        return [f"{name} {megabytes(size)}" for name, size in folders.most_common(3)]

    def check(self) -> None:
        """Refuse what the Jobs server would refuse, before anything is sent.

        Raises:
            ClusterError: it has more than MAX_BYTES, compressed too.
        """
        packer, packed = zlib.compressobj(), 0
        for path in self.sizes if self.num_bytes > MAX_BYTES else ():
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    packed += len(packer.compress(block))
                    if packed > MAX_BYTES:
                        raise self.too_large()

    def too_large(self) -> ClusterError:
        """What to say when it is."""
        return ClusterError(
            f"{self.folder} is too large to travel with a job: {megabytes(self.num_bytes)}, and a Jobs "
            f"server takes {megabytes(MAX_BYTES)} compressed. Its largest folders: {', '.join(self.largest)}",
            "Move data and weights to where every node reads them, or name what the job does not need in "
            "a .rayignore file there",
        )


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
