"""Models at the edges: one head, one layer, nothing but zeros, layers that are not there; and each
option of `spectra`, seen from outside."""

import csv
import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from test_spectra import llama

DEEPSEEK = dict(model_type="deepseek_v3", hidden_size=48, num_hidden_layers=1,
                num_attention_heads=1, num_key_value_heads=1, q_lora_rank=20, kv_lora_rank=14,
                qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, rms_norm_eps=1e-6)


def call(program, *arguments, status=0):
    done = subprocess.run([program, "--json", "--device", "cpu", *map(str, arguments)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def numbers(folder):
    """Every number of a summary; NaN would not be JSON, so that it cannot hide."""
    def walk(value):
        if isinstance(value, dict):
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)
        elif isinstance(value, float):
            yield value

    refuse = lambda name: pytest.fail(f"summary.json holds {name}")
    return list(walk(json.loads((folder / "summary.json").read_text(), parse_constant=refuse)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("extremes") / "model")


@pytest.mark.parametrize("kind", ["llama", "deepseek"])
def test_one_head_in_one_layer(program, tmp_path, kind):
    if kind == "llama":
        folder = llama(tmp_path / "model", layers=1, heads=1, groups=1)
    else:
        (tmp_path / "wanted.json").write_text(json.dumps(DEEPSEEK))
        call(program, "synth", tmp_path / "wanted.json", "--out", tmp_path / "model")
        folder = tmp_path / "model"
    summary = call(program, "spectra", folder, "--out", tmp_path / "out")
    values = load_file(tmp_path / "out" / "spectra.safetensors")
    maps = summary["layers"][0]["maps"]
    assert len(summary["layers"]) == 1 and maps["VO"]["heads"]["rank_0.99"][0] >= 1
    # The stack of one head is the head.
    for name in ("Q", "K", "V", "O", "VO", "QK"):
        head, stack = values[f"layers.0.{name}.heads"][0], values[f"layers.0.{name}.stack"]
        error = np.abs(head - stack[:len(head)]).max()
        assert error <= 3e-8 * head[0] and (stack[len(head):] <= 3e-8 * head[0]).all(), name
    page = call(program, "report", tmp_path / "out", "--out", tmp_path / "r.html")["report"]
    assert (tmp_path / "r.html").stat().st_size > 1e6 and page == str(tmp_path / "r.html")


@pytest.mark.parametrize("options", [[], ["--exact"], ["--normalize", "spectral"],
                                     ["--normalize", "frobenius", "--fold-norms"],
                                     ["--conventions", "published-2025"], ["--space", "model"]])
def test_nothing_but_zeros(program, model, tmp_path, options):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    weights = load_file(model / "model.safetensors")
    save_file({n: w * 0 if "proj" in n else w for n, w in weights.items()},
              folder / "model.safetensors", {"format": "pt"})
    summary = call(program, "spectra", folder, "--out", tmp_path / "out", *options)
    for layer in summary["layers"]:
        for name, entry in layer["maps"].items():
            for part in filter(None, (entry.get("heads"), entry.get("stack"))):
                for metric in ("largest", "rank_0.99", "rank_0.999", "stable_rank", "entropy_rank",
                               "participation_ratio"):
                    assert not np.any(part[metric]), (name, metric)
                assert not any(np.any(lost) for lost in part["energy_lost"].values())
                assert np.all(np.equal(part["condition_number"], None))
    assert np.isfinite(numbers(tmp_path / "out")).all()
    assert not any(v.any() for v in load_file(tmp_path / "out" / "spectra.safetensors").values())
    for row in csv.DictReader((tmp_path / "out" / "ranks.csv").open()):
        assert row["rank_0.99"] == "0" and row["condition_number"] == "inf"
    call(program, "report", tmp_path / "out", "--out", tmp_path / "r.html")


@pytest.mark.parametrize("arguments", [
    ["spectra", "--layers", "2"], ["spectra", "--layers", "0-5"], ["spectra", "--layers", "1,99"],
    ["export", "--layer", "2"]])
def test_layers_that_are_not_there(program, model, tmp_path, arguments):
    command, *options = arguments
    error = call(program, command, model, "--out", tmp_path / "out", *options, status=1)["error"]
    assert error["code"] == "invalid_value"
    assert "out of range" in error["message"] and "0 to 1" in error["message"]
    assert not (tmp_path / "out").exists()


def test_layers_are_those_that_were_asked_for(program, model, tmp_path):
    summary = call(program, "spectra", model, "--out", tmp_path / "out", "--layers", "1")
    assert [layer["layer"] for layer in summary["layers"]] == [1]
    assert {n.split(".")[1] for n in load_file(tmp_path / "out" / "spectra.safetensors")} == {"1"}
    # A second look at more of the model keeps what is there.
    more = call(program, "spectra", model, "--out", tmp_path / "out", "--layers", "0-1", "--resume")
    assert [layer["layer"] for layer in more["layers"]] == [0, 1]


@pytest.mark.parametrize("given, offsets", [
    ("0:4", [0, 1, 2, 3]), ("0:9:4", [0, 4, 8]), ("7", [7]), ("16,1", [1, 16])])
def test_offsets(program, model, tmp_path, given, offsets):
    summary = call(program, "spectra", model, "--out", tmp_path / "out", "--layers", "0",
                   "--offsets", given)
    assert summary["conventions"]["offsets"] == offsets
    names = [n for n in summary["layers"][0]["maps"] if n.startswith("QK@")]
    assert names == [f"QK@{delta}" for delta in offsets]


def test_offsets_are_the_powers_of_two_unless_said_otherwise(program, model, tmp_path):
    summary = call(program, "spectra", model, "--out", tmp_path / "out", "--layers", "0")
    assert summary["conventions"]["offsets"] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    values = load_file(tmp_path / "out" / "spectra.safetensors")
    whole, turned = values["layers.0.QK.heads"], values["layers.0.QK@0.heads"]
    assert np.abs(whole - turned).max() <= 3e-8 * whole.max()


def test_exact_agrees_with_the_usual_route(program, model, tmp_path):
    for name, options in (("usual", []), ("exact", ["--exact"])):
        summary = call(program, "spectra", model, "--out", tmp_path / name, *options)
        assert summary["conventions"]["exact"] is bool(options)
        # The bound on memory is one of the usual route.
        assert (summary["memory"]["bound_bytes"] is None) is bool(options)
    usual, exact = (load_file(tmp_path / name / "spectra.safetensors") for name in ("usual", "exact"))
    assert usual.keys() == exact.keys()
    for name, values in usual.items():
        error = np.abs(values - exact[name][..., :values.shape[-1]]).max()
        assert error <= 3e-8 * exact[name].max(), name


@pytest.mark.parametrize("normalize", ["none", "spectral", "frobenius"])
def test_heads_are_scaled_before_stacking(program, model, tmp_path, normalize):
    call(program, "spectra", model, "--out", tmp_path / "out", "--normalize", normalize)
    values = load_file(tmp_path / "out" / "spectra.safetensors")
    for name in ("Q", "K", "V", "O", "VO", "QK"):
        heads = values[f"layers.1.{name}.heads"]
        divide = {"none": 1, "spectral": heads[:, 0], "frobenius": np.sqrt((heads**2).sum(1))}
        # Whatever the overlap, stacking keeps the sum of squares.
        expected = ((heads**2).sum(1) / np.square(divide[normalize])).sum()
        assert (values[f"layers.1.{name}.stack"]**2).sum() == pytest.approx(expected, rel=1e-9)


def test_the_whole_summary_is_there(program, model, tmp_path):
    summary = call(program, "spectra", model, "--out", tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["format"] == "subspace-spectra" and summary["version"] == 1
    assert summary["program"].keys() >= {"version", "commit", "compiler", "torch", "instruction_sets"}
    assert summary["model"]["dtypes"] == {"F32": 10}
    assert summary["model"]["rope"] == {"layout": "half", "dims": 10}
    assert summary["device"].startswith("cpu (") and len(summary["times"]["layer_seconds"]) == 2
    table = call(program, "inspect", model)
    assert summary["bytes_read"] == table["bytes_needed"] < table["bytes_in_checkpoint"]
    columns = ("largest", "rank_0.99", "rank_0.999", "energy_lost", "stable_rank", "entropy_rank",
               "participation_ratio", "condition_number")
    stacks = {"Q", "K", "V", "O", "VO", "OV", "QK", "KQ"}
    for layer in summary["layers"]:
        assert {n for n, entry in layer["maps"].items() if "stack" in entry} == stacks
        for name, entry in layer["maps"].items():
            if name not in ("OV", "KQ"):
                assert set(columns) <= entry["heads"].keys() and set(columns[1:3]) <= entry["random"].keys()
            if "stack" in entry:
                assert {"shape", "random", *columns} <= entry["stack"].keys()
