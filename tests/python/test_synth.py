"""`subspace synth`: the checkpoints are what they say, read by other programs and by our own."""

import json
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

PRESETS = {  # hidden size, heads, layers, elements of one layer's attention matrices
    "bert-base": (768, 12, 12, 4 * 768**2),
    "gpt2": (768, 12, 12, 4 * 768**2),
    "llama-3-8b": (4096, 32, 32, 2 * 4096**2 + 2 * 1024 * 4096),
    "qwen3-8b": (4096, 32, 36, 2 * 4096**2 + 2 * 1024 * 4096),
    "deepseek-v2-lite": (2048, 16, 27, 2048 * (16 * 192 + 576 + 16 * 128) + 512 * 16 * 256),
    "deepseek-v3": (7168, 128, 61, 7168 * (1536 + 576 + 16384) + 1536 * 24576 + 512 * 32768),
    "kimi-k2": (7168, 64, 61, 7168 * (1536 + 576 + 8192) + 1536 * 12288 + 512 * 16384),
}
LLAMA = dict(model_type="llama", hidden_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=12, intermediate_size=8, vocab_size=8,
             rms_norm_eps=1e-6)
DEEPSEEK = dict(model_type="deepseek_v3", hidden_size=200, num_hidden_layers=2,
                num_attention_heads=3, num_key_value_heads=3, q_lora_rank=140, kv_lora_rank=60,
                qk_nope_head_dim=48, qk_rope_head_dim=8, v_head_dim=50, rms_norm_eps=1e-6)


def synth(program, *arguments, threads=2, status=0):
    done = subprocess.run(
        [program, "--json", "--threads", str(threads), "synth", *map(str, arguments)],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def config(tmp_path):
    def write(fields, **more):
        path = tmp_path / "wanted.json"
        path.write_text(json.dumps({**fields, **more}))
        return path
    return write


def tensors(folder):
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    found = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        found |= load_file(folder / name)
    return found


def stored_matrices(folder):
    """Matrices as NumPy reads them: FP8 times its block scales, in float64."""
    loaded = tensors(folder)
    out = {}
    for name, value in loaded.items():
        if value.dim() != 2 or name.endswith("_scale_inv"):
            continue
        matrix = value.to(torch.float64).numpy()
        if value.dtype == torch.float8_e4m3fn:
            scale = loaded[name + "_scale_inv"].to(torch.float64).numpy()
            rows, cols = matrix.shape
            matrix = matrix * np.kron(scale, np.ones((128, 128)))[:rows, :cols]
        out[name] = matrix
    return out


@pytest.mark.parametrize("preset", [p for p in PRESETS if PRESETS[p][3] < 2e7])
def test_presets_are_at_their_real_shapes(program, tmp_path, preset):
    hidden, heads, layers, values = PRESETS[preset]
    made = synth(program, preset, "--out", tmp_path / "m", "--layers", 1)
    seen = json.loads(subprocess.run([program, "--json", "inspect", tmp_path / "m"],
                                     capture_output=True, text=True, check=True).stdout)
    assert (seen["hidden_size"], seen["heads"], seen["layers"]) == (hidden, heads, 1)
    matrices = [t for t in seen["tensors"] if len(t["shape"]) == 2]
    assert sum(np.prod(t["shape"]) for t in matrices) == values
    assert made["values"] == sum(np.prod(t["shape"]) for t in seen["tensors"])
    # Nothing but what attention reads.
    assert set(tensors(tmp_path / "m")) == {t["name"] for t in seen["tensors"]}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_configurations(program, pytestconfig, preset):
    hidden, heads, layers, values = PRESETS[preset]
    fields = json.loads((pytestconfig.rootpath / f"configs/models/{preset}.json").read_text())
    from transformers import AutoConfig
    kind = "deepseek_v3" if preset == "kimi-k2" else fields["model_type"]
    read = AutoConfig.for_model(kind, **{k: v for k, v in fields.items() if k != "model_type"})
    assert (read.hidden_size, read.num_attention_heads, read.num_hidden_layers) == (
        hidden, heads, layers)
    if kind.startswith("deepseek"):
        queries = (fields["q_lora_rank"] or 0)
        per_head = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
        total = hidden * (queries + fields["kv_lora_rank"] + fields["qk_rope_head_dim"]
                          + heads * fields["v_head_dim"])
        total += (queries or hidden) * heads * per_head
        total += fields["kv_lora_rank"] * heads * (fields["qk_nope_head_dim"] + fields["v_head_dim"])
        assert total == values


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK], ids=["llama", "deepseek"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "fp8"])
def test_prescribed_values_are_there_up_to_the_stated_rounding(program, tmp_path, config, fields,
                                                               dtype):
    folder = tmp_path / "m"
    synth(program, config(fields), "--out", folder, "--dtype", dtype, "--spectrum", "power:1")
    expected = json.loads((folder / "expected.json").read_text())["tensors"]
    stored = stored_matrices(folder)
    assert expected.keys() == stored.keys()
    for name, matrix in stored.items():
        want = np.array(expected[name]["singular_values"])
        found = np.linalg.svd(matrix, compute_uv=False)
        assert found.shape == want.shape
        np.testing.assert_allclose(want, want[0] / np.arange(1, len(want) + 1), rtol=1e-12)
        assert np.linalg.norm(want) == pytest.approx(0.02 * np.sqrt(matrix.size), rel=1e-12)
        bound = expected[name]["rounding_error"] + 1e-13 * want[0]
        assert np.abs(found - want).max() <= bound, name
        # The bound is worth something, and rounding did happen.
        unit = {"f32": 2**-24, "bf16": 2**-8, "fp8": 2**-4}[dtype]
        assert 0.01 * unit < expected[name]["rounding_error"] / np.linalg.norm(want) < 1.1 * unit


