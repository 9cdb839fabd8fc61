"""The operators torch.ops.subspace.*; importing this module registers them.

    product_key_topk(s1, s2, k, softmax=False) -> scores, index
    column_moments(x) -> mean, variance
    batch_norm_halves(x, weight, bias, mean, variance, heads, eps, of_batch) -> first, second
    ethos_experts(xp, scores, index, z, w1) -> acc
    ethos_layer(x, scores, index, z, w1, w_u, w_v, heads) -> y
    stored_experts(x, scores, index, down, up) -> y

docs/ethos.md says what each computes and promises. The library is $SUBSPACE_OPS if that is set,
or else what `./run build` (or `./run python`) made in this checkout, or one beside this file.
"""

import os
from pathlib import Path

import torch

NAME = "libsubspace_ops.so"
HERE = Path(__file__).resolve().parent


def candidates():
    """Where the library may be; with CUDA first where PyTorch has it."""
    root = HERE.parents[1]
    builds = ["cuda", "release"] if torch.cuda.is_available() else ["release", "cuda"]
    return [*(root / "build" / build / "lib" / NAME for build in builds), HERE / NAME]


def library():
    """The path of the library that is, or would be, loaded."""
    named = os.environ.get("SUBSPACE_OPS")
    if named:
        if not Path(named).is_file():
            raise ImportError(f"SUBSPACE_OPS names {named}, which is not a file")
        return Path(named)
    for path in candidates():
        if path.is_file():
            return path
    looked = "\n  ".join(map(str, candidates()))
    raise ImportError(
        f"{NAME} was not found; looked at\n  {looked}\n"
        "`./run build` builds it (`./run build cuda` with CUDA), or name one by SUBSPACE_OPS=FILE."
    )


def _load():
    path = library()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"{path} does not load into PyTorch {torch.__version__}: {error}\n"
            "It fits the PyTorch that it was built with: `./run build` builds it anew."
        ) from error


_load()

product_key_topk = torch.ops.subspace.product_key_topk
column_moments = torch.ops.subspace.column_moments
batch_norm_halves = torch.ops.subspace.batch_norm_halves
ethos_experts = torch.ops.subspace.ethos_experts
ethos_layer = torch.ops.subspace.ethos_layer
stored_experts = torch.ops.subspace.stored_experts
