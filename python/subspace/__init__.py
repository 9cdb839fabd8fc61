"""Results of the program `subspace` in Python.

    import subspace
    run = subspace.load("DIR")                   # what `subspace spectra MODEL --out DIR` wrote
    run.heads(0, "VO")                           # [heads, n] singular values, float64, descending
    run.stack(0, "VO")                           # [n]
    run.table.query("map == 'VO' and kind == 'head'")["rank_0.99"].median()
"""

from .results import Run, load

__all__ = ["Run", "load"]