def test_our_own_spectra_agree_with_what_is_expected(program, tmp_path, config):
    import subspace

    for fields in (LLAMA, DEEPSEEK):
        folder = tmp_path / fields["model_type"]
        synth(program, config(fields), "--out", folder, "--dtype", "fp8", "--spectrum", "power:0.5")
        out = tmp_path / ("run-" + fields["model_type"])
        subprocess.run([program, "spectra", folder, "--out", out], check=True, capture_output=True)
        run = subspace.load(out)
        expected = json.loads((folder / "expected.json").read_text())["tensors"]
        named = [e for e in expected.values() if "is" in e]
        assert len(named) == (8 if fields is LLAMA else 4)
        for entry in named:
            found, want = run.spectra[entry["is"]], np.array(entry["singular_values"])
            assert np.abs(found - want).max() <= entry["rounding_error"] + 1e-7 * want[0]


def test_rank_is_exact_and_lists_are_followed(program, tmp_path, config):
    synth(program, config(LLAMA), "--out", tmp_path / "r", "--dtype", "f32", "--spectrum", "rank:5")
    for matrix in stored_matrices(tmp_path / "r").values():
        found = np.linalg.svd(matrix, compute_uv=False)
        assert found[4] == pytest.approx(found[0], rel=1e-5) and found[5] < 1e-5 * found[0]
    lists = {"q_proj": [3, 2, 1], "layers.1.self_attn.q_proj": [5, 0, 4], "o_proj": [0]}
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    synth(program, config(LLAMA), "--out", tmp_path / "l", "--dtype", "f32", "--spectrum",
          tmp_path / "lists.json")
    stored = stored_matrices(tmp_path / "l")
    values = {n.removeprefix("model.layers."): np.linalg.svd(m, compute_uv=False)
              for n, m in stored.items()}
    np.testing.assert_allclose(values["0.self_attn.q_proj.weight"][:4], [3, 2, 1, 0], atol=1e-5)
    np.testing.assert_allclose(values["1.self_attn.q_proj.weight"][:3], [5, 4, 0], atol=1e-5)
    assert not stored["model.layers.0.self_attn.o_proj.weight"].any()
    assert values["0.self_attn.k_proj.weight"][10] > 0.01  # named by none: gaussian


