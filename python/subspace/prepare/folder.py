"""The folder that is being made: one process at a time, nothing overwritten unasked."""

import fcntl
import shutil
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError
from .progress import say

SHARDS = "shards"


def _remove_unfinished(folder):
    """What no later run goes on from: arrays are made anew from the finished shards."""
    for stale in [*folder.glob("*.partial.*"), *folder.glob(f"{SHARDS}/*.partial.*"), *folder.glob("*.npy")]:
        stale.unlink()


def _leave(folder):
    """After an error: finished shards stay, and that is said."""
    _remove_unfinished(folder)
    kept = len(list((folder / SHARDS).iterdir()))
    if kept:
        say(f"{folder / SHARDS}: {kept} finished shards of tokens are kept; the next run into this folder uses those "
            "whose text and tokenizer are the same, and removes all when the data is whole")
    else:
        (folder / SHARDS).rmdir()


@contextmanager
def new_folder(path, force):
    """Locks `path` for data to be written into; leftovers of a killed or failed run other than
    finished shards go. When the block is done, so do the shards."""
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
        _remove_unfinished(folder)
        (folder / SHARDS).mkdir(exist_ok=True)
        try:
            yield folder
        except Exception:
            _leave(folder)
            raise
        shutil.rmtree(folder / SHARDS)
