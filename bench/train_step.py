"""A step of training: ours against plain PyTorch, eager and compiled, and transformers' DeepSeek-V3.

The plain models have the same shapes and do the same work: bfloat16 by autocast with float32
weights, PyTorch's scaled dot product attention, fused AdamW, clipping, the head at the predicted
positions only and the vocabulary padded to a multiple of 64. `as usual` has the head everywhere and
no padding. Ours is the program bench/train_engine, which runs the trainer's own engine.

    ./run bench train_step [--device cpu] [--record] [--program PATH] [--only PART,...]

On a CPU the same, in float32, with batches that fit its patience.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from common.machine import processor  # noqa: E402

PEAK = {"NVIDIA H200": 792e12}  # measured: bfloat16 products of random numbers


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Attention(nn.Module):
    """MHA or MLA, its output dense or through a shared latent: fields as in configs/."""

    def __init__(self, c):
        super().__init__()
        self.c, d, heads = c, c["hidden_size"], c["num_attention_heads"]
        self.v = c.get("v_head_dim", d // heads)
        self.rope = c.get("qk_rope_head_dim", self.v)
        self.nope = c.get("qk_nope_head_dim", 0)
        self.own = c.get("qk_rope_keys") == "per_head" or "kv_lora_rank" not in c
        wide = self.rope + self.nope
        if "kv_lora_rank" in c:
            self.ranks = [c["q_lora_rank"], c["kv_lora_rank"], 0 if self.own else self.rope]
            self.down = nn.Linear(d, sum(self.ranks), bias=False)
            self.q_norm, self.kv_norm = nn.RMSNorm(self.ranks[0]), nn.RMSNorm(self.ranks[1])
            self.q_up = nn.Linear(self.ranks[0], heads * wide, bias=False)
            self.keys = wide if self.own else self.nope
            self.kv_up = nn.Linear(self.ranks[1], heads * (self.keys + self.v), bias=False)
        else:
            self.qkv = nn.Linear(d, 3 * d, bias=False)
        rank = c.get("o_lora_rank")
        self.o_a = nn.Linear(heads * self.v, rank, bias=False) if rank else nn.Identity()
        normed = c.get("o_latent_norm") == "rms"
        self.o_norm = nn.RMSNorm(rank) if normed else nn.Identity()
        self.o_b = nn.Linear(rank or heads * self.v, d, bias=False)

    def heads(self, x, cos, sin):
        c, heads = self.c, self.c["num_attention_heads"]
        if "kv_lora_rank" not in c:
            q, k, v = self.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            return rotate(q, cos, sin).to(v), rotate(k, cos, sin).to(v), v
        q, kv, key = self.down(x).split(self.ranks, -1)
        q = self.q_up(self.q_norm(q)).unflatten(-1, (heads, -1)).transpose(1, 2)
        kv = self.kv_up(self.kv_norm(kv)).unflatten(-1, (heads, -1)).transpose(1, 2)
        k, v = kv.split([self.keys, self.v], -1)
        q_n, q_r = q.split([self.nope, self.rope], -1)
        k_n, k_r = k.split([self.nope, self.rope], -1) if self.own else (k, key.unsqueeze(1))
        k_r = rotate(k_r, cos, sin).expand(-1, heads, -1, -1)
        q = torch.cat((q_n, rotate(q_r, cos, sin)), -1).to(v)
        return q, torch.cat((k_n, k_r), -1).to(v), v

    def forward(self, x, cos, sin, causal):
        q, k, v = self.heads(x, cos, sin)
        z = scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.o_b(self.o_norm(self.o_a(z.transpose(1, 2).flatten(2))))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, m, bias = c["hidden_size"], c["intermediate_size"], c.get("mlp_bias", False)
        self.first, self.second = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.attention = Attention(c)
        self.up, self.down = nn.Linear(d, 2 * m, bias=bias), nn.Linear(m, d, bias=bias)

    def forward(self, x, cos, sin, causal):
        x = x + self.attention(self.first(x), cos, sin, causal)
        gate, up = self.up(self.second(x)).chunk(2, -1)
        return x + self.down(silu(gate) * up)


class Plain(nn.Module):
    def __init__(self, c, pad):
        super().__init__()
        self.causal = c["model_type"].endswith("decoder")
        vocabulary = c["vocab_size"]
        self.embedding = nn.Embedding(-(-vocabulary // 64) * 64 if pad else vocabulary,
                                      c["hidden_size"])  # fmt: skip
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=1e-6)
        rope = c.get("qk_rope_head_dim", c["hidden_size"] // c["num_attention_heads"])
        frequency = 10000.0 ** (-torch.arange(0, rope, 2) / rope)
        angles = torch.outer(torch.arange(c["max_position_embeddings"]), frequency)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, places, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.causal)
        x = self.norm(x).flatten(0, 1)
        x = x if places is None else x.index_select(0, places)
        return cross_entropy((x @ self.embedding.weight.T).float(), targets)


def batch_of(c, rows, masked_only, device):
    torch.manual_seed(1)
    length, vocabulary = c["max_position_embeddings"], c["vocab_size"]
    # As many small numbers as in text; the engine's own batches are drawn alike.
    tokens = (vocabulary ** torch.rand(rows, length, device=device)).long() - 1
    if c["model_type"].endswith("decoder"):
        return tokens, None, tokens.flatten().roll(-1)
    count = round(0.15 * rows * length)
    masked = torch.rand(rows * length, device=device).argsort()[:count].sort().values
    if masked_only:
        return tokens, masked, tokens.flatten()[masked]
    targets = torch.full_like(tokens.flatten(), -100)
    targets[masked] = tokens.flatten()[masked]
    return tokens, None, targets


def milliseconds(work, device, steps=10, repeats=3):
    for _ in range(4 if device == "cuda" else 1):
        work()
    times = []
    if device == "cpu":
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / steps)
    return statistics.median(times)


def stepper(model, loss_of, device):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain(c, rows, usual=False, compiled=None, device="cuda"):
    model = Plain(c, pad=not usual).to(device)
    batch = batch_of(c, rows, not usual, device)
    run = torch.compile(model, mode=compiled) if compiled else model
    return milliseconds(stepper(model, lambda: run(*batch), device), device)


def transformers_decoder(c, rows):
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    names = ("vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
             "max_position_embeddings rms_norm_eps tie_word_embeddings q_lora_rank kv_lora_rank "
             "qk_nope_head_dim qk_rope_head_dim v_head_dim").split()  # fmt: skip
    config = DeepseekV3Config(
        **{name: c[name] for name in names}, num_key_value_heads=c["num_attention_heads"],
        first_k_dense_replace=c["num_hidden_layers"], attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).cuda()
    tokens = batch_of(c, rows, True, "cuda")[0]
    run = torch.compile(model)
    work = stepper(model, lambda: run(input_ids=tokens, labels=tokens).loss, "cuda")
    return milliseconds(work, "cuda")


def ours(program, config, rows, *options):
    command = [program, ROOT / "configs" / f"{config}.json", "--set", "accumulate=1", "--set",
               f"batch_size={rows}", *options]  # fmt: skip
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr.strip()[-300:])
    return json.loads(result.stdout)


def read(config):
    return json.loads((ROOT / "configs" / f"{config}.json").read_text())


def cpu_cases(program):
    found = {}
    for config, rows in (("encoder-mla-o", 16), ("encoder-mha", 16), ("decoder-mla-o", 2)):
        c = read(config)
        found[f"{config} x {rows}, subspace"] = (
            config, rows,
            lambda f=config, r=rows: ours(program, f, r, "--device", "cpu", "--steps", 1,
                                          "--warmup", 1))  # fmt: skip
        found[f"{config} x {rows}, plain, eager"] = (
            config, rows, lambda c=c, r=rows: plain(c, r, device="cpu"))  # fmt: skip
        found[f"{config} x {rows}, plain, compiled"] = (
            config, rows, lambda c=c, r=rows: plain(c, r, False, "default", "cpu"))  # fmt: skip
    return found


def cases(program):
    """name -> (configuration, rows, what gives milliseconds or our program's object)."""
    found = {}
    for config, rows in (("encoder-mla-o", 256), ("decoder-mla-o", 64)):
        c = read(config)
        found[f"{config}, subspace"] = (config, rows, lambda f=config, r=rows: ours(program, f, r))
        found[f"{config}, subspace, without graphs"] = (
            config, rows, lambda f=config, r=rows: ours(program, f, r, "--no-graphs"))  # fmt: skip
        found[f"{config}, subspace, graphs of PyTorch's operators"] = (
            config, rows, lambda f=config, r=rows: ours(program, f, r, "--fused", "never"))  # fmt: skip
        found[f"{config}, plain, eager"] = (config, rows, lambda c=c, r=rows: plain(c, r))
        found[f"{config}, plain, compiled"] = (
            config, rows, lambda c=c, r=rows: plain(c, r, compiled="default"))  # fmt: skip
    c = read("encoder-mla-o")
    found["encoder-mla-o, plain as usual, compiled"] = (
        "encoder-mla-o", 256, lambda c=c: plain(c, 256, True, "default"))  # fmt: skip
    found["decoder-mla-o x 128 x 8 passes, subspace"] = (
        "decoder-mla-o", 1024,
        lambda: ours(program, "decoder-mla-o", 128, "--set", "accumulate=8", "--steps", 2,
                     "--warmup", 2))  # fmt: skip
    c = read("decoder-mla")
    found["decoder-mla, transformers, compiled"] = (
        "decoder-mla", 64, lambda: transformers_decoder(c, 64))  # fmt: skip
    for config, rows in (("encoder-mla-o", 1024), ("encoder-mla", 256), ("encoder-mha", 256),
                         ("decoder-mla-o", 128), ("decoder-mla", 64), ("decoder-mha", 64)):  # fmt: skip
        name = f"{config} x {rows}, subspace"
        found[name] = (config, rows, lambda f=config, r=rows: ours(program, f, r))
    return found


def write_record(device, rows):
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    record = {"benchmark": "train_step", "commit": described or None, "device": device,
              "torch": torch.__version__, "rows": rows}  # fmt: skip
    kind = device.split()[1].lower() if device.startswith("NVIDIA") else "cpu"
    path = ROOT / "bench" / "results" / f"train_step-{kind}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def step_row(name, batch, length, measure):
    """What is recorded of a training step of `batch` rows; `measure` returns ms or a row of more."""
    try:
        found = measure()
    except Exception as error:  # noqa: BLE001  a baseline that fails is a result too
        print(f"{name:58s} failed: {str(error)[:160]}", flush=True)
        return {"name": name, "error": str(error)[:300]}
    row = {"name": name, "rows": batch, **(found if isinstance(found, dict) else {"ms_per_step": found})}
    row.setdefault("tokens_per_second", 1e3 * batch * length / row["ms_per_step"])
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--program", help="bench/train_engine of a build (default: build/cuda's or "
                        "build/release's)")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        print("train_step: needs a CUDA device, or --device cpu")
        return
    program = options.program or ROOT / "build" / ("release" if on_cpu else "cuda") / "bench" / "train_engine"
    torch.set_float32_matmul_precision("high")
    device = processor() or "CPU" if on_cpu else torch.cuda.get_device_name()
    rows = []
    for name, (config, batch, measure) in (cpu_cases if on_cpu else cases)(program).items():
        if options.only and not any(part in name for part in options.only.split(",")):
            continue
        fields = json.loads((ROOT / "configs" / f"{config}.json").read_text())
        length = fields["max_position_embeddings"]
        torch._dynamo.reset()
        row = step_row(name, batch, length, measure)
        if "error" in row:
            rows.append(row)
            continue
        if "model_tflops" in row and device in PEAK:
            row["share_of_peak"] = row["model_tflops"] * 1e12 / PEAK[device]
        rows.append(row)
        share = f"  {100 * row['share_of_peak']:.1f} % of peak" if "share_of_peak" in row else ""
        print(f"{name:58s} {row['ms_per_step']:8.3f} ms {row['tokens_per_second'] / 1e6:7.3f} M "
              f"tokens/s{share}", flush=True)  # fmt: skip
        if options.record:  # behind every row: a run that is stopped keeps what it has
            write_record(device, rows)


if __name__ == "__main__":
    main()
