"""The composition screen of all pairs of layers at Llama-3-8B's shapes, r 16 on q, k, v and o.

Baseline, in the same run: the same junctions formed in full with PyTorch in float32, one product
W_O W_x a mode, for a few pairs of layers, and from that all of them. It has no null, no shares and
reads no file; subspace's time is everything from the checkpoint to the result.

    ./run bench lora_compose [--record] [--threads N] [--layers 32] [--model DIR]
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from common.machine import ROOT, processor, program



def write_adapter(model, folder, r=16):
    config = json.loads((model / "config.json").read_text())
    d, heads = config["hidden_size"], config["num_attention_heads"]
    groups = config["num_key_value_heads"]
    head = config.get("head_dim") or d // heads
    sizes = {"q_proj": (heads * head, d), "k_proj": (groups * head, d),
             "v_proj": (groups * head, d), "o_proj": (d, heads * head)}
    torch.manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (out, into) in sizes.items():
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}."
            tensors[base + "lora_A.weight"] = torch.randn(r, into) / math.sqrt(into)
            tensors[base + "lora_B.weight"] = 0.02 * torch.randn(out, r)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": list(sizes)}))
    return d, heads, groups, head


def baseline(d, heads, groups, head, pairs):
    """Seconds of one pair of layers: every junction of heads in full, three modes, and its norms."""
    o = torch.randn(heads * head, d)
    reads = {"Q": torch.randn(d, heads * head), "K": torch.randn(d, groups * head),
             "V": torch.randn(d, groups * head)}
    seconds = []
    for _ in range(pairs):
        start = time.perf_counter()
        for w in reads.values():
            (o @ w).view(heads, head, -1, head).square().sum((1, 3))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--model", type=Path, help="a checkpoint made earlier by synth")
    parser.add_argument("--pairs", type=int, default=3, help="of the baseline")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or Path(scratch) / "model"
        if options.model is None:
            subprocess.run([*program(), "synth", "llama-3-8b", "--layers", str(options.layers),
                            "--out", str(model), "--quiet"], check=True, stdout=subprocess.DEVNULL)
        shape = write_adapter(model, Path(scratch) / "adapter")
        out = Path(scratch) / "out"
        start = time.perf_counter()
        subprocess.run([*program(), "--quiet", "--threads", str(options.threads), "lora", "compose",
                        "--base", str(model), "--adapter", str(Path(scratch) / "adapter"),
                        "--out", str(out), "--top", "0"], check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        result = json.loads((out / "compose.json").read_text())
    layer_pairs = len({(s["w"], s["r"]) for s in result["screens"]})
    one = baseline(*shape, options.pairs)
    ours = result["seconds"]["screens"]
    record = {
        "benchmark": "lora_compose",
        "shape": f"Llama-3-8B, {options.layers} layers, bf16, r 16 on q, k, v, o",
        "processor": processor(),
        "threads": options.threads,
        "torch": torch.__version__,
        "layer_pairs": layer_pairs,
        "head_pairs": result["head_pairs"],
        "subspace_screen_seconds": ours,
        "subspace_whole_program_seconds": whole,
        "full_junctions_seconds_a_layer_pair": one,
        "full_junctions_seconds_all": one * layer_pairs,
        "ratio": one * layer_pairs / ours,
    }
    print(f"{'all junctions in full (PyTorch, float32)':44s} {one * layer_pairs:9.1f} s "
          f"({one:.2f} s a pair of layers)")
    print(f"{'subspace, screen of ' + str(layer_pairs) + ' pairs of layers':44s} {ours:9.1f} s")
    print(f"{'  the whole program':44s} {whole:9.1f} s")
    print(f"{'ratio':44s} {record['ratio']:9.1f}")
    if options.record:
        path = ROOT / "bench" / "results" / "lora_compose-cpu.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
