"""`subspace spectra` from outside: against NumPy on models that transformers wrote, and as a run
that is killed, interrupted, resumed, refused."""

import csv
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

# The Gram route resolves values down to about 1e-8 of the largest.
FLOOR = 3e-8


def llama(folder, layers=2, width=48, heads=6, groups=2, head=10):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=11, hidden_size=width, intermediate_size=7, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=head)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "layernorm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def deepseek(folder):
    torch.manual_seed(2)
    config = DeepseekV3Config(
        vocab_size=11, hidden_size=44, intermediate_size=7, moe_intermediate_size=5,
        num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=22,
        kv_lora_rank=18, qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=9,
        first_k_dense_replace=2, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2)
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    return folder


def spectra(program, model, out, *options, check=True):
    done = subprocess.run(
        [program, "--device", "cpu", "--threads", "1", "spectra", str(model), "--out", str(out),
         *options], capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def sigma(x):
    return np.linalg.svd(x, compute_uv=False)


def beside(heads):
    return np.concatenate(list(heads), axis=-1)


def above(heads):
    return np.concatenate(list(heads), axis=-2)


def read_weights(model):
    return {k: v.astype(np.float64) for k, v in load_file(model / "model.safetensors").items()}


def expect(found, expected):
    assert set(found) == set(expected)
    for name, want in expected.items():
        got = found[name]
        assert got.shape[:-1] == want.shape[:-1] and got.shape[-1] <= want.shape[-1], name
        n = got.shape[-1]
        error = np.abs(got - want[..., :n]).max()
        assert error <= FLOOR * want.max(), f"{name}: {error}"
        # What is not listed is zero.
        assert (want[..., n:] <= FLOOR * want.max()).all(), name


def turn(angles, layout):
    """R(delta) for row vectors: +sin above the diagonal of each pair."""
    dims = 2 * len(angles)
    out = np.zeros((dims, dims))
    for f, angle in enumerate(angles):
        a, b = (f, f + len(angles)) if layout == "half" else (2 * f, 2 * f + 1)
        out[a, a] = out[b, b] = np.cos(angle)
        out[a, b], out[b, a] = np.sin(angle), -np.sin(angle)
    return out


def common(expected, prefix, q, k, v, o):
    qk = q @ k.transpose(0, 2, 1)
    vo = v @ o
    expected |= {
        prefix + "Q.heads": sigma(q), prefix + "Q.stack": sigma(beside(q)),
        prefix + "O.heads": sigma(o), prefix + "O.stack": sigma(above(o)),
        prefix + "QK.heads": sigma(qk), prefix + "QK.stack": sigma(above(qk)),
        prefix + "KQ.stack": sigma(beside(qk)), prefix + "VO.heads": sigma(vo),
        prefix + "VO.stack": sigma(above(vo)), prefix + "OV.stack": sigma(beside(vo)),
    }


def test_llama_equals_numpy(program, tmp_path):
    model = llama(tmp_path / "model")
    spectra(program, model, tmp_path / "out", "--offsets", "0,5", "--fold-norms")
    weights = read_weights(model)
    heads, groups, head = 6, 2, 10
    theta = 10000.0 ** (-np.arange(0, head, 2) / head)
    expected = {}
    for layer in range(2):
        at = f"model.layers.{layer}."
        gamma = weights[at + "input_layernorm.weight"]

        def reads(name, count):
            w = weights[at + f"self_attn.{name}.weight"] * gamma  # W^T diag(gamma)
            return w.reshape(count, head, -1).transpose(0, 2, 1)

        q = reads("q_proj", heads)
        k, v = reads("k_proj", groups), reads("v_proj", groups)
        o = weights[at + "self_attn.o_proj.weight"].T.reshape(heads, head, -1)
        prefix = f"layers.{layer}."
        expected |= {prefix + "K.heads": sigma(k), prefix + "K.stack": sigma(beside(k)),
                     prefix + "V.heads": sigma(v), prefix + "V.stack": sigma(beside(v))}
        k, v = np.repeat(k, heads // groups, 0), np.repeat(v, heads // groups, 0)
        common(expected, prefix, q, k, v, o)
        for delta in (0, 5):
            r = turn(delta * theta, "half")
            expected[prefix + f"QK@{delta}.heads"] = sigma(q @ r @ k.transpose(0, 2, 1))
    expect(load_file(tmp_path / "out" / "spectra.safetensors"), expected)


def test_deepseek_equals_numpy(program, tmp_path):
    model = deepseek(tmp_path / "model")
    spectra(program, model, tmp_path / "out", "--offsets", "0:6:3", "--layers", "1")
    w = {k.removeprefix("model.layers.1.self_attn."): v for k, v in read_weights(model).items()}
    heads, nope, rope, value = 3, 12, 4, 9
    q_b = w["q_b_proj.weight"].reshape(heads, nope + rope, -1).transpose(0, 2, 1)
    kv_b = w["kv_b_proj.weight"].reshape(heads, nope + value, -1).transpose(0, 2, 1)
    kv_a = w["kv_a_proj_with_mqa.weight"].T
    q, q_rope = q_b[..., :nope], q_b[..., nope:]
    k, v = kv_b[..., :nope], kv_b[..., nope:]
    o = w["o_proj.weight"].T.reshape(heads, value, -1)
    prefix = "layers.1."
    expected = {
        prefix + "Qpe.heads": sigma(q_rope), prefix + "Qpe.stack": sigma(beside(q_rope)),
        prefix + "K.heads": sigma(k), prefix + "K.stack": sigma(beside(k)),
        prefix + "V.heads": sigma(v), prefix + "V.stack": sigma(beside(v)),
        prefix + "QA.stack": sigma(w["q_a_proj.weight"]),
        prefix + "KVA.stack": sigma(kv_a[:, :18]), prefix + "Kpe.stack": sigma(kv_a[:, 18:]),
    }
    common(expected, prefix, q, k, v, o)
    theta = 10000.0 ** (-np.arange(0, rope, 2) / rope)
    for delta in (0, 3):
        r = turn(delta * theta, "interleaved")
        expected[prefix + f"QK@{delta}.heads"] = sigma(q_rope @ r @ kv_a[:, 18:].T)
    expect(load_file(tmp_path / "out" / "spectra.safetensors"), expected)


def test_summary_and_csv_state_the_spectra(program, tmp_path):
    model = llama(tmp_path / "model")
    done = spectra(program, model, tmp_path / "out", "--normalize", "spectral")
    assert "per head" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    values = load_file(tmp_path / "out" / "spectra.safetensors")
    assert summary["conventions"]["normalize"] == "spectral"
    assert summary["conventions"]["space"] == "latent"
    assert summary["model"]["heads"] == 6 and summary["model"]["kv_groups"] == 2
    assert 0 < summary["bytes_read"] < summary["bytes_in_checkpoint"]
    assert summary["peak_memory_bytes"] > 1e6
    rows = list(csv.DictReader((tmp_path / "out" / "ranks.csv").open()))
    for layer in summary["layers"]:
        for name, entry in layer["maps"].items():
            for kind in ("heads", "stack"):
                if kind not in entry:
                    continue
                s = np.atleast_2d(values[f"layers.{layer['layer']}.{name}.{kind}"])
                energy = np.cumsum(s**2, 1) / (s**2).sum(1, keepdims=True)
                for tau in (0.99, 0.999):
                    rank = [int(1 + (e < tau).sum()) for e in energy]
                    assert np.atleast_1d(entry[kind][f"rank_{tau}"]).tolist() == rank
                lost = np.atleast_1d(entry[kind]["energy_lost"]["4"])
                assert np.allclose(lost, 1 - energy[:, 3], atol=1e-12)
                random = entry["random"] if kind == "heads" else entry["stack"]["random"]
                assert 0 < random["rank_0.99"] <= s.shape[1]
                csv_rows = [r for r in rows if r["map"] == name and int(r["layer"]) == layer["layer"]
                            and r["kind"] == kind.removesuffix("s")]
                assert [int(r["rank_0.99"]) for r in csv_rows] == \
                    np.atleast_1d(entry[kind]["rank_0.99"]).tolist()


def test_killed_and_resumed_equals_undisturbed(program, tmp_path):
    model = llama(tmp_path / "model", layers=12, width=320, heads=8, groups=4, head=40)
    spectra(program, model, tmp_path / "whole")
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [program, "--device", "cpu", "--threads", "1", "spectra", str(model), "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not list((out / "layers").glob("*.json")) and time.time() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = len(list((out / "layers").glob("*.json")))
    assert 0 < done < 12, "the run was not killed half way"
    assert not (out / "summary.json").exists()
    (out / "layers" / "3.safetensors.partial.99").write_bytes(b"half")
    refused = spectra(program, model, out, check=False)
    assert refused.returncode == 1 and "--resume" in refused.stderr
    spectra(program, model, out, "--resume")
    for name in ("spectra.safetensors", "ranks.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(out.rglob("*.partial.*"))
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    resumed = json.loads((out / "summary.json").read_text())
    assert whole["bytes_read"] == resumed["bytes_read"]
    assert whole["layers"] == resumed["layers"]


def test_interrupt_keeps_finished_layers(program, tmp_path):
    model = llama(tmp_path / "model", layers=12, width=320, heads=8, groups=4, head=40)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [program, "--device", "cpu", "--threads", "1", "spectra", str(model), "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not list((out / "layers").glob("*.json")) and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr
    assert list((out / "layers").glob("*.json"))
    spectra(program, model, out, "--resume")


def test_resume_refuses_what_changed(program, tmp_path):
    model = llama(tmp_path / "model")
    out = tmp_path / "out"
    spectra(program, model, out)
    changed = spectra(program, model, out, "--resume", "--fold-norms", check=False)
    assert changed.returncode == 1 and "conventions" in changed.stderr
    os.utime(model / "model.safetensors", (1, 1))
    changed = spectra(program, model, out, "--resume", check=False)
    assert changed.returncode == 1 and "shards" in changed.stderr
    spectra(program, model, out, "--force", "--fold-norms")


def test_one_folder_has_one_run(program, tmp_path):
    import fcntl

    model = llama(tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = spectra(program, model, out, check=False)
    assert done.returncode == 1 and str(out) in done.stderr
    spectra(program, model, out)


def test_nonfinite_heads_are_refused_or_marked(program, tmp_path):
    model = llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][25, 3] = np.nan  # head 2
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused = spectra(program, model, tmp_path / "out", check=False)
    assert refused.returncode == 1
    assert "model.layers.1.self_attn.q_proj.weight" in refused.stderr
    spectra(program, model, tmp_path / "out", "--mark-nonfinite", "--force")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    layer = summary["layers"][1]
    assert "head 2" in layer["notes"][0]
    ranks = layer["maps"]["Q"]["heads"]["rank_0.99"]
    assert ranks[2] is None and None not in ranks[:2] + ranks[3:]
    assert None not in layer["maps"]["O"]["heads"]["rank_0.99"]
    assert summary["layers"][0]["notes"] == []


def test_zero_heads_have_rank_zero(program, tmp_path):
    model = llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.self_attn.v_proj.weight"][:] = 0
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    spectra(program, model, tmp_path / "out", "--normalize", "frobenius")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    maps = summary["layers"][0]["maps"]
    assert maps["V"]["heads"]["rank_0.99"] == [0, 0]
    assert maps["VO"]["stack"]["rank_0.999"] == 0
    assert maps["V"]["heads"]["condition_number"] == [None, None]


@pytest.mark.parametrize("options, says", [
    (["--layers", "0-9"], "layer 2 is out of range"),
    (["--layers", "x"], "--layers"),
    (["--offsets", "5:2"], "--offsets"),
    (["--normalize", "frobenius", "--conventions", "published-2025"], "--normalize"),
    (["--resume", "--force"], "--resume"),
])
def test_wrong_options_are_explained(program, tmp_path, options, says):
    done = spectra(program, llama(tmp_path / "model"), tmp_path / "out", *options, check=False)
    assert done.returncode in (1, 2) and says in done.stderr
    assert not (tmp_path / "out" / "summary.json").exists()


def test_published_conventions_are_named(program, tmp_path):
    model = deepseek(tmp_path / "model")
    spectra(program, model, tmp_path / "out", "--conventions", "published-2025", "--space", "model")
    conventions = json.loads((tmp_path / "out" / "summary.json").read_text())["conventions"]
    assert conventions["name"] == "published-2025"
    assert conventions["normalize"] == "spectral" and conventions["fold_norms"] is True
    assert conventions["space"] == "model"
