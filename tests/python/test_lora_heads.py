"""`subspace lora heads` and `lora rope` on PEFT's adapters, beside dense products in NumPy."""

import json

import pytest

from oracle.adapters import adapt
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
