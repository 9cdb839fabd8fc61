"""Arrays and meta.json of a data folder, each written whole or not at all. docs/data.md is the
format."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from .errors import DataError

FORMAT, VERSION = "subspace-data", 1
DATA_BEGIN = 128  # bytes of every array's header: the data of a mapped file is aligned


def npy_header(dtype, shape):
    """A .npy header (format 1.0) of exactly DATA_BEGIN bytes."""
    text = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(map(int, shape))})
    room = DATA_BEGIN - 10 - 1
    if len(text) > room:
        raise DataError(f"a shape of {shape} does not fit in the header of an array")
    return b"\x93NUMPY\x01\x00" + (DATA_BEGIN - 10).to_bytes(2, "little") + text.ljust(room).encode() + b"\n"


def sha256_of(file):
    """Hex digest of the rest of an open binary file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class _Partial:
    """A file that gets its name when it is finished; left half way, it is removed."""

    def __init__(self, path):
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial.{os.getpid()}")
        self.file = open(self.partial, "wb+")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not self.file.closed:
            self.file.close()
        self.partial.unlink(missing_ok=True)

    def commit(self):
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)


def write_atomically(path, data):
    with _Partial(path) as out:
        out.file.write(data)
        out.commit()


class ArrayWriter(_Partial):
    """An array whose first axis grows: `write` appends rows, `finish` states the shape, hashes the
    file, names it and gives its entry for meta.json."""

    def __init__(self, path, dtype, row_shape=()):
        super().__init__(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.row_shape, self.rows = tuple(row_shape), 0
        self.file.write(b"\0" * DATA_BEGIN)

    def write(self, rows):
        if rows.shape[1:] != self.row_shape:
            raise DataError(f"{self.path}: rows of shape {rows.shape[1:]}; expected {self.row_shape}")
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def finish(self):
        shape = (self.rows, *self.row_shape)
        self.file.seek(0)
        self.file.write(npy_header(self.dtype, shape))
        self.file.seek(0)
        digest = sha256_of(self.file)
        size = self.file.seek(0, os.SEEK_END)
        self.commit()
        return {"file": self.path.name, "dtype": self.dtype.name, "shape": list(shape), "bytes": size,
                "sha256": digest}


def write_array(path, array):
    with ArrayWriter(path, array.dtype, array.shape[1:]) as writer:
        writer.write(array)
        return writer.finish()


def _identity(meta):
    """SHA-256 over what makes the data what it is, not over how or when it was made."""
    keep = {
        "kind": meta["kind"], "style": meta.get("style"), "classes": meta.get("classes"),
        "image": meta.get("image"), "tokenizer": meta.get("tokenizer", {}).get("sha256"),
        "arrays": {split: {name: array["sha256"] for name, array in entry["arrays"].items()}
                   for split, entry in meta["splits"].items()},
    }
    return hashlib.sha256(json.dumps(keep, sort_keys=True).encode()).hexdigest()


def write_meta(folder, meta):
    """The last file of a folder: what has one is whole."""
    whole = {"format": FORMAT, "version": VERSION, "kind": meta["kind"], "id": _identity(meta)}
    whole |= {name: value for name, value in meta.items() if name != "kind"}
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_atomically(Path(folder) / "meta.json", text.encode())
    return whole


def made_by(options):
    import importlib.metadata as metadata

    versions = {}
    for package in ("numpy", "tokenizers", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return {"versions": versions, "options": options}
