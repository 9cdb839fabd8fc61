"""The proof of test_families.py must fail for every plausible mistake in layout: each is made here
on purpose, on views that are right, and the rebuilt output must no longer be transformers'."""

import pytest
import torch

from oracle import attention
from oracle.attention import attention_output, relative
from oracle.cases import CASES
from oracle.models import run_with_hook, save, tiny_model
from oracle.program import export

NOTICED = 1e-3


def said(**changes):
    """The views with other facts."""
    return lambda views: dict(views, meta=dict(views["meta"], **changes))


def wrong_pairs(views):
    other = {"half": "interleaved", "interleaved": "half"}
    return said(**{"rotary.layout": other[views["meta"]["rotary.layout"]]})(views)


def kv_b_in_two_halves(views):
    rows = torch.cat([views["k"], views["v"]], 2).permute(0, 2, 1).flatten(0, 1)
    heads, _, width = views["k"].shape
    return dict(
        views,
        k=rows[: heads * width].unflatten(0, (heads, width)).transpose(1, 2),
        v=rows[heads * width :].unflatten(0, (heads, -1)).transpose(1, 2),
    )


def rope_before_the_rest(views):
    """The rotary part of q_b_proj's rows first, as its width has it last."""
    both = torch.cat([views["q"], views["q_rope"]], 2)
    width = views["q_rope"].shape[2]
    return dict(views, q_rope=both[..., :width], q=both[..., width:])


def keys_by_turns(views):
    """Query head i with group i mod G instead of i / (H/G)."""
    groups, heads = views["k"].shape[0], views["q"].shape[0]
    of = torch.arange(heads) % groups
    return dict(views, k=views["k"][of], v=views["v"][of])


def by_turns(rows, groups):
    """[G r, ..] dealt to the groups by turns: [G, r, ..]."""
    return rows.unflatten(0, (-1, groups)).transpose(0, 1)


def o_a_by_turns(views):
    groups = views["ob"].shape[0]
    heads, width, rank = views["o"].shape
    stored = views["o"].view(groups, heads // groups, width, rank).permute(0, 3, 1, 2).flatten(0, 1)
    return dict(views, o=by_turns(stored, groups).permute(0, 2, 3, 1).reshape(heads, width, rank))


def o_b_by_turns(views):
    return dict(views, ob=by_turns(views["ob"].flatten(0, 1), views["ob"].shape[0]))


def heads_of_groups_by_turns(views):
    """Head i in group i mod G."""
    return dict(views, o=by_turns(views["o"], views["ob"].shape[0]).flatten(0, 1))


def without(*names):
    def change(views):
        kept = {name: value for name, value in views.items() if name not in names}
        kept["meta"] = {n: v for n, v in views["meta"].items() if n not in names}
        return kept

    return change


MLA = [wrong_pairs, kv_b_in_two_halves, rope_before_the_rest]
GROUPED = [wrong_pairs, keys_by_turns]
MISTAKES = {
    "deepseek_v32": MLA,
    "glm_moe_dsa": MLA,
    "glm4_moe_lite": MLA,
    "minicpm3": MLA,
    "minicpm3-longrope": [said(**{"rotary.scale": "1"})],
    "mistral4": MLA,
    "longcat_flash-second": [*MLA, said(q_latent_scale="1"), said(kv_latent_scale="1")],
    "kimi_k25": MLA,
    "ministral3": GROUPED,
    "mistral3": GROUPED,
    "gemma3": [*GROUPED, without("q_head.kind")],
    "deepseek_v4": [
        wrong_pairs,
        said(**{"rotary.begin": "0"}),
        said(window="0"),
        said(values_share_key="0"),
        without("sinks"),
        without("q_head.kind"),
        o_a_by_turns,
        o_b_by_turns,
        heads_of_groups_by_turns,
    ],
}


@pytest.fixture(scope="module", params=MISTAKES)
def right(request, tmp_path_factory, program):
    name = request.param
    model = tiny_model(name)
    folder = tmp_path_factory.mktemp("right")
    save(model, name, folder)
    layer = CASES[name][2]
    seen = run_with_hook(model, layer)
    views = export(program, folder, layer, folder / "views")
    assert relative(attention_output(views, seen.read), seen.written) <= 1e-10
    return name, views, seen


def test_every_mistake_is_noticed(right):
    name, views, seen = right
    for number, mistake in enumerate(MISTAKES[name]):
        error = relative(attention_output(mistake(views), seen.read), seen.written)
        assert error > NOTICED, f"mistake {number} of {name}: {error}"


def test_an_output_that_is_not_turned_back_is_noticed(right, monkeypatch):
    name, views, seen = right
    real = attention.rotated
    monkeypatch.setattr(
        attention, "rotated", lambda views, x, back=False: x if back else real(views, x)
    )
    error = relative(attention_output(views, seen.read), seen.written)
    assert (error > NOTICED) == (name == "deepseek_v4")
