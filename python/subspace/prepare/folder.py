"""The folder that is being made: one process at a time, nothing overwritten unasked."""

import fcntl
import shutil
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError

SHARDS = "shards"


@contextmanager
def new_folder(path, force):
    """Locks `path` for data to be written into; leftovers of a killed run other than finished shards
    go. When the block is done, so do the shards."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: a file; --out expects a folder")
    foreign = folder.is_dir() and any(folder.iterdir()) and not any(
        (folder / name).exists() for name in ("meta.json", SHARDS, ".lock"))
    if foreign:
        raise DataError(f"{folder}: holds files that are no training data; give --out an empty or new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another process is making data there; wait for it, or give "
                            "another --out") from error
        if (folder / "meta.json").exists() and not force:
            raise DataError(f"{folder}: already holds data (meta.json); --force makes it anew, or give "
                            "another --out")
        (folder / "meta.json").unlink(missing_ok=True)
        for stale in [*folder.glob("*.partial.*"), *folder.glob(f"{SHARDS}/*.partial.*"), *folder.glob("*.npy")]:
            stale.unlink()
        (folder / SHARDS).mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder / SHARDS)
