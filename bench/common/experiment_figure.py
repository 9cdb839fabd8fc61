"""The picture of docs/experiment-experts.md from the record of scripts/experiment.py --kind experts: loss against
tokens and time, use of experts against tokens. Needs matplotlib (pip install matplotlib), which nothing else does.

    ./run python bench/common/experiment_figure.py bench/results/experiment-experts.json docs/images/experiment-experts.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

INK, SOFT, GRID, AXIS, PAPER = "#1b1f24", "#59616b", "#e9ebec", "#9aa1a8", "#fdfdfb"
# Okabe and Ito's colours, as on the pages.
COLOURS = {"dense": "#009E73", "MoE": "#0072B2", "PEER": "#CC79A7", "ETHOS": "#D55E00"}


def axes(place, title, x, y):
    place.set_title(title, loc="left", color=INK, fontfamily="serif", fontsize=13, fontweight="bold", pad=10)
    place.set_xlabel(x, color=INK)
    place.set_ylabel(y, color=INK)
    place.set_facecolor(PAPER)
    place.grid(color=GRID)
    place.set_axisbelow(True)
    place.tick_params(colors=SOFT, length=3)
    for name, spine in place.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(AXIS)


def losses(place, arms, at):
    """Held out: the mean of the seeds, thick, and each, thin; in training: their mean, dotted. `at` turns a point
    [tokens, loss, seconds] into x."""
    for arm in arms:
        colour = COLOURS[arm["arm"]]
        for name, style in (("held_out", dict(lw=2, marker="o", ms=3.5, label=arm["arm"])),
                            ("curve", dict(lw=1, ls=(0, (1, 1.5)), alpha=0.9))):
            points = list(zip(*(run[name] for run in arm["runs"])))  # all seeds log the same steps
            place.plot([sum(map(at, p)) / len(p) for p in points], [sum(x[1] for x in p) / len(p) for p in points],
                       color=colour, **style)
        for run in arm["runs"]:
            place.plot([at(x) for x in run["held_out"]], [x[1] for x in run["held_out"]], color=colour, lw=0.7, alpha=0.45)
    place.set_ylim(3.2, 5.2)


def use(place, arms, key, scale):
    """Each layer of each seed, thin, and the mean of all, thick."""
    for arm in arms:
        if "experts" not in arm["runs"][0]:
            continue
        curves = [run["experts"][key] for run in arm["runs"]]
        tokens = [x[0] / 1e6 for x in curves[0]]
        layers = [[scale * x[i] for x in curve] for curve in curves for i in range(1, len(curve[0]))]
        for layer in layers:
            place.plot(tokens, layer, color=COLOURS[arm["arm"]], lw=0.7, alpha=0.4)
        place.plot(tokens, [sum(x) / len(x) for x in zip(*layers)], color=COLOURS[arm["arm"]], lw=2, label=arm["arm"])
    place.set_xlim(0, None)


def draw(record, target):
    arms = sorted(record["arms"], key=lambda arm: list(COLOURS).index(arm["arm"]))
    pyplot.rcParams.update({"font.family": "sans-serif", "font.size": 10.5})
    figure, ((tokens, minutes), (used, even)) = pyplot.subplots(2, 2, figsize=(11, 8.2), facecolor=PAPER)
    axes(tokens, "Loss against tokens", "M tokens read", "nats a token")
    losses(tokens, arms, lambda x: x[0] / 1e6)
    axes(minutes, "Loss against time", "minutes on one GPU, evaluation included", "nats a token")
    losses(minutes, arms, lambda x: x[2] / 60)
    tokens.plot([], [], color=SOFT, lw=2, marker="o", ms=3.5, label="held out")
    tokens.plot([], [], color=SOFT, lw=1, ls=(0, (1, 1.5)), label="in training")
    tokens.legend(frameon=False, labelcolor=INK, ncols=2)
    every = record["arms"][0]["train"]["log_every"]
    axes(used, f"Experts chosen at least once in {every} steps", "M tokens read", "% of a layer's experts")
    use(used, arms, "used", 100)
    axes(even, "Distance of choices from even", "M tokens read", "KL to uniform, nats")
    use(even, arms, "kl_uniform", 1)
    even.legend(frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1, 0.14))
    figure.tight_layout(h_pad=2, w_pad=2)
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    draw(json.loads(source.read_text()), target)
