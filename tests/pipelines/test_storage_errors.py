"""What a storage says, told apart: trying again helps, or it does not."""

import errno
import shutil

import pytest
from safetensors import SafetensorError

from models.errors import ClusterError, StorageRefused
from pipelines.storage import Storage


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (OSError("[Errno 30] Error writing. Detail: [errno 30] Read-only file system"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (TimeoutError("the store does not answer"), False),
    ],
)
def test_what_trying_again_cannot_help_is_told_apart(error: Exception, refused: bool) -> None:
    with pytest.raises(ClusterError) as caught, Storage("/mnt/runs").errors_about("step-000002"):
        raise error
    assert isinstance(caught.value, StorageRefused) is refused
