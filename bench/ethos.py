"""Everything that is claimed of single-neuron experts, measured in one run, with its baselines.

Parts: `layer` (experts alone, and with routing: bench/ethos_layer.py), `profile` (its kernels, one
by one), `model` (the paper's, tokens a second of training, beside the same in plain PyTorch),
`kernels` (each alone, with the bandwidth that it reaches), `growth_experts` and `growth_tokens`
(64 k to 4 M experts; 1 k to 64 k tokens), `inference` (1, 8, 64 tokens, against stored experts and
PyTorch).

    ./run bench ethos [--record] [--device cuda] [--only PART,...] [--build build/cuda]

The table of goals ends it. --record writes bench/results/ethos-CARD.json behind every part, and
docs/images/ethos-growth.svg. On the CPU: smaller sizes, and the parts that make sense there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import batch_norm, silu

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "python"))

import ethos_layer  # noqa: E402
import train_step  # noqa: E402
from common.growth_figure import draw  # noqa: E402
from common.machine import processor  # noqa: E402

from subspace import ops  # noqa: E402

GOALS = {  # of one H200: name -> (goal, what it is)
    "experts": (0.14, "us/token, experts only"),
    "layer": (0.25, "us/token, layer with routing"),
    "model": (120e3, "tokens/s, the paper's model"),
}
SIDES = {"cuda": (256, 512, 1024, 2048), "cpu": (64, 128, 256)}
TOKENS = {"cuda": (1024, 2048, 4096, 8192, 16384, 32768, 65536), "cpu": (256, 512, 1024)}
FEW = (1, 8, 64)
# What is drawn, and little else: the compiled baselines are no faster and take minutes each.
NOT_IN_GROWTH = "compiled,reordered"


def sizes(device, **more):
    return dict(ethos_layer.SIZES[device.type], **more)


def part_layer(device, options):
    rows, ratios = ethos_layer.measure(sizes(device), device, options.repeats)
    return [*rows, *({"name": f"ratio, {group}", "ratio": ratio} for group, ratio in ratios.items())]


def growth(device, options, over, values):
    rows = []
    for name, value in values:
        print(f"-- {over} {value}", flush=True)
        found, _ = ethos_layer.measure(sizes(device, **{name: value}), device, 3, NOT_IN_GROWTH)
        rows += [{over: value**2 if name == "side" else value, **row} for row in found]
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def part_growth_experts(device, options):
    return growth(device, options, "experts", [("side", side) for side in SIDES[device.type]])


def part_growth_tokens(device, options):
    return growth(device, options, "tokens", [("tokens", n) for n in TOKENS[device.type]])


def part_profile(device, options):
    """Where the time of our layer goes: every kernel of forward and backward, launch by launch."""
    s, steps = sizes(device), 5
    _, function, arguments = ethos_layer.cases(s, ethos_layer.inputs(s, device))["layer, subspace"]
    wanted = [a for a in arguments if a.requires_grad]
    grad = torch.randn(s["tokens"], s["d"], device=device).to(s["dtype"])

    def work():
        torch.autograd.grad(function(*arguments), wanted, grad)

    for _ in range(3):
        work()
    on_gpu = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(steps):
            work()
        if on_gpu:
            torch.cuda.synchronize()
    rows = []
    for event in found.key_averages():
        whole = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if whole > 0:
            rows.append({"name": event.key[:160], "launches": event.count // steps,
                         "us_per_token": whole / steps / s["tokens"]})  # fmt: skip
    rows.sort(key=lambda row: -row["us_per_token"])
    for row in rows[:24]:
        print(f"{row['us_per_token']:9.4f} us/token {row['launches']:4d} x {row['name'][:90]}", flush=True)
    return rows[:60]


# --- inference ----------------------------------------------------------------------------------


def stored_pytorch(x, scores, index, down, up):
    weights = torch.nn.functional.gelu(torch.einsum("tsd,td->ts", down[index], x)) * scores.to(x.dtype)
    return torch.einsum("ts,tsd->td", weights, up[index])


def microseconds(work, device, repeats=50):
    """A call, started launch by launch, and where there is a GPU replayed from a graph."""
    for _ in range(5):
        work()
    if device.type == "cpu":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(1e6 * (time.perf_counter() - start))
        return {"us": statistics.median(times)}

    def timed(call):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return 1e3 * start.elapsed_time(end) / repeats

    found = {"us": statistics.median(timed(work) for _ in range(5))}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    found["us_graph"] = statistics.median(timed(graph.replay) for _ in range(5))
    return found


@torch.no_grad()
def part_inference(device, options):
    """Layers behind the router, all experts' weights in memory, nothing kept from call to call."""
    s = sizes(device)
    stored = [torch.randn(s["side"] ** 2, s["d"], device=device).to(s["dtype"]) for _ in range(2)]
    rows = []
    for tokens in FEW:
        t = ethos_layer.inputs(dict(s, tokens=tokens), device)
        w_v = t["w_v"] / s["heads"]
        chosen = [t["x"], t["scores"], t["index"]]
        cases = {
            "generated, subspace": lambda t=t, w=w_v: ops.ethos_layer(
                t["x"], t["scores"], t["index"], t["z"], t["w1"], t["w_u"], t["w_v"], s["heads"]),
            "generated, PyTorch": lambda t=t, w=w_v: ethos_layer.reordered(
                t["x"] @ t["w_u"], t["scores"], t["index"], t["z"], t["w1"]) @ w,
            "stored, subspace": lambda c=chosen: ops.stored_experts(*c, *stored),
            "stored, PyTorch": lambda c=chosen: stored_pytorch(*c, *stored),
        }  # fmt: skip
        for name, work in cases.items():
            row = {"name": name, "tokens": tokens, **microseconds(work, device)}
            # Rows of experts that must be read: latents, or both stored vectors.
            width = s["d_l"] if name.startswith("generated") else 2 * s["d"]
            bytes_read = tokens * s["heads"] * s["k"] * width * t["x"].element_size()
            row["gb_per_s"] = bytes_read / row.get("us_graph", row["us"]) / 1e3
            rows.append(row)
            replayed = f"  replayed {row['us_graph']:8.1f} us" if "us_graph" in row else ""
            print(f"{name:24s} {tokens:4d} tokens {row['us']:9.1f} us{replayed} "
                  f"{row['gb_per_s']:8.1f} GB/s", flush=True)  # fmt: skip
    return rows


