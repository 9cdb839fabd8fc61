"""`subspace spectra` on heads whose groups write to output latents of their own (DeepSeek-V4),
against NumPy: such stacks are block diagonal."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from oracle.models import save, tiny_model
from test_spectra import above, beside, expect, sigma, spectra, turn

HEADS, GROUPS, HEAD, RANK, ROPE, LAYER = 6, 2, 22, 5, 8, 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v4")
    save(tiny_model("deepseek_v4"), "deepseek_v4", folder)
    return folder


def matrices(folder):
    tensors = load_file(folder / "model.safetensors")
    prefix = f"layers.{LAYER}.self_attn."
    w = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    q = w["q_b_proj.weight"].reshape(HEADS, HEAD, -1).transpose(0, 2, 1)
    kv = w["kv_proj.weight"].T
    o = np.zeros((HEADS, HEAD, RANK))
    together = HEADS // GROUPS
    for head in range(HEADS):
        group, inside = divmod(head, together)
        rows = w["o_a_proj.weight"][group * RANK : (group + 1) * RANK]
        o[head] = rows[:, inside * HEAD : (inside + 1) * HEAD].T
    return q, kv, o, w["q_a_proj.weight"].T, w["o_b_proj.weight"].T


def on_the_diagonal(heads):
    """Heads on top of one another, each group of them in columns of its own."""
    rows, columns = heads.shape[1:]
    out = np.zeros((HEADS * rows, GROUPS * columns))
    for i, head in enumerate(heads):
        group = i // (HEADS // GROUPS)
        out[i * rows : (i + 1) * rows, group * columns : (group + 1) * columns] = head
    return out


def scaled(heads, normalize):
    return heads / (sigma(heads)[:, :1, None] if normalize == "spectral" else 1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("normalize", ["none", "spectral"])
@pytest.mark.parametrize("space", ["latent", "model"])
def test_stacks_of_grouped_output_latents_equal_numpy(
    exact, normalize, space, model, program, tmp_path
):
    options = ["--layers", str(LAYER), "--offsets", "0,5", "--normalize", normalize]
    options += ["--space", space] + ["--exact"] * exact
    spectra(program, model, tmp_path, *options)
    q, kv, o, qa, ob = matrices(model)
    prefix = f"layers.{LAYER}."
    expected = {prefix + "QA.stack": sigma(qa), prefix + "OB.stack": sigma(ob)}

    def reads(name, x):
        expected[prefix + name + ".heads"] = sigma(x)
        expected[prefix + name + ".stack"] = sigma(beside(scaled(x, normalize)))

    reads("Q", q)
    reads("K", kv[None])
    reads("V", kv[None])
    expected[prefix + "O.heads"] = sigma(o)
    expected[prefix + "O.stack"] = sigma(on_the_diagonal(scaled(o, normalize)))
    stack_written = on_the_diagonal
    theta = 500.0 ** (-np.arange(0, ROPE, 2) / ROPE)
    if space == "model":
        q = qa @ q
        o = o @ ob.reshape(GROUPS, RANK, -1).repeat(HEADS // GROUPS, 0)
        stack_written = above
    vo, qk = kv @ o, q @ kv.T
    expected[prefix + "VO.heads"], expected[prefix + "QK.heads"] = sigma(vo), sigma(qk)
    vo, qk = scaled(vo, normalize), scaled(qk, normalize)
    expected[prefix + "VO.stack"] = sigma(stack_written(vo))
    expected[prefix + "OV.stack"] = sigma(beside(vo))
    expected[prefix + "QK.stack"], expected[prefix + "KQ.stack"] = sigma(above(qk)), sigma(beside(qk))
    for delta in (0, 5):
        r = np.eye(HEAD)
        r[-ROPE:, -ROPE:] = turn(delta * theta, "interleaved")
        expected[prefix + f"QK@{delta}.heads"] = sigma(q @ r @ kv.T)
    expect(load_file(tmp_path / "spectra.safetensors"), expected)


def test_chance_of_a_block_diagonal_stack_is_that_of_its_blocks(model, program, tmp_path):
    spectra(program, model, tmp_path, "--layers", str(LAYER))
    summary = json.loads((tmp_path / "summary.json").read_text())
    maps = summary["layers"][0]["maps"]
    stack = maps["O"]["stack"]
    assert stack["shape"] == [HEADS * HEAD, GROUPS * RANK] and stack["blocks"] == GROUPS
    # Of a tall random matrix nearly every direction counts; of the zeros around the blocks none.
    assert stack["random"]["rank_0.99"] == stack["rank_0.99"] == GROUPS * RANK
    assert maps["VO"]["stack"]["blocks"] == GROUPS
    assert "blocks" not in maps["OV"]["stack"] and "blocks" not in maps["QK"]["stack"]
