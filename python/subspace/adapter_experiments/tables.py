"""Rows over seeds: mean, smallest, largest; and as tables of Markdown."""

import numpy as np

LOSS = ("loss", "loss")
TOLD = ("causal.spearman", "Spearman of rel_fro")
# Experiment -> columns: (field, heading). A heading ending in % is of a share.
COLUMNS = {
    "rank": [LOSS, ("heads.QK.rel_fro", "rel_fro QK"), ("heads.VO.rel_fro", "VO"),
             ("heads.QK.erank99", "erank99 of dM, QK"), ("heads.VO.erank99", "VO"),
             ("causal.share.L0 QK", "L0 QK %"), ("causal.share.L0 VO", "L0 VO %"),
             ("causal.share.L1 QK", "L1 QK %"), ("causal.share.L1 VO", "L1 VO %"), TOLD],
    "frozen": [LOSS, ("heads.QK.rel_fro", "rel_fro QK"), ("heads.VO.rel_fro", "VO"),
               ("heads.QK.kernel_z", "kernel QK, sd"), ("heads.VO.kernel_z", "VO"),
               ("heads.QK.new_new", "new_new QK %"), ("heads.VO.new_new", "VO %"), TOLD],
    "whole": [LOSS, ("energy", "energy kept %"), ("heads.QK.rel_fro", "rel_fro QK"),
              ("heads.VO.rel_fro", "VO"), ("heads.QK.erank99", "erank99 of dM, QK"),
              ("heads.VO.erank99", "VO"), TOLD],
    "rslora": [("scale", "scale"), LOSS, ("heads.QK.rel_fro", "rel_fro QK"), ("heads.VO.rel_fro", "VO"),
               ("heads.QK.cross_energy", "qk %"), ("heads.VO.cross_energy", "vo %")],
    "scale": [LOSS, ("base_loss", "old answers"), ("gated", "loss, rows of forward"),
              ("without_cross", "without qk, vo"), ("heads.QK.cross_energy", "qk %"),
              ("heads.VO.cross_energy", "vo %"), ("law", "off the law by")],
    "new_new": [("learned", "new answers"), ("old", "old, other half"), ("spread", "new, other half")],
    "continual": [("A", "A"), ("B", "B"), ("overlap", "Spearman of the two rel_fro")],
    "variants": [("base_loss", "base, old task"), ("before", "new task before"), LOSS,
                 ("parameters", "parameters"), ("heads.QK.rel_fro", "rel_fro QK"), ("heads.VO.rel_fro", "VO"),
                 ("causal.share.L0 QK", "L0 QK %"), ("causal.share.L0 VO", "L0 VO %"),
                 ("causal.share.L1 QK", "L1 QK %"), ("causal.share.L1 VO", "L1 VO %"), TOLD],
    "fused": [("parameters", "parameters"), LOSS, ("heads.QK.rel_fro", "rel_fro QK"),
              ("heads.VO.rel_fro", "VO"), ("heads.QK.cross_energy", "qk %"),
              ("heads.VO.cross_energy", "vo %"), TOLD],
}
# The control has arms as columns: a line is a number of the program.
CONTROL = [
    ("before", "loss of the base"), LOSS, ("base_loss", "loss on the old task"),
    *((f"heads.{c}.{name}", f"{c} {name}") for c in ("QK", "VO") for name in (
        "rel_fro", "rel_spec", "cos", "gain", "cross_energy", "in_in", "new_new", "align_read", "align_write",
        "kernel_z", "erank99", "amplification", "eigen_change", "intruder_vec", "intruder_sub")),
    *((f"compose.{name}", f"compose {name}") for name in (
        "rho", "rho_most", "cos", "change_of_S", "lift_bn", "lift_nb", "lift_nn", "found")),
    ("causal.spearman", "Spearman of rel_fro and effects"),
]


def flat(row, before=""):
    """{"heads": {"QK": {"rel_fro": 1}}} -> {"heads.QK.rel_fro": 1}; numbers only."""
    out = {}
    for key, value in row.items():
        if isinstance(value, dict):
            out |= flat(value, f"{before}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[before + key] = float(value)
    return out


def summary(rows):
    """[{"task", "arm", field: {"mean", "low", "high", "n"}}], in the order of the first seed's rows."""
    groups = {}
    for row in rows:
        arm = f"{row['arm']}, {row['kept']:g}" if "kept" in row else row["arm"]
        groups.setdefault((row["task"], arm), []).append(flat(row))
    out = []
    for (task, arm), mine in groups.items():
        values = {}
        for field in dict.fromkeys(field for row in mine for field in row):
            if field in ("seed", "kept", "rank"):
                continue
            found = np.array([row[field] for row in mine if field in row])
            values[field] = {"mean": found.mean(), "low": found.min(), "high": found.max(), "n": len(found)}
        out.append({"task": task, "arm": arm, "values": values})
    return out


def short(x):
    size = abs(x)
    if size >= 100 or (x == round(x) and size >= 1):
        return f"{x:.0f}"
    if size >= 0.01 or x == 0:
        return f"{x:.2f}" if size < 10 else f"{x:.1f}"
    return f"{x:.4f}" if size >= 0.0005 else f"{x:.0e}"


def text(value, percent=False):
    """Mean [smallest, largest]."""
    if value is None:
        return "-"
    middle, low, high = (100 * value[k] if percent else value[k] for k in ("mean", "low", "high"))
    show = (lambda x: f"{round(x) + 0}") if percent else short
    return show(middle) if show(low) == show(high) else f"{show(middle)} [{show(low)}, {show(high)}]"


def table(headings, lines):
    return "\n".join(["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|",
                      *("| " + " | ".join(line) + " |" for line in lines)])


def control_table(rows):
    """A line a number, over all tasks together; a column an arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = []
    for field, heading in CONTROL:
        cells = []
        for arm in arms:
            found = [row["values"][field] for row in rows if row["arm"] == arm and field in row["values"]]
            cells.append(text({"mean": np.mean([v["mean"] for v in found]),
                               "low": min(v["low"] for v in found),
                               "high": max(v["high"] for v in found)} if found else None))
        lines.append([heading, *cells])
    return table(["", *arms], lines)


def experiment_table(name, rows):
    if name == "control":
        return control_table(rows)
    columns = [c for c in COLUMNS[name] if any(c[0] in row["values"] for row in rows)]
    lines = [[row["task"], row["arm"], *(text(row["values"].get(field), heading.endswith("%"))
                                         for field, heading in columns)] for row in rows]
    return table(["task", "", *(heading for _, heading in columns)], lines)


def print_tables(summaries):
    for name, rows in summaries.items():
        print(f"## {name}\n\n{experiment_table(name, rows)}\n")