# --- kernels ------------------------------------------------------------------------------------


def part_kernels(device, options):
    program = options.build / "bench" / "ethos_kernels"
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "kernels.json"
        more = ["--cpu"] if device.type == "cpu" else []
        subprocess.run([program, "--record", record, *more], check=True)
        rows = json.loads(record.read_text())["rows"]
    for row in rows:
        if "bytes" in row:
            row["gb_per_s"] = row["bytes"] / row["ms"] / 1e6
    return rows


# --- the paper's model --------------------------------------------------------------------------


class PlainExperts(torch.nn.Module):
    """The ETHOS layer in plain PyTorch: table + gather, the fastest of the baselines."""

    def __init__(self, c):
        super().__init__()
        d, d_h, d_l = c["hidden_size"], c["expert_hidden_dim"], c["expert_latent_dim"]
        side = round(c["num_experts"] ** 0.5)
        self.s = dict(heads=c["num_expert_heads"], k=c["num_experts_per_head"])

        def normal(*size, scale=1.0):
            return torch.nn.Parameter(scale * torch.randn(*size))

        queries = self.s["heads"] * c["query_dim"]
        self.w_q = normal(d, queries, scale=0.02)
        self.key = normal(2, side, c["query_dim"] // 2, scale=(2 / c["query_dim"]) ** 0.5)
        self.z = normal(side**2, d_l)
        self.w1 = normal(d_l, d_h, scale=d_l**-0.5)
        power = (0.4252 * d_h) ** -0.5
        self.w_u, self.w_v = normal(d, d_h, scale=d**-0.5 * power), normal(d_h, d, scale=power)

    def forward(self, x):
        rows = x.flatten(0, -2)
        q = batch_norm((rows @ self.w_q).float(), None, None, training=True).to(rows.dtype)
        q = q.unflatten(1, (self.s["heads"], 2, -1))
        scores, index = ethos_layer.topk_pytorch(
            q[:, :, 0] @ self.key[0].T, q[:, :, 1] @ self.key[1].T, self.s["k"])  # fmt: skip
        acc = ethos_layer.table_and_gather(
            rows @ self.w_u, scores.flatten(1), index.flatten(1), self.z.to(rows.dtype),
            self.w1.to(rows.dtype))  # fmt: skip
        return (acc @ (self.w_v / self.s["heads"])).view_as(x)


class PlainBlock(train_step.Block):
    def __init__(self, c, experts):
        super().__init__(c)
        self.experts = PlainExperts(c) if experts else None
        if experts:
            self.up = self.down = None

    def forward(self, x, cos, sin, causal):
        x = x + self.attention(self.first(x), cos, sin, causal)
        read = self.second(x)
        if self.experts is not None:
            return x + self.experts(read)
        gate, up = self.up(read).chunk(2, -1)
        return x + self.down(silu(gate) * up)


def plain_model(c, compiled):
    model = train_step.Plain(c, pad=True)
    dense = c["first_k_dense_replace"]
    model.blocks = torch.nn.ModuleList(
        PlainBlock(c, i >= dense) for i in range(c["num_hidden_layers"]))  # fmt: skip
    model = model.cuda()
    batch = train_step.batch_of(c, 1, True, "cuda")
    run = torch.compile(model) if compiled else model
    work = train_step.stepper(model, lambda: run(*batch), "cuda")
    return train_step.milliseconds(work, "cuda", steps=3)


def part_model(device, options):
    config = "ethos-paper"
    c = json.loads((ROOT / "configs" / f"{config}.json").read_text())
    length, rows = c["max_position_embeddings"], []

    def add(name, batch, measure):
        row = train_step.step_row(name, batch, length, measure)
        rows.append(row)
        if "error" in row:
            return
        print(f"{name:44s} {row['ms_per_step']:9.2f} ms {row['tokens_per_second'] / 1e3:9.1f} k tokens/s",
              flush=True)  # fmt: skip

    program = options.build / "bench" / "train_engine"
    few = ("--steps", "5", "--warmup", "3")
    for batch in (8, 1):
        add(f"subspace, {batch} x {length}", batch,
            lambda b=batch: train_step.ours(program, config, b, *few))  # fmt: skip
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        how = "compiled" if compiled else "eager"
        add(f"PyTorch, table + gather, {how}, 1 x {length}", 1, lambda k=compiled: plain_model(c, k))
    return rows


PARTS = {
    "layer": part_layer,
    "profile": part_profile,
    "model": part_model,
    "kernels": part_kernels,
    "growth_experts": part_growth_experts,
    "growth_tokens": part_growth_tokens,
    "inference": part_inference,
}


def reached(parts):
    """What stands against the goals: name -> (ours, the best of PyTorch, goal)."""
    found = {}

    def least(rows, start, whose):
        times = [row["us_per_token"] for row in rows
                 if row["name"].startswith(start) and whose(row["name"]) and "us_per_token" in row]  # fmt: skip
        return min(times, default=None)

    for group in ("experts", "layer"):
        rows = parts.get("layer", [])
        found[group] = (least(rows, group, lambda n: "subspace" in n),
                        least(rows, group, lambda n: "subspace" not in n))  # fmt: skip
    rates = [(row["name"], row["tokens_per_second"]) for row in parts.get("model", [])
             if "tokens_per_second" in row]  # fmt: skip
    found["model"] = tuple(
        max((rate for name, rate in rates if name.startswith(who)), default=None)
        for who in ("subspace", "PyTorch"))  # fmt: skip
    return {name: {"subspace": ours, "pytorch": theirs, "goal": GOALS[name][0]}
            for name, (ours, theirs) in found.items() if ours is not None}  # fmt: skip


def print_goals(table):
    print(f"\n{'work':34s} {'subspace':>12s} {'PyTorch':>12s} {'goal':>12s}")
    for name, row in table.items():
        cells = (f"{v:12.4g}" if v is not None else f"{'-':>12s}"
                 for v in (row["subspace"], row["pytorch"], row["goal"]))  # fmt: skip
        print(f"{GOALS[name][1]:34s} {' '.join(cells)}")


def build_programs(folder):
    """The C++ benchmarks of a build that is configured: `./run build cuda` makes all but these."""
    if not (folder / "build.ninja").is_file():
        sys.exit(f"ethos: {folder} is no configured build; run ./run build {folder.name} first")
    targets = ("bench_ethos_kernels", "bench_train_engine", "subspace_ops")
    subprocess.run(["ninja", "-C", folder, *targets], check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="parts, separated by commas: " + ", ".join(PARTS))
    parser.add_argument("--build", type=Path, help="build folder (build/cuda; on a CPU build/release)")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    device = torch.device(options.device)
    options.build = options.build or ROOT / "build" / ("cuda" if device.type == "cuda" else "release")
    build_programs(options.build)
    wanted = [name for name in PARTS if not options.only or name in options.only.split(",")]
    if not wanted:
        parser.error(f"--only {options.only}: there are {', '.join(PARTS)}")
    if device.type == "cpu" and "model" in wanted:
        wanted.remove("model")  # a step takes minutes there
    torch.set_float32_matmul_precision("high")
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor() or "cpu"
    record = {"benchmark": "ethos", "commit": described or None, "device": name,
              "torch": torch.__version__, "threads": torch.get_num_threads(),
              "sizes": {k: str(v) if k == "dtype" else v for k, v in sizes(device).items()},
              "goals": {}, "parts": {}}  # fmt: skip
    card = name.split()[1].lower() if name.startswith("NVIDIA") else "cpu"
    path = ROOT / "bench" / "results" / f"ethos-{card}.json"
    for part in wanted:
        print(f"== {part}", flush=True)
        try:
            record["parts"][part] = PARTS[part](device, options)
        except Exception as error:  # noqa: BLE001  the other parts are worth their record
            print(f"{part} failed: {error}", file=sys.stderr, flush=True)
            record["parts"][part] = [{"name": part, "error": str(error)[:300]}]
        if device.type == "cuda":
            torch.cuda.empty_cache()
        record["goals"] = reached(record["parts"])
        if options.record:  # a run that is stopped keeps what it has
            path.write_text(json.dumps(record, indent=1) + "\n")
    print_goals(record["goals"])
    if options.record:
        if card != "cpu":
            (ROOT / "docs" / "images" / "ethos-growth.svg").write_text(draw(record))
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
