"""Files that are replaced whole or not at all."""

import os
import secrets
from pathlib import Path


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Replace a file, whole or not at all (temporary file, fsync, rename); missing folders are made.

    Raises: OSError where it cannot be written; what was there before is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
