"""`subspace.load` against what the program and the safetensors package say."""

import subprocess
import sys

import numpy as np
import pytest
import subspace
from safetensors.numpy import load_file

from test_spectra import llama, spectra


@pytest.fixture(scope="module")
def folder(program, tmp_path_factory):
    root = tmp_path_factory.mktemp("load")
    spectra(program, llama(root / "model"), root / "run")
    return root / "run"


def test_arrays_are_the_files(folder):
    run = subspace.load(folder)
    expected = load_file(folder / "spectra.safetensors")
    assert run.spectra.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(run.spectra[name], values)
    assert run.layers == [0, 1] and {"Q", "K", "V", "O", "VO", "QK"} <= set(run.maps)
    assert run.heads(1, "VO").shape[0] == 6 and run.heads(1, "K").shape[0] == 2
    assert (np.diff(run.stack(0, "Q")) <= 0).all()


def test_table_agrees_with_the_spectra(folder):
    run = subspace.load(folder)
    rows = run.table.query("kind == 'head' and map == 'VO'")
    assert len(rows) == 2 * 6
    for layer, head, largest in rows[["layer", "index", "largest"]].itertuples(index=False):
        assert largest == pytest.approx(run.heads(layer, "VO")[head][0], rel=1e-12)


def test_without_pandas_the_table_says_what_to_do_and_the_rest_works(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = subspace.load(folder)
    assert run.heads(0, "Q").shape == (6, 10)
    with pytest.raises(ImportError, match="pip install pandas"):
        run.table


def test_run_python_has_it_all(folder, pytestconfig):
    """What a newcomer types: `./run python`, from anywhere."""
    code = f"import subspace; r = subspace.load({str(folder)!r}); print(len(r.table), r.layers)"
    done = subprocess.run([pytestconfig.rootpath / "run", "python", "-c", code],
                          capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].endswith(" [0, 1]")


def test_what_is_not_a_run_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        subspace.load(tmp_path)
    with pytest.raises(KeyError, match="layers.7.VO.heads"):
        subspace.load(folder).heads(7, "VO")
    for name in ("summary.json", "ranks.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    whole = (folder / "spectra.safetensors").read_bytes()
    for length in (4, 100, len(whole) - 8):
        (tmp_path / "spectra.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="spectra.safetensors"):
            subspace.load(tmp_path)
