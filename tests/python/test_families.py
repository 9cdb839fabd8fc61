"""Every model family, functionally: attention rebuilt from our views alone equals transformers'.

A tiny random model of each family (oracle/cases.py) is written by transformers and read by
`subspace export`. Attention's output is then computed in plain float64 from the exported heads and
latents, and compared with what transformers' own attention module returned inside a full forward
pass (so that rotary embedding and masks are its own).
"""

from typing import NamedTuple

import pytest
import torch

from oracle.attention import (
    attention_output,
    folded_projections,
    fused_logits_error,
    norm,
    projections,
    relative,
)
from oracle.cases import CASES
from oracle.models import Seen, run_with_hook, save, tiny_model
from oracle.program import export

TOLERANCE = 1e-10


class Case(NamedTuple):
    folder: object
    layer: int
    model: torch.nn.Module
    seen: Seen
    views: dict


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, program):
    name = request.param
    model = tiny_model(name)
    folder = tmp_path_factory.mktemp(name.replace("-", "_"))
    save(model, name, folder)
    layer = CASES[name][2]
    seen = run_with_hook(model, layer)
    assert seen.written.dtype == torch.float64
    views = export(program, folder, layer, folder / "views.safetensors", "--offset", "3")
    return Case(folder, layer, model, seen, views)


def test_attention_output_equals_transformers(case):
    found = attention_output(case.views, case.seen.read)
    assert found.shape == case.seen.written.shape
    assert relative(found, case.seen.written) <= TOLERANCE


def test_input_norm_is_the_one_that_attention_reads(case):
    found = norm(case.views, "input", case.seen.before_norm)
    assert "input.kind" in case.views["meta"]
    assert relative(found, case.seen.read) <= TOLERANCE


def test_folded_norms_leave_only_a_scalar_for_each_token(case, tmp_path, program):
    """Folded matrices on vectors that met no gamma, beta or centring give the same q, k, v."""
    folded = export(program, case.folder, case.layer, tmp_path / "folded", "--fold-norms")
    assert not [name for name in folded["meta"] if name.endswith(".kind")]
    expected = projections(case.views, case.seen.read)
    found = folded_projections(case.views, folded, case.seen.before_norm)
    assert found.keys() == expected.keys()
    for name in expected:
        assert relative(found[name], expected[name]) <= TOLERANCE, name


def test_fused_maps_give_the_same_logits_and_messages(case):
    """x_m (Q_i R(m-n) K_g^T) x_n and x (V_g O_i), through the exported factors."""
    assert fused_logits_error(case.views, case.seen.read) <= TOLERANCE


def test_bias_of_the_keys_is_the_stored_one(case):
    """Compared directly: without rotation it adds the same to all logits of a query, so that the
    output cannot tell whether it is right."""
    endings = ("key.bias", "k_lin.bias", "k_proj.bias", "c_attn.bias")
    stored = [
        value
        for name, value in case.model.named_parameters()
        if name.endswith(endings) and f".{case.layer}." in name
    ]
    assert len(stored) == ("k_bias" in case.views)
    for bias in stored:
        if bias.numel() == 3 * case.views["k_bias"].numel():
            bias = bias.chunk(3)[1]
        assert torch.equal(case.views["k_bias"].flatten(), bias)


@pytest.fixture(scope="module", params=["deepseek_v3", "llama-gqa"])
def right(request, tmp_path_factory, program):
    name = request.param
    model = tiny_model(name)
    folder = tmp_path_factory.mktemp("right")
    model.save_pretrained(folder)
    layer = CASES[name][2]
    seen = run_with_hook(model, layer)
    return Case(folder, layer, model, seen, export(program, folder, layer, folder / "views"))


def test_the_oracle_notices_rotation_of_the_wrong_pairs(right):
    other = {"half": "interleaved", "interleaved": "half"}
    meta = dict(right.views["meta"])
    meta["rotary.layout"] = other[meta["rotary.layout"]]
    wrong = dict(right.views, meta=meta)
    assert relative(attention_output(wrong, right.seen.read), right.seen.written) > 1e-3


def test_the_oracle_notices_heads_in_the_wrong_order(right):
    """For MLA the published fault: kv_b_proj cut in two halves instead of head by head."""
    wrong = dict(right.views)
    if "kva" in wrong:
        rows = torch.cat([wrong["k"], wrong["v"]], 2).permute(0, 2, 1).flatten(0, 1)
        heads, _, width = wrong["k"].shape
        wrong["k"] = rows[: heads * width].unflatten(0, (heads, width)).transpose(1, 2)
        wrong["v"] = rows[heads * width :].unflatten(0, (heads, -1)).transpose(1, 2)
    else:
        wrong["k"] = wrong["k"].flip(0)
    assert relative(attention_output(wrong, right.seen.read), right.seen.written) > 1e-3
