"""`subspace lora heads` and `lora rope` on PEFT's adapters, beside dense products in NumPy."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from oracle.adapters import adapt
from oracle.lora_models import Weights, make
from oracle.program import run


def analysed(program, command, base, adapter, out, *more):
    result = run(program, "--quiet", "lora", command, "--base", base, "--adapter", adapter, "--out", out,
                 *more)
    assert result.returncode == 0, result.stderr
    name = "rope.json" if command == "rope" else "heads.json"
    return json.loads((out / name).read_text())


@pytest.mark.parametrize("name, flags", [
    ("llama-gqa", {"data_unweighted"}),
    ("qwen3", {"data_unweighted", "qk_norm"}),
    ("deepseek_v3", {"data_unweighted", "mla_rms"}),
])
def test_every_entry_says_what_it_leaves_out(name, flags, program, tmp_path):
    base, adapter, _ = adapt(name, tmp_path)
    for command in ("heads", "rope"):
        found = analysed(program, command, base, adapter, tmp_path / command)
        turned = [e for e in found["heads"] if command == "rope" or e["circuit"] == "QK"]
        assert turned and all(set(entry["approx"]) == flags for entry in turned)


NAMES = {
    "bert-second": ("encoder.layer.{}.attention.self.value", "encoder.layer.{}.attention.output.dense",
                    "encoder.layer.{}.attention.output.LayerNorm"),
    "gemma2-full": ("layers.{}.self_attn.v_proj", "layers.{}.self_attn.o_proj",
                    "layers.{}.post_attention_layernorm"),
}


def messages(folder, name):
    """V O of every layer and head, the norms before and behind them multiplied out."""
    stored = {key.removeprefix("model."): value.astype(float)
              for key, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    out = []
    for layer in range(config["num_hidden_layers"]):
        value, output, behind = (stored[key.format(layer) + ".weight"] for key in NAMES[name])
        if name.startswith("bert"):
            before = f"encoder.layer.{layer - 1}.output.LayerNorm" if layer else "embeddings.LayerNorm"
            gamma, centre = stored[before + ".weight"], np.eye(len(behind)) - 1 / len(behind)
        else:
            gamma, centre = 1 + stored[f"layers.{layer}.input_layernorm.weight"], np.eye(len(behind))
            behind = 1 + behind
        v = np.split(centre @ np.diag(gamma) @ value.T, groups, axis=1)
        o = np.split(output.T @ centre @ np.diag(behind), heads, axis=0)
        out.append([v[i * groups // heads] @ o[i] for i in range(heads)])
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_behind_attention_is_part_of_what_is_written(name, program, tmp_path):
    base, adapter, merged = adapt(name, tmp_path)
    before, after = messages(base, name), messages(merged, name)
    found = analysed(program, "heads", base, adapter, tmp_path / "heads", "--fold-norm")
    entries = [entry for entry in found["heads"] if entry["circuit"] == "VO"]
    assert len(entries) == sum(map(len, before))
    for entry in entries:
        m0, m1 = (which[entry["layer"]][entry["head"]] for which in (before, after))
        wanted = [np.linalg.norm(m) for m in (m0, m1, m1 - m0)]
        assert np.abs(np.array(entry["fro"]) - wanted).max() <= 1e-6 * wanted[0]
        assert "post_norm" in entry["approx"]
    result = run(program, "--quiet", "lora", "compose", "--base", base, "--adapter", adapter, "--out",
                 tmp_path / "compose", "--between", "0-1")
    assert result.returncode == 0, result.stderr
    composed = json.loads((tmp_path / "compose" / "compose.json").read_text())
    assert "post_norm" in composed["approx"]
    pairs = [pair for pair in composed["pairs"] if pair["mode"] == "V"]
    assert len(pairs) == len(before[0]) * len(before[1])
    for pair in pairs:
        (_, i), (_, j) = pair["w"], pair["r"]
        scale = np.linalg.norm(before[0][i]) * np.linalg.norm(before[1][j])
        change = after[0][i] @ after[1][j] - before[0][i] @ before[1][j]
        assert pair["S"] == pytest.approx(np.linalg.norm(before[0][i] @ before[1][j]) / scale, rel=1e-6)
        assert pair["rho"] == pytest.approx(np.linalg.norm(change) / scale, rel=1e-6)
    screens = [s for s in composed["screens"] if s["mode"] == "V"]
    by_reader = sorted(pairs, key=lambda pair: (pair["w"][1], pair["r"][1]))
    table = np.array([pair["rho_interface"] for pair in by_reader]).reshape(len(before[0]), -1)
    assert np.abs(np.array(screens[0]["rho_heads"]) - table).max() <= 1e-9


def dense(weights, layer, head, circuit, which):
    """M of the base (0) or adapted (1), at offset 0, norms left out."""
    w = {part: weights.layers[layer][part][0] + which * weights.layers[layer][part][1] for part in "qkvo"}
    group = weights.group(head)
    return w["q"][head] @ w["k"][group].T if circuit == "QK" else w["v"][group] @ w["o"][head]


def test_leading_vectors_and_what_is_left_without_the_gain(program, tmp_path):
    base, adapter = make(tmp_path)
    found = analysed(program, "heads", base, adapter, tmp_path / "out", "--vectors", "2", "--gain-free",
                     "--offsets", "0")
    stored, weights = load_file(tmp_path / "out" / "heads.safetensors"), Weights(base, adapter)
    for entry in found["heads"]:
        layer, head, circuit = entry["layer"], entry["head"], entry["circuit"]
        m0, m1 = (dense(weights, layer, head, circuit, i) for i in (0, 1))
        for which, m in {"base": m0, "adapted": m1, "delta": m1 - m0}.items():
            u, s, vh = np.linalg.svd(m)
            left, right = (stored[f"layers.{layer}.{circuit}.vectors.{which}.{side}"][head]
                           for side in ("left", "right"))
            assert left.shape == right.shape == (2, len(m))
            for j in range(2):
                assert left[j] @ m @ right[j] == pytest.approx(s[j], rel=1e-8)
                assert np.linalg.norm(left[j]) == pytest.approx(1, abs=1e-12)
                assert left[j][np.abs(left[j]).argmax()] > 0
        gain = np.sum(m0 * (m1 - m0)) / np.sum(m0 * m0)
        assert entry["gain"] == pytest.approx(gain, rel=1e-8)
        rest = m1 - m0 - gain * m0
        read, write = (np.linalg.svd(x)[0][:, : np.linalg.matrix_rank(x)] for x in (m0, m0.T))
        p, q = read @ read.T, write @ write.T
        e = np.eye(len(p))
        parts = {"in_in": p @ rest @ q, "new_read": (e - p) @ rest @ q, "new_write": p @ rest @ (e - q),
                 "new_new": (e - p) @ rest @ (e - q)}
        for name, part in parts.items():
            share = np.sum(part**2) / np.sum(rest**2)
            assert entry["split_gain_free"][name] == pytest.approx(share, abs=1e-8)
        u, _, vh = np.linalg.svd(m0)
        k = read.shape[1]
        u1, _, vh1 = np.linalg.svd(m1 - gain * m0)
        top = min(10, k)
        for side, old, new in (("left", u[:, :k], u1[:, :top]), ("right", vh[:k].T, vh1[:top].T)):
            c = np.abs(old.T @ new)
            assert entry["intruder_vec_gain_free"][side] == np.sum(c.max(0) < 0.5)
            assert entry["intruder_sub_gain_free"][side] == np.sum((c**2).sum(0) < 0.25)


def ratio(matrix):
    values = np.linalg.eigvals(matrix)
    return values.real.sum() / np.abs(values).sum()


def test_copying_from_tokens_to_tokens(program, tmp_path):
    """The nonzero eigenvalues of the map of all tokens to all tokens, multiplied out."""
    base, adapter = make(tmp_path)
    found = analysed(program, "heads", base, adapter, tmp_path / "out", "--token-copying")
    weights = Weights(base, adapter)
    embedding = weights.stored["model.embed_tokens.weight"]
    logits = weights.stored.get("lm_head.weight", embedding) * weights.stored["model.norm.weight"]
    logits = logits - logits.mean(0)
    checked = 0
    for entry in found["heads"]:
        if entry["circuit"] != "VO":
            assert "copying_tokens" not in entry
            continue
        gamma = weights.layers[entry["layer"]]["norm"]
        for which in (0, 1):
            m = dense(weights, entry["layer"], entry["head"], "VO", which)
            tokens = embedding @ (gamma[:, None] * m) @ logits.T
            assert entry["copying_tokens"][which] == pytest.approx(ratio(tokens), abs=1e-5)
            checked += 1
    assert checked


@pytest.mark.parametrize("folded", [False, True])
def test_without_data_layer_0_is_weighted_by_the_embeddings(folded, program, tmp_path):
    base, adapter = make(tmp_path)
    more = ["--fold-norm"] if folded else []
    found = analysed(program, "heads", base, adapter, tmp_path / "out", "--embedding-moment", "--offsets", "0",
                     *more)
    weights = Weights(base, adapter)
    eps = weights.config["rms_norm_eps"]
    rows = weights.stored["model.embed_tokens.weight"]
    rows = rows / np.sqrt((rows**2).mean(1, keepdims=True) + eps)
    for entry in found["heads"]:
        layer = entry["layer"]
        assert ("data_unweighted" in entry["approx"]) == (layer > 0)
        assert ("tokens_alike" in entry["approx"]) == (layer == 0)
        if layer > 0:
            continue
        x = rows * weights.layers[0]["norm"]
        sizes = []
        for m in [dense(weights, 0, entry["head"], entry["circuit"], i) for i in (0, 1)]:
            read = x @ m @ x.T if entry["circuit"] == "QK" else x @ m
            scale = len(x) ** 2 if entry["circuit"] == "QK" else len(x)
            sizes.append(np.sqrt(np.sum(read**2) / scale))
        assert np.abs(np.array(entry["fro"][:2]) - sizes).max() <= 1e-5 * max(sizes)


def test_words_are_found_near_the_vectors_of_heads(program, tmp_path):
    base, adapter = make(tmp_path)
    (base / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(200)))
    analysed(program, "heads", base, adapter, tmp_path / "out", "--vectors", "1")
    result = run(program, "lora", "tokens", tmp_path / "out", "--base", base)
    assert result.returncode == 0, result.stderr
    words = json.loads((tmp_path / "out" / "tokens.json").read_text())
    stored, weights = load_file(tmp_path / "out" / "heads.safetensors"), Weights(base, adapter)
    embedding = weights.stored["model.embed_tokens.weight"]
    logits = weights.stored.get("lm_head.weight", embedding) * weights.stored["model.norm.weight"]
    assert words["heads"] and words["features"]
    for one in words["heads"]:
        written = one["circuit"] == "VO" and one["side"] == "right"
        table = logits if written else embedding
        table = table - table.mean(0)
        table = table / np.linalg.norm(table, axis=1, keepdims=True)
        name = f"layers.{one['layer']}.{one['circuit']}.vectors.{one['which']}.{one['side']}"
        u = stored[name][one["head"]][one["direction"]]
        u = u if written else u * weights.layers[one["layer"]]["norm"]
        cosines = table @ u / np.linalg.norm(u)
        assert one["along"][0]["token"] == f"word{cosines.argmax()}"
        assert one["along"][0]["cosine"] == pytest.approx(cosines.max(), abs=1e-5)
        assert one["against"][0]["token"] == f"word{cosines.argmin()}"
