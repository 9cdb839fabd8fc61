"""Models that differ in one part, several seeds each, trained on the same text: every run of
docs/experiment-encoder.md (the published encoder with MHA, MLA and an output latent, MLA-o, fine-tuned
on SST-2 as well) and of docs/experiment-experts.md (a decoder with generated experts, stored ones, a
mixture, or none, at equal compute).

    ./run python scripts/experiment.py --tokens 1.6e9 --seeds 0,1,2 --data DATA --sst2 SST2 --out DIR --jobs 2
    ./run python scripts/experiment.py --kind experts --tokens 2e8 --seeds 0,1 --data DATA --out DIR --jobs 2

DATA and SST2 are folders of `python -m subspace.prepare text` and `sst2` with one tokenizer; without
--sst2 nothing is fine-tuned. --jobs processes run at once, each with one GPU of those that are visible
(CUDA_VISIBLE_DEVICES). Stopped at any moment (--minutes stops by itself), the same command goes on from
the last checkpoints. DIR gets runs/<arm>_seed_<s>/ and sst2/<arm>_seed_<s>/ with their logs; --record a
JSON of configuration, thinned curves and table, written anew behind every finished run.
"""

import argparse
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench" / "common"))
import machine  # noqa: E402

ARMS = {
    "encoder": {"MHA": "encoder-mha", "MLA": "encoder-mla", "MLA-o": "encoder-mla-o"},
    # Those that take longest first: two GPUs then end together.
    "experts": {"PEER": "peer-small", "ETHOS": "ethos-small", "MoE": "moe-small", "dense": "dense-small"},
}
# t with 97.5 % of Student's distribution below it, for 1, 2, .. degrees of freedom.
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
POINTS = 200  # of each recorded curve
EVALUATIONS = 20


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=ARMS, default="encoder")
    parser.add_argument("--tokens", type=float, required=True, help="of pre-training, padding not counted")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", help="some of the kind's, separated by commas")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sst2", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--minutes", type=float, help="stop by then, with checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of pre-training")
    parser.add_argument("--tune-set", action="append", default=[], metavar="NAME=VALUE", help="of fine-tuning")
    parser.add_argument("--epochs", default="3", help="of fine-tuning")
    parser.add_argument("--configs", type=Path, default=ROOT / "configs", help="folder of the arms' configurations")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of a process (default: its share of the cores)")
    parser.add_argument("--record", type=Path, help="default: bench/results/experiment-KIND.json")
    options = parser.parse_args(words)
    known = ARMS[options.kind]
    options.arms = options.arms.split(",") if options.arms else list(known)
    if unknown := [arm for arm in options.arms if arm not in known]:
        parser.error(f"--arms {unknown[0]}: --kind {options.kind} has {', '.join(known)}")
    options.record = options.record or ROOT / "bench" / "results" / f"experiment-{options.kind}.json"
    return options


def read(path):
    return json.loads(path.read_text())


def metrics(run):
    """(logged steps, evaluations) of a run."""
    lines = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the last one, of a killed process
            break
    return [x for x in lines if "loss" in x], [x for x in lines if "eval" in x]


