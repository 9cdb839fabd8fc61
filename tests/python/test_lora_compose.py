"""`subspace lora compose` against dense products in NumPy, float64, from peft's own files; the scores
against TransformerLens' formula and Elhage et al.'s."""

import csv
import json

import numpy as np
import pytest

from oracle.lora_models import ALL, Weights, make
from oracle.program import run

OFFSETS = (0, 1, 2, 3, 4)
norm = np.linalg.norm


class Dense:
    """M1 and N2 of every head, d x d, norms folded, base (0) and adapted (1)."""

    def __init__(self, base, adapter):
        self.weights = Weights(base, adapter)
        self.layers = []
        for layer in self.weights.layers:
            gamma = layer["norm"][:, None]
            fold = {part: [gamma * (layer[part][0] + i * layer[part][1]) for i in (0, 1)]
                    for part in "qkv"}
            fold["o"] = [layer["o"][0] + i * layer["o"][1] for i in (0, 1)]
            self.layers.append(fold)

    def message(self, layer, head, which):
        v, o = self.layers[layer]["v"][which], self.layers[layer]["o"][which]
        return v[self.weights.group(head)] @ o[head]

    def pattern(self, layer, head, which, delta):
        q, k = self.layers[layer]["q"][which], self.layers[layer]["k"][which]
        return q[head] @ self.weights.rotation(delta) @ k[self.weights.group(head)].T

    def reader(self, layer, head, mode, which, delta):
        if mode == "V":
            return self.message(layer, head, which)
        found = self.pattern(layer, head, which, delta)
        return found if mode == "Q" else found.T


def expected(dense, writer, reader, mode):
    """All of a pair's numbers by their definitions; squares and products are means over offsets."""
    m = [dense.message(*writer, i) for i in (0, 1)]
    offsets = (0,) if mode == "V" else OFFSETS
    mean = lambda f: np.mean([f(delta) for delta in offsets])
    n = {delta: [dense.reader(*reader, mode, i, delta) for i in (0, 1)] for delta in offsets}
    rms = lambda f: np.sqrt(mean(lambda delta: norm(f(*n[delta])) ** 2))
    n0, n1 = rms(lambda a, b: a), rms(lambda a, b: b)
    before, after = rms(lambda a, b: m[0] @ a), rms(lambda a, b: m[1] @ b)
    change = rms(lambda a, b: m[1] @ b - m[0] @ a)
    parts = {
        "bn": lambda a, b: m[0] @ (b - a),
        "nb": lambda a, b: (m[1] - m[0]) @ a,
        "nn": lambda a, b: (m[1] - m[0]) @ (b - a),
    }
    dm, dn = norm(m[1] - m[0]), rms(lambda a, b: b - a)
    factors = {"bn": norm(m[0]) * dn, "nb": dm * n0, "nn": dm * dn}
    dot = lambda f, g: mean(lambda delta: np.sum(f(*n[delta]) * g(*n[delta])))
    whole = lambda a, b: m[1] @ b - m[0] @ a
    d = len(m[0])
    return {
        "S": before / (norm(m[0]) * n0),
        "S1": after / (norm(m[1]) * n1),
        "S1_base": after / (norm(m[0]) * n0),
        "rho": change / (norm(m[0]) * n0),
        "cos": dot(lambda a, b: m[0] @ a, lambda a, b: m[1] @ b) / (before * after),
        "share": {a: dot(f, whole) / change**2 for a, f in parts.items()},
        "lift": {a: d * (rms(f) / factors[a]) ** 2 if factors[a] > 0 else None
                 for a, f in parts.items()},
    }


def close(found, wanted, where):
    if wanted is None:
        assert found is None, where
        return
    error = abs(found - wanted)
    assert error <= 1e-10 * max(1, abs(wanted)), f"{where}: {found} vs {wanted}"


@pytest.fixture(scope="module", params=[("all", ALL), ("qv", ("q_proj", "v_proj"))],
                ids=lambda p: p[0])
