"""The picture of docs/lora-experiments.md, from its record: one SVG file.

    ./run python bench/common/lora_figure.py bench/results/lora_experiments.json docs/images/lora-experiments.svg
"""

import json
import math
import sys
from pathlib import Path

from growth_figure import GRID, INK, PAPER, SOFT, text

COLOURS = {"ov": "#0072B2", "skip": "#D55E00", "rev": "#009E73"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, GAP = 1180, 420, 62, 16, 84, 56, 72


class Panel:
    """A pair of axes, x logarithmic or not, y logarithmic with ticks of powers of ten."""

    def __init__(self, left, width, xs, ys, log_x):
        self.left, self.width, self.log_x = left, width, log_x
        self.x0, self.x1 = self.along(min(xs)), self.along(max(xs))
        self.low = math.floor(math.log10(min(ys)))
        self.high = math.ceil(math.log10(max(ys)))

    def along(self, x):
        return math.log(x) if self.log_x else x

    def x(self, value):
        return self.left + self.width * (self.along(value) - self.x0) / ((self.x1 - self.x0) or 1)

    def y(self, value):
        tall = HEIGHT - TOP - BOTTOM
        return HEIGHT - BOTTOM - tall * (math.log10(value) - self.low) / (self.high - self.low)

    def axes(self, ticks, below, title):
        out = []
        for power in range(self.low, self.high + 1):
            y = self.y(10.0**power)
            out.append(f'<path d="M{self.left:.1f} {y:.1f}h{self.width:.1f}" stroke="{GRID}"/>')
            out.append(text(self.left - 8, y + 4, f"{10.0**power:g}", SOFT, "end"))
        out += [text(self.x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", SOFT, "middle") for tick in ticks]
        out.append(text(self.left + self.width / 2, HEIGHT - 14, below, INK, "middle"))
        return [*out, text(self.left, TOP - 16, title, INK)]

    def curve(self, points, colour, dash):
        """points: [(x, (mean, low, high))]; a stroke from the smallest to the largest seed."""
        path = " ".join(f"{self.x(x):.1f},{self.y(value[0]):.1f}" for x, value in points)
        out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2" '
               f'stroke-dasharray="{dash}"/>']  # fmt: skip
        for x, (middle, low, high) in points:
            at = f"{self.x(x):.1f}"
            out.append(f'<path d="M{at} {self.y(low):.1f}V{self.y(high):.1f}" stroke="{colour}" opacity=".45"/>')
            out.append(f'<circle cx="{at}" cy="{self.y(middle):.1f}" r="3" fill="{colour}"/>')
        return out


def points(rows, task, arms, field):
    """arms: [(x, name)]. -> [(x, (mean, low, high))] of those that the record has."""
    found = {row["arm"]: row["values"] for row in rows if row["task"] == task}
    return [(x, tuple(found[arm][field][k] for k in ("mean", "low", "high")))
            for x, arm in arms if arm in found and field in found[arm]]


def curves_of(summary):
    """For each panel: (log x, ticks, title, below, [(points, task, dash)])."""
    ranks, scales, kept = (1, 2, 4, 8, 16), (0, 0.25, 0.5, 1, 1.5, 2), (0, 0.5, 1)
    by_rank = [(r, f"r {r}") for r in ranks]
    by_cut = [(r, f"cut to {r}") for r in ranks]
    by_scale = [(s, f"s {s:g}") for s in scales]
    panels = [
        (True, ranks, "LoRA; dashed: all trained, cut to r", "rank",
         [("rank", by_rank, "loss", ""), ("whole", by_cut, "loss", "6 4")]),
        (False, (0, 0.5, 1, 1.5, 2), "All terms; dashed: without qk and vo", "scale s",
         [("scale", by_scale, "gated", ""), ("scale", by_scale, "without_cross", "6 4")]),
        (False, kept, "Old answers, other half; dashed: only new_new scaled", "what is kept, c",
         [("new_new", [(c, f"{arm}, {c:g}") for c in kept], "old", dash)
          for arm, dash in (("everything", ""), ("new_new", "6 4"))]),
    ]
    for log_x, ticks, title, below, lines in panels:
        curves = [(points(summary.get(name, []), task, arms, field), task, dash)
                  for name, arms, field, dash in lines for task in COLOURS]
        curves = [curve for curve in curves if curve[0]]
        if not any(dash for _, _, dash in curves):
            title = title.split(";")[0]
        yield log_x, ticks, title, below, curves


def draw(record):
    wide = (WIDTH - LEFT - RIGHT - 2 * GAP) / 3
    summary = {name: one["summary"] for name, one in record["experiments"].items()}
    panels = [panel for panel in curves_of(summary) if panel[-1]]
    whole = WIDTH - (3 - len(panels)) * (wide + GAP)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:.0f} {HEIGHT}" '
           'font-family="system-ui, sans-serif" font-size="13">'
           f'<rect width="{whole:.0f}" height="{HEIGHT}" fill="{PAPER}"/>']  # fmt: skip
    for i, (log_x, ticks, title, below, curves) in enumerate(panels):
        ys = [value for found, _, _ in curves for _, three in found for value in three]
        panel = Panel(LEFT + i * (wide + GAP), wide, ticks, ys, log_x)
        out += panel.axes(ticks, below, title)
        for found, task, dash in curves:
            out += panel.curve(found, COLOURS[task], dash)
    words = "Loss on held-out rows, nats a predicted token: mean over seeds, smallest to largest"
    out.append(text(LEFT, 24, words, INK))
    for i, (task, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * 90
        out.append(f'<path d="M{x} 42h30" stroke="{colour}" stroke-width="2.4"/>')
        out.append(text(x + 38, 46, task, INK))
    return "\n".join([*out, "</svg>\n"])


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text())))