def interval(values):
    """Mean and half the width of its 95 % interval, Student's t; no half width of one value."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return {"runs": n, "mean": mean, "half_width_95": None}
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    t = STUDENT[n - 2] if n - 2 < len(STUDENT) else 2.0
    return {"runs": n, "mean": mean, "half_width_95": t * spread}


def thinned(points):
    step = max(1, math.ceil(len(points) / POINTS))
    kept = points[::step]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def short(config):
    return config.removeprefix("encoder-").removesuffix("-small")


def whole_intervals(steps):
    """Logged lines but a last one of fewer steps: in less text fewer experts are ever chosen."""
    return [x for x in steps if x["step"] % steps[0]["step"] == 0]


def expert_usage(steps):
    """Share of experts that were chosen, and KL to uniform, means over layers, of the last whole interval."""
    layers = list(whole_intervals(steps)[-1].get("experts", {}).values())
    if not layers:
        return {}
    return {f"experts_{key}": sum(layer[key] for layer in layers) / len(layers) for key in ("used", "kl_uniform")}


def expert_curve(steps):
    """The two by layer, against tokens."""
    found = {key: [[x["tokens"], *(round(layer[key], 4) for layer in x["experts"].values())]
                   for x in thinned(whole_intervals(steps)) if "experts" in x] for key in ("used", "kl_uniform")}
    return {"experts": found} if found["used"] else {}


class Experiment:
    def __init__(self, options):
        self.options = options
        self.begun = time.monotonic()
        self.stopping = threading.Event()
        self.failed = False
        self.children = {}
        self.lock = threading.Lock()
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.arms = {name: ARMS[options.kind][name] for name in options.arms}
        split = read(options.data / "meta.json")["splits"]["train"]
        self.tokens_per_row = split["tokens"] / split["rows"]

    def say(self, text):
        with self.lock:
            print(f"[{time.monotonic() - self.begun:6.0f} s] {text}", flush=True)

    def settings(self, arm):
        """--set of one arm: as many steps as --tokens asks for."""
        sets = dict(text.split("=", 1) for text in self.options.set)
        train = read(self.options.configs / f"{self.arms[arm]}.json")["train"]
        rows = int(sets.get("batch_size", train["batch_size"])) * int(sets.get("accumulate", 1))
        steps = max(1, round(self.options.tokens / (rows * self.tokens_per_row)))
        log = max(1, min(50, steps // 50))
        often = max(1, steps // EVALUATIONS // log) * log
        ours = {"steps": steps, "evaluate_every": often, "checkpoint_every": often, "keep_checkpoints": 1,
                "log_every": log}
        return {**{key: str(value) for key, value in ours.items()}, **sets}

    def call(self, place, name, *words):
        """Runs the program on one GPU; its messages go to a log. True if it ended well."""
        log = self.options.out / "logs" / f"{name}.log"
        environment = dict(os.environ)
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        threads = self.options.threads or max(1, len(os.sched_getaffinity(0)) // self.options.jobs)
        command = [*machine.program(), "--device", self.options.device, "--threads", str(threads), *map(str, words)]
        with log.open("a") as file:
            child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment,
                                     start_new_session=True)
            with self.lock:
                self.children[child.pid] = child
            if self.stopping.is_set():  # it was started while the others were being stopped
                child.send_signal(signal.SIGINT)
            status = child.wait()
            with self.lock:
                del self.children[child.pid]
        if status == 0:
            return True
        if status == 130 or self.stopping.is_set():
            self.say(f"{name}: interrupted, goes on with the same command")
        else:
            self.failed = True
            tail = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error")]
            self.say(f"{name}: FAILED ({status}): {tail[-1] if tail else 'see ' + str(log)}")
        return False

    def one(self, arm, seed, place):
        name, run, tuned = self.places(arm, seed)
        if not (run / "done.json").exists():
            sets = [word for key, value in self.settings(arm).items() for word in ("--set", f"{key}={value}")]
            config = self.options.configs / f"{self.arms[arm]}.json"
            resume = ["--resume"] if (run / "run.json").exists() else []
            if not self.call(place, name, "train", config, "--data", self.options.data, "--out", run, "--seed", seed,
                             *sets, *resume):
                return
            (run / "done.json").write_text("{}\n")
        if self.options.sst2 and not (tuned / "result.json").exists():
            sets = [word for text in self.options.tune_set for word in ("--set", text)]
            if not self.call(place, name, "finetune", run, "--data", self.options.sst2, "--out", tuned, "--seeds",
                             seed, "--epochs", self.options.epochs, "--resume", *sets):
                return
        with self.lock:
            record = self.record()
        numbers = self.numbers(run, tuned)
        tuned_to = f", SST-2 {100 * numbers['sst2_accuracy']:.2f} %" if self.options.sst2 else ""
        self.say(f"{arm}, seed {seed}: {numbers['tokens'] / 1e6:.0f} M tokens in {numbers['seconds']:.0f} s, held-out "
                 f"loss {numbers['loss']:.4f}, perplexity {numbers['perplexity']:.2f}{tuned_to}  "
                 f"({sum(len(a['runs']) for a in record['arms'])} of {len(self.arms) * len(self.seeds)} runs)")

    def places(self, arm, seed):
        """Name of a run, its folder, and that of its fine-tuning."""
        name = f"{short(self.arms[arm])}_seed_{seed}"
        return name, self.options.out / "runs" / name, self.options.out / "sst2" / name

    def ended(self, run, tuned):
        return (tuned / "result.json" if self.options.sst2 else run / "done.json").exists()

    def numbers(self, run, tuned):
        steps, held_out = metrics(run)
        held = held_out[-1]["eval"]
        found = {
            "tokens": steps[-1]["tokens"], "seconds": steps[-1]["seconds"],
            "tokens_per_second": steps[-1]["tokens"] / steps[-1]["seconds"],
            "loss": held["loss"], "perplexity": held["perplexity"],
            "masked_accuracy" if self.options.kind == "encoder" else "accuracy": held["accuracy"],
            **expert_usage(steps),
        }
        if not self.options.sst2:
            return found
        result = read(tuned / "result.json")["runs"][0]
        return {
            **found, "sst2_accuracy": result["accuracy"], "sst2_loss": result["loss"], "sst2_seconds": result["seconds"],
            "sst2_epochs": [[x["epoch"], x["accuracy"]] for x in result["epochs"]],
        }

    def record(self):
        """What is known so far, written whole."""
        data = read(self.options.data / "meta.json")
        json_out = {"benchmark": f"experiment-{self.options.kind}", **self.machine(), "tokens": self.options.tokens,
                    "data": {"id": data["id"], "sources": data["splits"]["train"].get("sources"),
                             "train_tokens": data["splits"]["train"]["tokens"], "length": data["length"],
                             "packed": data["packed"], "tokenizer": data["tokenizer"]["name"]},
                    "set": self.options.set, "arms": []}
        if self.options.sst2:
            sst2 = read(self.options.sst2 / "meta.json")
            json_out["sst2"] = {"id": sst2["id"], "train": sst2["splits"]["train"]["rows"],
                                "valid": sst2["splits"]["valid"]["rows"], "length": sst2["length"]}
        for arm, config in self.arms.items():
            entry = {"arm": arm, "config": config, "runs": []}
            for seed in self.seeds:
                _, run, tuned = self.places(arm, seed)
                if not self.ended(run, tuned):
                    continue
                whole = read(run / "run.json")
                entry["model"], entry["train"] = whole["model"], {**whole["train"], "seed": None}
                if self.options.sst2:
                    asked = read(tuned / "result.json")["runs"][0]["asked_for"]
                    entry["finetune"] = {**asked["train"], "seed": None}
                entry["parameters"] = parameters(run)
                steps, held_out = metrics(run)
                at = {x["step"]: (x["tokens"], round(x["seconds"], 2)) for x in steps}
                entry["runs"].append({
                    "seed": seed, "device": whole["device"], **self.numbers(run, tuned),
                    "curve": [[x["tokens"], round(x["loss"], 5), round(x["seconds"], 2)] for x in thinned(steps)],
                    "held_out": [[at[x["step"]][0], x["eval"]["loss"], at[x["step"]][1]] for x in held_out
                                 if x["step"] in at],
                    **expert_curve(steps),
                })
            if entry["runs"]:
                names = ("loss", "perplexity", "masked_accuracy", "accuracy", "sst2_accuracy", "tokens_per_second",
                         "seconds", "experts_used", "experts_kl_uniform")
                entry["table"] = {name: interval([run[name] for run in entry["runs"]]) for name in names
                                  if name in entry["runs"][0]}
            json_out["arms"].append(entry)
        self.options.record.parent.mkdir(parents=True, exist_ok=True)
        partial = self.options.record.with_suffix(".partial")
        partial.write_text(json.dumps(json_out, indent=1) + "\n")
        partial.replace(self.options.record)
        return json_out

    def machine(self):
        return {"commit": commit(), "device": ", ".join(dict.fromkeys(gpu_names())) or machine.processor(),
                "jobs": self.options.jobs}

    def stop(self, *_):
        self.stopping.set()
        for child in list(self.children.values()):
            child.send_signal(signal.SIGINT)

    def go(self):
        for folder in ("runs", "logs", *(("sst2",) if self.options.sst2 else ())):
            (self.options.out / folder).mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGINT, self.stop)
        signal.signal(signal.SIGTERM, self.stop)
        # All arms of a seed before the next seed: stopped early, what is there can be compared.
        work = queue.SimpleQueue()
        for seed in self.seeds:
            for arm in self.arms:
                work.put((arm, seed))
        places = visible_gpus() or [None]

        def worker(place):
            while not self.stopping.is_set():
                try:
                    arm, seed = work.get_nowait()
                except queue.Empty:
                    return
                try:
                    self.one(arm, seed, place)
                except Exception as error:  # noqa: BLE001: the other runs go on
                    self.failed = True
                    self.say(f"{arm}, seed {seed}: FAILED: {error!r}")

        threads = [threading.Thread(target=worker, args=(places[i % len(places)],)) for i in range(self.options.jobs)]
        for thread in threads:
            thread.start()
        end = self.begun + 60 * self.options.minutes if self.options.minutes else math.inf
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            if time.monotonic() > end and not self.stopping.is_set():
                self.stop()
        record = self.record()
        print_table(record)
        return 1 if self.failed else 130 if self.stopping.is_set() else 0


def visible_gpus():
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i in range(len(gpu_names()))]


def gpu_names():
    try:
        found = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                               text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


def commit():
    found = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None


def parameters(run):
    """Trained numbers, from the shapes in the checkpoint's header."""
    with (run / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def print_table(record):
    def cell(number, scale=1.0, digits=2):
        text = f"{scale * number['mean']:.{digits}f}"
        half = number["half_width_95"]
        return text if half is None else f"{text} +- {scale * half:.{digits}f}"

    print(f"{'':6}  {'parameters':>10}  {'runs':>4}  {'held-out loss':>18}  {'perplexity':>16}  {'SST-2 %':>16}  "
          f"{'M tokens/s':>14}")
    for arm in record["arms"]:
        if not arm["runs"]:
            continue
        table = arm["table"]
        print(f"{arm['arm']:6}  {arm['parameters']:10}  {len(arm['runs']):4}  {cell(table['loss'], digits=4):>18}  "
              f"{cell(table['perplexity']):>16}  {cell(table['sst2_accuracy'], 100) if 'sst2_accuracy' in table else '-':>16}  "
              f"{cell(table['tokens_per_second'], 1e-6):>14}")


if __name__ == "__main__":
    sys.exit(Experiment(parse()).go())
