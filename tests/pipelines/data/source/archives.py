"""Tars and manifests for the tests."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Member = tuple[str, bytes] | tarfile.TarInfo


def tar_bytes(members: Iterable[Member], format: int = tarfile.USTAR_FORMAT) -> bytes:  # noqa: A002
    """A tar of files, and of ready-made headers without data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A link, a device or the like."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def put(root: Path, name: str, content: str | bytes = "") -> Path:
    """A file with this content, or with its own name in it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else (content or name).encode())
    return path


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)
