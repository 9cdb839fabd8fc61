"""Our models against transformers': with the same weights, equal in float64 to 1e-10.

transformers writes a tiny random model, `subspace forward` reads it and answers for random tokens
or images; transformers' own answer, widened to float64 where it computes in float32, is the other
side. Token rows have no padding here; packed rows are compared document by document.
"""

import pytest
import torch

from oracle.attention import relative
from oracle.networks import NETWORKS, answer, forward, inputs, network

TOLERANCE = 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_transformers(name, tmp_path, program):
    model = network(name)
    model.save_pretrained(tmp_path)
    given = inputs(name)
    found = forward(program, tmp_path, given, tmp_path)["logits"]
    expected = answer(model, given)
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert relative(found, expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama-gqa", "deepseek-dense", "bert"])
def test_documents_packed_into_a_row_do_not_see_each_other(name, tmp_path, program):
    """Each document of a packed row gets the logits it gets alone, at positions from zero."""
    model = network(name)
    model.save_pretrained(tmp_path)
    tokens = inputs(name)["input_ids"][:1]
    lengths = [5, 1, 7]
    packed = {
        "input_ids": tokens,
        "segment_ids": torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    found = forward(program, tmp_path, packed, tmp_path)["logits"]
    begin = 0
    for length in lengths:
        part = slice(begin, begin + length)
        expected = answer(model, {"input_ids": tokens[:, part]})
        assert relative(found[:, part], expected) <= TOLERANCE
        begin += length


def test_token_types_are_added(tmp_path, program):
    model = network("bert")
    model.save_pretrained(tmp_path)
    given = inputs("bert")
    given["token_type_ids"] = (torch.arange(given["input_ids"].shape[1]) > 4).long().expand(3, -1)
    found = forward(program, tmp_path, given, tmp_path)["logits"]
    assert relative(found, answer(model, given)) <= TOLERANCE
