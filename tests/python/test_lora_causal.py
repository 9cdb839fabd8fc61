"""The gated forward pass against transformers with peft's adapter (merged, or with parts of it
zeroed), and against a forward pass in NumPy that gates every term and connection by its definition."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from oracle.lora_models import Weights, logits, make, merged
from oracle.program import run

TOKENS = np.random.default_rng(5).integers(0, 41, (2, 9))
TERMS = ("q", "k", "qk", "v", "o", "vo")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make(tmp_path_factory.mktemp("causal"))


def gated(program, models, tmp_path, gates=None):
    save_file({"input_ids": TOKENS}, tmp_path / "in.safetensors")
    more = []
    if gates is not None:
        (tmp_path / "gates.json").write_text(json.dumps(gates))
        more = ["--gates", tmp_path / "gates.json"]
    result = run(program, "lora", "forward", "--base", models[0], "--adapter", models[1], "--input",
                 tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors", *more)
    assert result.returncode == 0, result.stderr
    return load_file(tmp_path / "out.safetensors")["logits"]


def check(found, wanted):
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error <= 1e-11, error


def test_all_gates_one_is_pefts_merged_model(program, models, tmp_path):
    check(gated(program, models, tmp_path), logits(merged(*models), TOKENS))


def test_gates_of_single_matrices_and_heads_are_pefts_with_the_rest_zeroed(program, models, tmp_path):
    def only_q_of_head_2(name, tensor):
        keep = "layers.1.self_attn.q_proj" in name
        if "lora_B" not in name:
            return
        kept = tensor[12:18].clone() if keep else None
        tensor.zero_()
        if keep:
            tensor[12:18] = kept

    gates = {"default": 0, "gates": [{"layer": 1, "term": "q", "head": 2, "gate": 1}]}
    check(gated(program, models, tmp_path, gates), logits(merged(*models, only_q_of_head_2), TOKENS))

    def without_keys(name, tensor):
        if "k_proj.lora_B" in name:
            tensor.zero_()

    off = [{"layer": layer, "term": term, "head": head, "gate": 0}
           for layer in range(3) for term in ("k", "qk") for head in range(4)]
    check(gated(program, models, tmp_path, {"gates": off}), logits(merged(*models, without_keys), TOKENS))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_forward(models, gates, edges):
    """One row after the other, one head after the other. gates[layer, term, head]; edges of
    (writer, writer_head, reader, reader_head, mode, route, gate)."""
    w = Weights(*models)
    eps, heads = w.config["rms_norm_eps"], w.heads
    out = []
    for row in TOKENS:
        x = w.stored["model.embed_tokens.weight"][row]
        written = {}
        for index, layer in enumerate(w.layers):
            scale = layer["norm"] / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)

            def reads(part, head, mode, index=index, layer=layer, scale=scale, x=x):
                seen = {"b": x * scale, "n": x * scale}
                for writer, wh, reader, rh, m, route, gate in edges:
                    if (reader, rh, m) != (index, head, mode):
                        continue
                    what = written[writer, wh][0 if route == "bn" else 1]
                    side = "b" if route == "nb" else "n"
                    seen[side] = seen[side] - (1 - gate) * what * scale
                h = head if part == "q" else w.group(head)
                return seen["b"] @ layer[part][0][h], seen["n"] @ layer[part][1][h]

            change = 0
            width = layer["q"][0].shape[2]
            turns = [w.rotation(t) for t in range(len(row))]
            turn = lambda y, turns=turns: np.stack([y[t] @ turns[t] for t in range(len(y))])
            for head in range(heads):
                g = {term: gates[index, i, head] for i, term in enumerate(TERMS)}
                qb, qn = (turn(y) for y in reads("q", head, "Q"))
                kb, kn = (turn(y) for y in reads("k", head, "K"))
                vb, vn = reads("v", head, "V")
                scores = (qb @ kb.T + g["q"] * qn @ kb.T + g["k"] * qb @ kn.T
                          + g["qk"] * qn @ kn.T) / np.sqrt(width)
                scores[np.triu_indices(len(row), 1)] = -np.inf
                p = softmax(scores)
                ob, on = layer["o"][0][head], layer["o"][1][head]
                written[index, head] = (p @ (vb + g["v"] * vn) @ ob,
                                        p @ (g["o"] * vb + g["vo"] * vn) @ on)
                change = change + written[index, head][0] + written[index, head][1]
            x = x + change
            block = f"model.layers.{index}."
            m = x * w.stored[block + "post_attention_layernorm.weight"] / np.sqrt(
                np.mean(x**2, -1, keepdims=True) + eps)
            gate = m @ w.stored[block + "mlp.gate_proj.weight"].T
            up = m @ w.stored[block + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w.stored[block + "mlp.down_proj.weight"].T
        x = x * w.stored["model.norm.weight"] / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)
        out.append(x @ w.stored["lm_head.weight"].T)
    return np.stack(out)


def test_any_gates_and_connections_are_their_definitions(program, models, tmp_path):
    random = np.random.default_rng(9)
    gates = random.uniform(0, 1.5, (3, 6, 4))
    listed = [{"layer": a, "term": TERMS[b], "head": c, "gate": gates[a, b, c]}
              for a in range(3) for b in range(6) for c in range(4)]
    edges = [(0, 1, 1, 2, "Q", "bn", 0.0), (0, 3, 2, 0, "K", "nb", 0.25), (1, 0, 2, 0, "K", "nn", 0.0),
             (1, 2, 2, 3, "V", "bn", 0.0), (0, 0, 2, 3, "V", "nb", 0.0), (0, 2, 1, 1, "K", "bn", 2.0)]
    names = ("writer", "writer_head", "reader", "reader_head", "mode", "route", "gate")
    given = {"gates": listed, "edges": [dict(zip(names, edge)) for edge in edges]}
    check(gated(program, models, tmp_path, given), numpy_forward(models, gates, edges))
    # The oracle itself: without gates it is transformers' model.
    check(numpy_forward(models, np.ones((3, 6, 4)), []), logits(merged(*models), TOKENS))


def test_causal_writes_effects_that_sum_to_the_drop(program, models, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "task.json").write_text(json.dumps({"kind": "induction", "held_out": 3}))
    out = tmp_path / "out"
    common = ["--base", models[0], "--adapter", models[1], "--out", out]
    result = run(program, "--quiet", "lora", "compose", *common, "--top", "5")
    assert result.returncode == 0, result.stderr
    result = run(program, "--quiet", "lora", "causal", *common, "--data", data, "--edges",
                 out / "compose.json", "--batch-size", "8", "--orders", "2")
    assert result.returncode == 0, result.stderr
    found = json.loads((out / "causal.json").read_text())
    drop = found["loss"]["drop"]["mean"]
    for kind in ("groups", "heads"):
        total = sum(part["shapley"]["mean"] for part in found[kind])
        assert total == pytest.approx(drop, abs=1e-9)
    assert len(found["edges"]) == 5 and set(found["edges"][0]["routes"]) == {"bn", "nb", "nn"}
    assert found["approx"] == ["shapley_sampled", "edge_norm"]
    assert found["check"]["merged"] <= 1e-12 and found["check"]["base"] <= 1e-12
    with open(out / "causal.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(found[k]) for k in ("groups", "heads", "terms", "term_heads", "edges"))
    assert float(rows[0]["loo"]) == found["groups"][0]["loo"]["mean"]


@pytest.mark.parametrize("gates, words", [
    ({"gates": [{"layer": 0, "term": "qv", "head": 0, "gate": 1}]}, "term 'qv'"),
    ({"gates": [{"layer": 3, "term": "q", "head": 0, "gate": 1}]}, "layer"),
    ({"edges": [{"writer": 1, "writer_head": 0, "reader": 1, "reader_head": 0, "mode": "Q",
                 "route": "bn", "gate": 0}]}, "writer"),
])
def test_wrong_gates_are_named(program, models, tmp_path, gates, words):
    save_file({"input_ids": TOKENS}, tmp_path / "in.safetensors")
    (tmp_path / "gates.json").write_text(json.dumps(gates))
    result = run(program, "lora", "forward", "--base", models[0], "--adapter", models[1], "--input",
                 tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors", "--gates",
                 tmp_path / "gates.json")
    assert result.returncode == 1 and words in result.stderr
