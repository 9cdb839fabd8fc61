"""Reads a results folder. Needs NumPy; `Run.table` needs pandas."""

import json
import struct
from functools import cached_property
from pathlib import Path

import numpy as np

FORMAT, VERSION = "subspace-spectra", 1


def _read_float64(path):
    """Name -> array for a safetensors file of float64 tensors, mapped read-only: nothing is read
    before it is used. The program writes no other type here, so no library is needed."""
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"{path}: {len(start)} bytes; not a safetensors file")
        (length,) = struct.unpack("<Q", start)
        size = path.stat().st_size
        if length > size - 8:
            raise ValueError(f"{path}: the header claims {length} bytes of {size}; truncated")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, dtype=np.uint8, mode="r")[8 + length:]
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if entry["dtype"] != "F64" or end - begin != 8 * count or end > data.size:
            raise ValueError(f"{path}: '{name}' is not a whole float64 tensor; truncated or not ours")
        arrays[name] = data[begin:end].view("<f8").reshape(entry["shape"])
    return arrays


class Run:
    """One finished run.

    summary  the content of summary.json
    spectra  {"layers.<L>.<MAP>.heads": [heads, n], "layers.<L>.<MAP>.stack": [n]}, float64
    table    ranks.csv, a pandas DataFrame: one row for each layer, map and head or stack
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "summary.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no finished run there; `subspace spectra MODEL --out {self.folder}` makes one "
                "(with --resume, it finishes one that was interrupted)")
        self.summary = json.loads(path.read_text())
        found = self.summary.get("format"), self.summary.get("version")
        if found != (FORMAT, VERSION):
            raise ValueError(f"{path}: format {found}; this reads {(FORMAT, VERSION)}")
        self.spectra = _read_float64(self.folder / "spectra.safetensors")

    def __repr__(self):
        return f"Run({self.summary['model']['name']!r}, layers={self.layers}, maps={self.maps})"

    @property
    def layers(self):
        return [layer["layer"] for layer in self.summary["layers"]]

    @property
    def maps(self):
        return sorted({name for layer in self.summary["layers"] for name in layer["maps"]})

    def heads(self, layer, name):
        """Singular values of each head (or key/value group), [heads, n], descending."""
        return self._get(layer, name, "heads")

    def stack(self, layer, name):
        """Singular values of the heads stacked, or of the matrix they share, [n], descending."""
        return self._get(layer, name, "stack")

    def _get(self, layer, name, kind):
        key = f"layers.{layer}.{name}.{kind}"
        if key not in self.spectra:
            raise KeyError(f"{key}: not in this run; layers {self.layers}, maps {self.maps}")
        return self.spectra[key]

    @cached_property
    def table(self):
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "Run.table needs pandas (pip install pandas); run.summary has the same numbers"
            ) from error
        return pandas.read_csv(self.folder / "ranks.csv")


def load(folder):
    """The results that `subspace spectra MODEL --out FOLDER` wrote."""
    return Run(folder)