def composed(request, program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose")
    base, adapter = make(folder, targets=request.param[1])
    out = folder / "out"
    result = run(program, "--quiet", "lora", "compose", "--base", base, "--adapter", adapter, "--out", out,
                 "--offsets", "0:5", "--between", "0-1", "--between", "0-2", "--top", "30")
    assert result.returncode == 0, result.stderr
    return Dense(base, adapter), json.loads((out / "compose.json").read_text()), out


def test_pairs_are_those_of_dense_products(composed):
    dense, result, _ = composed
    assert result["offset_mode"] == "rms" and result["offsets"] == [0, 5]
    assert len(result["pairs"]) >= 2 * 16 * 2
    for pair in result["pairs"]:
        wanted = expected(dense, pair["w"], pair["r"], pair["mode"])
        where = f"{pair['w']} -> {pair['r']} {pair['mode']}"
        for name, value in wanted.items():
            if isinstance(value, dict):
                for route in value:
                    close(pair[name][route], value[route], f"{where} {name} {route}")
            else:
                close(pair[name], value, f"{where} {name}")
        assert abs(sum(pair["share"].values()) - 1) <= 1e-10
        assert pair["dS"] == pytest.approx(pair["S1"] - pair["S"], abs=1e-15)
    rho = [pair["rho"] for pair in result["pairs"]]
    assert rho == sorted(rho, reverse=True)


def test_scores_are_transformerlens_and_elhage(composed):
    dense, result, _ = composed
    for pair in [p for p in result["pairs"] if p["mode"] == "V"][:20]:
        left, right = (dense.message(*pair[end], 0) for end in ("w", "r"))
        # TransformerLens 4cd36aae, FactoredMatrix.collapse_l and collapse_r: SVD, then S Vh of the
        # left factor and U S of the right one.
        _, s_left, vh = np.linalg.svd(left)
        u, s_right, _ = np.linalg.svd(right)
        collapsed_left, collapsed_right = s_left[:, None] * vh, u * s_right
        score = norm(collapsed_left @ collapsed_right) / norm(collapsed_left) / norm(collapsed_right)
        close(pair["S"], score, "TransformerLens")
        # Column vectors: W_OV = (V O)^T, composed from the right.
        w1, w2 = left.T, right.T
        close(pair["S"], norm(w2 @ w1) / norm(w1) / norm(w2), "Elhage V")


def test_bands_hold_what_random_directions_give(composed):
    """95 % of the scores of two heads turned against each other at random, by Monte Carlo."""
    dense, result, _ = composed
    random = np.random.default_rng(5)
    for pair in [p for p in result["pairs"] if p["mode"] == "V"][:4]:
        for which, name in enumerate(("S_band", "S1_band")):
            left, right = (dense.message(*pair[end], which) for end in ("w", "r"))
            u, s, _ = np.linalg.svd(right)
            scores = []
            for _ in range(400):
                q, r = np.linalg.qr(random.normal(size=left.shape))
                turned = left @ (q * np.sign(np.diag(r)))
                scores.append(norm(turned * s) / norm(left) / norm(s))
            low, high = pair[name]
            inside = np.mean([low < score < high for score in scores])
            assert 0.91 <= inside <= 0.985, f"{pair['w']} -> {pair['r']} {name}: {inside}"


def test_first_pairs_have_their_chances_drawn(composed):
    """p_drawn against the same heads turned at random in NumPy; every chance against its law."""
    dense, result, _ = composed
    drawn = [pair for pair in result["pairs"] if "p_drawn" in pair]
    assert drawn == result["pairs"][:20] and result["drawn"]["pairs"] == 20
    draws, random, compared = result["drawn"]["draws"], np.random.default_rng(6), 0
    for pair in drawn:
        chances = [(pair["p_S1"], pair["p_S1_drawn"])]
        chances += [(pair["p"][route], pair["p_drawn"][route]) for route in ("bn", "nb", "nn")
                    if pair["lift"][route] is not None]
        for law, found in chances:
            # Five standard deviations of the count, and the law's own error.
            bound = 5 * np.sqrt(max(law * (1 - law), 1 / draws) / draws) + 0.05 * law + 0.02
            assert abs(found - law) <= bound, f"{pair['w']} -> {pair['r']}: {found}, law {law}"
    for pair in [p for p in drawn if p["mode"] == "V"][:3]:
        left, right = (dense.message(*pair[end], 1) for end in ("w", "r"))
        _, s, _ = np.linalg.svd(right)
        above = 0
        for _ in range(draws):
            q, r = np.linalg.qr(random.normal(size=left.shape))
            above += norm(left @ (q * np.sign(np.diag(r))) * s) / norm(left) / norm(s) >= pair["S1"]
        p = above / draws
        bound = 5 * np.sqrt(2 * max(p * (1 - p), 1 / draws) / draws)
        assert abs(pair["p_S1_drawn"] - p) <= bound, f"{pair['p_S1_drawn']} vs {p}"
        compared += 1
    assert compared == 3


def test_elhage_q_and_k_at_offset_zero(program, tmp_path):
    base, adapter = make(tmp_path)
    out = tmp_path / "out"
    result = run(program, "--quiet", "lora", "compose", "--base", base, "--adapter", adapter, "--out", out,
                 "--offsets", "0", "--between", "0-2")
    assert result.returncode == 0, result.stderr
    dense = Dense(base, adapter)
    found = json.loads((out / "compose.json").read_text())
    assert found["offset_mode"] == "one"
    seen = set()
    for pair in found["pairs"]:
        if pair["mode"] == "V":
            continue
        w_ov = dense.message(*pair["w"], 0).T
        w_qk = dense.pattern(*pair["r"], 0, 0)
        product = w_qk.T @ w_ov if pair["mode"] == "Q" else w_qk @ w_ov
        close(pair["S"], norm(product) / norm(w_ov) / norm(w_qk), pair["mode"])
        seen.add(pair["mode"])
    assert seen == {"Q", "K"}


def test_screens_are_the_junction_alone(composed):
    dense, result, _ = composed
    heads = range(dense.weights.heads)
    for screen in result["screens"]:
        mode, w, r = screen["mode"], screen["w"], screen["r"]
        near = {"Q": "q", "K": "k", "V": "v"}[mode]
        offsets = (0,) if mode == "V" else OFFSETS
        table = np.zeros((len(heads), len(heads)))
        for i in heads:
            o = [dense.layers[w]["o"][which][i] for which in (0, 1)]
            v = dense.layers[w]["v"][0][dense.weights.group(i)]
            for j in heads:
                g = dense.weights.group(j)
                n = [dense.layers[r][near][which][j if mode == "Q" else g] for which in (0, 1)]
                far = []
                for delta in offsets:
                    turn = dense.weights.rotation(delta)
                    far.append({"Q": lambda: turn @ dense.layers[r]["k"][0][g].T,
                                "K": lambda: turn.T @ dense.layers[r]["q"][0][j].T,
                                "V": lambda: dense.layers[r]["o"][0][j]}[mode]())
                change = np.mean([norm(v @ (o[1] @ n[1] - o[0] @ n[0]) @ f) ** 2 for f in far])
                outer = norm(v @ o[0]) ** 2 * np.mean([norm(n[0] @ f) ** 2 for f in far])
                table[i, j] = np.sqrt(change / outer)
        assert np.abs(np.array(screen["rho_heads"]) - table).max() <= 1e-9
        assert screen["rho_max"] == pytest.approx(table.max(), abs=1e-9)


def test_the_tables_say_the_same(composed):
    _, result, out = composed
    with open(out / "compose.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["pairs"])
    for row, pair in zip(rows, result["pairs"]):
        assert [int(row["writer_layer"]), int(row["writer_head"])] == pair["w"]
        assert float(row["rho"]) == pair["rho"]
        assert float(row["writer_qk"]) == pair["writer_qk"]
        assert row["lift_nn"] == ("" if pair["lift"]["nn"] is None else repr(pair["lift"]["nn"]))
    with open(out / "compose_screens.csv") as file:
        assert len(list(csv.DictReader(file))) == len(result["screens"])


def test_gamma_tails_are_scipys(composed):
    """p of a stacked screen from the formulas, with scipy's gamma law."""
    from scipy.stats import gamma

    dense, result, _ = composed
    d = len(dense.weights.layers[0]["norm"])
    checked = 0
    for screen in result["screens"]:
        if screen["mode"] != "V":
            continue
        heads = range(dense.weights.heads)
        writers = [dense.message(screen["w"], i, 0) for i in heads]
        readers = []
        for j in heads:
            v = dense.layers[screen["r"]]["v"]
            g = dense.weights.group(j)
            readers.append((v[1][g] - v[0][g]) @ dense.layers[screen["r"]]["o"][0][j])
        p_w = sum(m.T @ m for m in writers)
        p_r = sum(n @ n.T for n in readers)
        spread = lambda p: np.sum(p * p) / np.trace(p) ** 2 - 1 / d
        mean, variance = 1 / d, 2 / ((d - 1) * (d + 2)) * spread(p_w) * spread(p_r)
        score = np.trace(p_w @ p_r) / np.trace(p_w) / np.trace(p_r)
        tail = gamma.sf(score, mean**2 / variance, scale=variance / mean)
        assert screen["lift"]["bn"] == pytest.approx(score * d, rel=1e-9)
        assert screen["p"]["bn"] == pytest.approx(tail, rel=1e-8, abs=1e-300)
        checked += 1
    assert checked == 3


@pytest.mark.parametrize("arguments, words", [
    (["--between", "2-1"], "the earlier one first"),
    (["--between", "x"], "expected two layers"),
    (["--layers", "0,9"], "there is no layer 9"),
    (["--layers", "1"], "heads of two layers"),
])
def test_wrong_layers_are_named(program, tmp_path, arguments, words):
    base, adapter = make(tmp_path)
    result = run(program, "lora", "compose", "--base", base, "--adapter", adapter, "--out", tmp_path / "out",
                 *arguments)
    assert result.returncode in (1, 2) and words in result.stderr
    assert not (tmp_path / "out" / "compose.json").exists()
