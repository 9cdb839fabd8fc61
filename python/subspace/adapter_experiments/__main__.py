"""Experiments with adapters on the known-answer base, section by section of docs/lora-experiments.md.

    ./run python -m subspace.adapter_experiments --out DIR [--only rank,frozen,..] [--seeds 0,1,2] [--record]

What is recorded of other experiments stays, so they can be done one by one.

Bases and usual adapters are those of subspace.known_answers, whose --out may be given as --out: what
is there is not trained again, and no run that is finished is done again. Losses, sizes, effects and
compositions are the program's own (`eval`, `lora heads|compose|causal|forward`).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from .. import known_answers
from .experiments import EXPERIMENTS
from .lab import ROOT, Lab
from .tables import print_tables, summary

SETTINGS = {"steps": 400, "base_steps": 300, "latent_steps": 1000, "passes": 1}


def chosen(text, known, what):
    names = text.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"error: {what} '{name}'; there are {', '.join(known)}")
    return names


def check_settings(out, settings):
    """A folder holds runs of one length only."""
    file = out / "settings.json"
    if file.exists():
        found = json.loads(file.read_text())
        for name, value in settings.items():
            if found.get(name) != value:
                raise SystemExit(f"error: {file}: {name} is {found.get(name)}, now {value}; give another --out, "
                                 "or the same number")
        return
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings) + "\n")


def commit():
    found = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"],
                           capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def write_record(path, done):
    """Each experiment with its own seeds, settings and commit: one that is not done now stays."""
    kept = json.loads(path.read_text()).get("experiments", {}) if path.exists() else {}
    every = kept | done
    record = {"benchmark": "lora_experiments",
              "adapter": json.loads((ROOT / "configs" / "known-answer-adapter.json").read_text()),
              "experiments": {name: every[name] for name in EXPERIMENTS if name in every}}
    path.write_text(json.dumps(record, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(prog="subspace.adapter_experiments", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help=", ".join(EXPERIMENTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tasks", default=",".join(known_answers.TASKS))
    for name, value in SETTINGS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    options = parser.parse_args()
    names = chosen(options.only, list(EXPERIMENTS), "--only")
    tasks = chosen(options.tasks, known_answers.TASKS, "--tasks")
    if not all(seed.isdecimal() for seed in options.seeds.split(",")):
        parser.error(f"--seeds {options.seeds}: expected numbers, as 0,1,2")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    settings = {name: getattr(options, name) for name in SETTINGS}
    check_settings(options.out, settings)
    found = {name: [] for name in names}
    for seed in seeds:
        lab = Lab(options.out, seed, settings | {"threads": options.threads})
        for name in names:
            lab.say(f"experiment {name}")
            try:
                found[name] += [{"seed": seed, **row} for row in EXPERIMENTS[name](lab, tasks)]
            except (RuntimeError, ValueError, FloatingPointError) as error:
                raise SystemExit(f"error: {name}, seed {seed}: {error}\nwhat is finished in {options.out} "
                                 "is kept; the same command goes on from there") from error
    about = {"seeds": seeds, "tasks": tasks, "settings": settings, "commit": commit()}
    done = {name: about | {"summary": summary(rows), "runs": rows} for name, rows in found.items()}
    print_tables({name: one["summary"] for name, one in done.items()})
    write_record(options.out / "lora_experiments.json", done)
    if options.record:
        path = ROOT / "bench" / "results" / "lora_experiments.json"
        write_record(path, done)
        print(f"record: {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
