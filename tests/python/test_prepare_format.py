"""The format itself: small folders that are committed and that the C++ reader's tests open
(tests/data/data) are what subspace.prepare makes today, byte for byte.

After a change of the format that is meant: SUBSPACE_WRITE_GOLDEN=1 pytest tests/python/test_prepare_format.py
"""

import gzip
import json
import os
import shutil

import numpy as np
import pytest
from prepare_tool import ROOT, Data, prepare

GOLDEN = ROOT / "tests" / "data" / "data"
TEXT = "= First =\n\nRöntgen rays.\n\n= Second =\n\nTwo.\n\n"


def text(folder, *options):
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text("Held out.")
    return ["text", "--input", folder / "a.txt", "--valid", folder / "b.txt", "--tokenizer", "bytes", "--length", "8",
            *options]


def sentences(folder):
    (folder / "train.tsv").write_text("label\tsentence\n1\tgood\n0\tbad film\n")
    (folder / "dev.tsv").write_text("label\tsentence\n0\tworse\n")
    return ["sst2", "--input", folder, "--tokenizer", "bytes", "--length", "8"]


def images(folder):
    for prefix, count in (("train", 3), ("t10k", 1)):
        pixels = (np.arange(count * 6) * 37 % 256).astype(np.uint8)
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 2, 3))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
        labels = b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(i % 2 for i in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return ["images", "--input", folder]


CASES = {
    "encoder": lambda folder: text(folder),
    "packed_encoder": lambda folder: text(folder, "--pack"),
    "packed_decoder": lambda folder: text(folder, "--pack", "--style", "decoder"),
    "classification": sentences,
    "images": images,
}


def comparable(meta):
    """Without what versions of packages change, and what gzip packs differently."""
    meta = json.loads(json.dumps(meta))
    for name in ("made_by", "id"):
        meta.pop(name)
    meta.get("tokenizer", {}).pop("sha256", None)
    for split in meta["splits"].values():
        split.pop("sources")
    return meta


@pytest.mark.parametrize("name", CASES)
def test_format_is_as_committed(tmp_path, name):
    (tmp_path / "in").mkdir()
    prepare(*CASES[name](tmp_path / "in"), "--out", tmp_path / "out")
    made, golden = Data(tmp_path / "out"), GOLDEN / name
    if os.environ.get("SUBSPACE_WRITE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir(parents=True)
        for path in [*(tmp_path / "out").glob("*.npy"), tmp_path / "out" / "meta.json"]:
            shutil.copyfile(path, golden / path.name)
    assert comparable(made.meta) == comparable(json.loads((golden / "meta.json").read_text()))
    names = {path.name for path in golden.glob("*.npy")}
    assert names == {path.name for path in (tmp_path / "out").glob("*.npy")} and names
    for file in names:
        assert (tmp_path / "out" / file).read_bytes() == (golden / file).read_bytes(), file
