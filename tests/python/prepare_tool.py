"""Running subspace.prepare, and what tests of it share."""

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT / "python")}


def command(*arguments):
    return [sys.executable, "-m", "subspace.prepare", *map(str, arguments)]


def prepare(*arguments, status=0):
    """Standard error of the program, which must end with this status. Within this process: starting
    Python takes longer than most of these tests."""
    from subspace.prepare.__main__ import main

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as error:
            assert main([str(argument) for argument in arguments]) == status, error.getvalue()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return error.getvalue()


def refuse(*arguments):
    error = prepare(*arguments, status=1)
    assert error.startswith("error: ") or "\nerror: " in error
    return error


class Data:
    """A data folder, checked against its own meta.json."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = json.loads((self.folder / "meta.json").read_text())
        self.splits = {name: self._arrays(entry) for name, entry in self.meta["splits"].items()}
        named = {array["file"] for entry in self.meta["splits"].values() for array in entry["arrays"].values()}
        others = {path.name for path in self.folder.iterdir()} - named
        assert others <= {"meta.json", "tokenizer.json", ".lock"}

    def _arrays(self, entry):
        arrays = {}
        for name, array in entry["arrays"].items():
            data = (self.folder / array["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == array["sha256"] and len(data) == array["bytes"]
            arrays[name] = np.load(self.folder / array["file"], mmap_mode="r")
            assert arrays[name].offset == 128
            assert arrays[name].dtype.name == array["dtype"] and list(arrays[name].shape) == array["shape"]
            assert len(arrays[name]) == entry["rows"] + (entry["documents"] + 1 - entry["rows"]
                                                         if name == "documents" else 0)
        if "tokens" in arrays:
            assert arrays["lengths"].sum() == entry["tokens"] == entry["text_tokens"] + entry["special_tokens"]
            assert arrays["tokens"].size == entry["tokens"] + entry["padding"]
            behind = np.arange(self.meta["length"]) >= arrays["lengths"][:, None]
            assert (arrays["tokens"][behind] == self.meta["pad_id"]).all()
        return arrays

    def tokenizer(self):
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def documents(self, split="train"):
        """The text of each document, from its tokens."""
        arrays, tokenizer = self.splits[split], self.tokenizer()
        flat, starts = arrays["tokens"].ravel(), arrays["documents"]
        text = ~np.isin(flat, self.meta["tokenizer"]["never_masked"])
        return [tokenizer.decode(flat[begin:end][text[begin:end]].tolist()) for begin, end in zip(starts, starts[1:])]


def shared(*parts):
    """A path of the shared data; without it the test is skipped."""
    root = Path(os.environ.get("SUBSPACE_SHARED", ROOT.parent / "shared"))
    path = root.joinpath("data", *parts)
    if not path.exists():
        pytest.skip("shared data not found")
    return path
