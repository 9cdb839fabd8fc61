"""The program `subspace` and its operators in Python.

    import subspace
    run = subspace.load("DIR")                   # what `subspace spectra MODEL --out DIR` wrote
    run.heads(0, "VO")                           # [heads, n] singular values, float64, descending
    run.stack(0, "VO")                           # [n]
    run.table.query("map == 'VO' and kind == 'head'")["rank_0.99"].median()

    layer = subspace.nn.Ethos(dim=1024)          # layers of a PyTorch model: subspace.nn
    subspace.ops.product_key_topk(s1, s2, 16)    # the operators they are made of: subspace.ops

Reading results needs NumPy; `ops` and `nn` need PyTorch and are imported when first used.
"""

import importlib

from .results import Run, load

__all__ = ["Run", "load", "nn", "ops"]


def __getattr__(name):
    if name in ("nn", "ops"):
        return importlib.import_module("." + name, __name__)
    raise AttributeError(f"module 'subspace' has no attribute {name!r}")
