"""Files that are replaced whole or not at all. Knows bytes and paths; nothing of what is in them."""

import os
import tempfile
from pathlib import Path


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Replace a file, whole or not at all (temporary file, fsync, rename); missing folders are made.

    Raises: OSError where it cannot be written; what was there before is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())  # a temporary file is private; the one asked for is not
        return Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
