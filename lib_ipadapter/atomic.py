"""Files that are replaced whole or not at all, and deleted with a reason where that fails."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from .errors import FileError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path beside ``path`` to write to. It replaces ``path`` when the block ends without an error.

    The folder is created. The name is unique, so that any number of threads and processes may replace one file;
    the last one wins. Raises FileError for a failed write.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except PermissionError as error:
        raise FileError(
            path, f"cannot be written in {path.parent}: {_reason(error)}; check the folder's permissions, and "
            "whether another program has the file open",
        ) from None  # fmt: skip
    except OSError as error:
        raise FileError(path, f"cannot be written in {path.parent}: {_reason(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Deletes a file; one that is gone already is no error. Raises FileError."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        # Windows does not delete a file that is mapped into memory.
        raise FileError(
            path,
            f"cannot be deleted: {_reason(error)}; close what uses it (a WebUI may have it loaded) and try again",
        ) from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
