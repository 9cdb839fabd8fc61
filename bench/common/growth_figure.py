"""The picture of how the time of a layer grows, from the record of bench/ethos.py: one SVG file.

    ./run python bench/common/growth_figure.py bench/results/ethos-h200.json docs/images/ethos-growth.svg
"""

import json
import math
import sys
from html import escape
from pathlib import Path

INK, SOFT, GRID, PAPER = "#1b1f24", "#59616b", "#e9ebec", "#ffffff"
# Okabe and Ito's colours, as on the pages; lines also differ by their dashes.
STYLES = {
    "experts, subspace": ("#0072B2", ""),
    "layer, subspace": ("#0072B2", "7 4"),
    "experts, table + gather, eager": ("#D55E00", ""),
    "layer, table + gather, eager": ("#D55E00", "7 4"),
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, GAP = 1000, 420, 64, 16, 76, 52, 76


def short(value):
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return str(value)


class Panel:
    """One pair of logarithmic axes."""

    def __init__(self, left, width, xs, ys):
        self.left, self.width = left, width
        self.x0, self.x1 = math.log(min(xs)), math.log(max(xs))
        # Whole steps of 1, 2, 5 around what is drawn.
        self.ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
        low = max(t for t in self.ticks if t <= min(ys))
        high = min(t for t in self.ticks if t >= max(ys))
        self.ticks = [t for t in self.ticks if low <= t <= high]
        self.y0, self.y1 = math.log(low), math.log(high)

    def x(self, value):
        return self.left + self.width * (math.log(value) - self.x0) / (self.x1 - self.x0 or 1)

    def y(self, value):
        tall = HEIGHT - TOP - BOTTOM
        return HEIGHT - BOTTOM - tall * (math.log(value) - self.y0) / (self.y1 - self.y0 or 1)

    def axes(self, xs, title):
        out = []
        for tick in self.ticks:
            y = self.y(tick)
            out.append(f'<path d="M{self.left} {y:.1f}h{self.width}" stroke="{GRID}"/>')
            out.append(text(self.left - 8, y + 4, f"{tick:g}", SOFT, "end"))
        for x in xs:
            out.append(text(self.x(x), HEIGHT - BOTTOM + 18, short(x), SOFT, "middle"))
        out.append(text(self.left + self.width / 2, HEIGHT - 12, title, INK, "middle"))
        return out


def text(x, y, words, colour, anchor="start"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">'
            f"{escape(words)}</text>")  # fmt: skip


def line(panel, points, style):
    colour, dash = style
    path = " ".join(f"{panel.x(x):.1f},{panel.y(y):.1f}" for x, y in points)
    out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.4" '
           f'stroke-dasharray="{dash}"/>']  # fmt: skip
    return out + [f'<circle cx="{panel.x(x):.1f}" cy="{panel.y(y):.1f}" r="3.4" fill="{colour}"/>'
                  for x, y in points]  # fmt: skip


def curves_of(rows, over):
    """name -> [(x, us a token)], of the rows that came to an end."""
    found = {}
    for row in rows:
        if row["name"] in STYLES and "us_per_token" in row:
            found.setdefault(row["name"], []).append((row[over], row["us_per_token"]))
    return {name: sorted(points) for name, points in found.items()}


def draw(record):
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="system-ui, sans-serif" font-size="13">'
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>']  # fmt: skip
    wide = (WIDTH - LEFT - RIGHT - GAP) / 2
    panels = (("growth_experts", "experts", "experts (32,768 tokens)" if record["device"] != "cpu" else "experts"),
              ("growth_tokens", "tokens", "tokens of a pass"))  # fmt: skip
    for i, (part, over, title) in enumerate(panels):
        curves = curves_of(record["parts"].get(part, []), over)
        if not curves:
            continue
        xs = sorted({x for points in curves.values() for x, _ in points})
        ys = [y for points in curves.values() for _, y in points]
        panel = Panel(LEFT + i * (wide + GAP), wide, xs, ys)
        out += panel.axes(xs, title)
        for name, points in curves.items():
            out += line(panel, points, STYLES[name])
    out.append(text(LEFT, 20, f"Microseconds a token, forward and backward, {record['device']}", INK))
    for i, (name, (colour, dash)) in enumerate(STYLES.items()):
        x, y = LEFT + (i % 2) * 330, 42 + (i // 2) * 20
        out.append(f'<path d="M{x} {y - 4}h34" stroke="{colour}" stroke-width="2.4" '
                   f'stroke-dasharray="{dash}"/>')  # fmt: skip
        out.append(text(x + 42, y, name.replace("table + gather, eager", "PyTorch"), INK))
    return "\n".join([*out, "</svg>\n"])


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text())))