@pytest.mark.parametrize("content, says", [
    ([1] * 41, "41 singular values"), ({"q_prij": [1]}, "q_prij"), ([1, -1], "value 1"),
    ({"q_proj": "x"}, "q_proj"), ([], "expected a list"), ("x", "expected a list")])
def test_lists_that_are_wrong_are_refused_and_leave_nothing(program, tmp_path, config, content, says):
    (tmp_path / "lists.json").write_text(json.dumps(content))
    error = synth(program, config(LLAMA), "--out", tmp_path / "m", "--spectrum",
                  tmp_path / "lists.json", status=2 if "q_prij" in says else 1)["error"]
    assert says in error["message"]
    assert not list((tmp_path / "m").glob("[!.]*")) and not (tmp_path / "m" / ".plan").exists()


def test_values_depend_on_seed_and_name_alone(program, tmp_path, config):
    def make(folder, *more, threads=2):
        synth(program, config(DEEPSEEK), "--out", tmp_path / folder, "--dtype", "fp8", *more,
              threads=threads)
        return {n: v.view(torch.uint8) for n, v in tensors(tmp_path / folder).items()}

    first = make("a", threads=1)
    again, one, other = make("b", threads=3), make("c", "--layers", 1), make("d", "--seed", 1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert one and all(torch.equal(first[n], one[n]) for n in one)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def test_gaussian_values_are_gaussian_and_layers_are_independent(program, tmp_path, config):
    synth(program, config(DEEPSEEK, initializer_range=0.05), "--out", tmp_path / "m", "--dtype",
          "f32")
    stored = stored_matrices(tmp_path / "m")
    everything = np.concatenate([m.ravel() for m in stored.values()]) / 0.05
    n = everything.size
    assert abs(everything.mean()) < 5 / np.sqrt(n)
    assert abs((everything**2).mean() - 1) < 5 * np.sqrt(2 / n)
    assert abs((everything**4).mean() - 3) < 5 * np.sqrt(96 / n)
    a, b = (stored[f"model.layers.{i}.self_attn.o_proj.weight"].ravel() for i in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)
    rows = stored["model.layers.0.self_attn.o_proj.weight"]
    assert np.linalg.svd(rows, compute_uv=False)[-1] > 0  # no row twice


def test_fp8_blocks_use_their_range(program, tmp_path, config):
    synth(program, config(DEEPSEEK), "--out", tmp_path / "m", "--dtype", "fp8")
    loaded = tensors(tmp_path / "m")
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    assert fields["quantization_config"]["weight_block_size"] == [128, 128]
    for name, value in loaded.items():
        if value.dim() != 2 or name.endswith("_scale_inv"):
            assert value.dtype in (torch.bfloat16, torch.float32), name
            continue
        assert value.dtype == torch.float8_e4m3fn
        scale = loaded[name + "_scale_inv"]
        assert scale.dtype == torch.float32
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                block = value[128 * i:128 * i + 128, 128 * j:128 * j + 128].float()
                assert block.abs().max() == 448


def test_a_folder_with_a_model_is_left_alone(program, tmp_path, config):
    synth(program, config(LLAMA), "--out", tmp_path / "m")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").glob("[!.]*")}
    error = synth(program, config(LLAMA), "--out", tmp_path / "m", "--seed", 3, status=1)["error"]
    assert "already holds" in error["message"]
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "m").glob("[!.]*")}


def test_a_configuration_that_is_wrong_is_named_as_the_user_named_it(program, tmp_path, config):
    fields = {k: v for k, v in LLAMA.items() if k != "hidden_size"}
    error = synth(program, config(fields), "--out", tmp_path / "m", status=1)["error"]
    assert error["message"].startswith(str(tmp_path / "wanted.json")), error
    assert "hidden_size" in error["message"] and ".plan" not in error["message"]
    assert not list((tmp_path / "m").glob("[!.]*")) and not (tmp_path / "m" / ".plan").exists()
