"""Every family's tiny model on a GPU: the same spectra as on the CPU, which the oracles check."""

import csv

import numpy as np
import pytest
import torch
from oracle.cases import CASES
from oracle.models import save, tiny_model
from oracle.program import run
from safetensors.numpy import load_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RANKS = ("rank_0.99", "rank_0.999")


def spectra(program, folder, device, out):
    result = run(
        program, "spectra", folder, "--out", out, "--device", device, "--offsets", "0:3", "--quiet"
    )
    assert result.returncode == 0, result.stderr
    with (out / "ranks.csv").open() as file:
        return load_file(out / "spectra.safetensors"), list(csv.DictReader(file))


@pytest.mark.parametrize("name", CASES)
def test_same_spectra_as_on_the_cpu(name, program, tmp_path):
    """Both go through Gram matrices where that pays, whose eigenvalues, the squares, are good to a
    small multiple of n eps sigma_1^2; ranks are whole numbers and equal."""
    save(tiny_model(name), name, tmp_path / "model")
    cpu, cpu_rows = spectra(program, tmp_path / "model", "cpu", tmp_path / "cpu")
    gpu, gpu_rows = spectra(program, tmp_path / "model", "cuda", tmp_path / "gpu")
    assert cpu.keys() == gpu.keys() and len(cpu_rows) == len(gpu_rows) > 0
    for key, expected in cpu.items():
        assert expected.dtype == np.float64 and expected.max() > 0
        bound = 32 * expected.shape[-1] * np.finfo(float).eps * expected.max() ** 2
        assert (np.abs(gpu[key] ** 2 - expected**2) <= bound).all(), key
    for a, b in zip(cpu_rows, gpu_rows):
        assert [a[c] for c in ("layer", "map", "kind", "index", *RANKS)] == [
            b[c] for c in ("layer", "map", "kind", "index", *RANKS)
        ]
