"""Section by section of docs/lora-experiments.md: each takes a Lab (one seed) and tasks, and returns
rows of numbers {"task", "arm", ..}."""

import numpy as np

from .. import known_answers
from . import factors as f
from .lab import LATENT_TARGETS, TARGETS, causal_numbers, compose_numbers, head_numbers

RANKS = (1, 2, 4, 8, 16)
SCALES = (0, 0.25, 0.5, 1, 1.5, 2)
KEPT = (1, 0.5, 0)
# What is learned with all matrices whole: Adam's steps are as large for each number as LoRA's, and
# there are more of them.
WHOLE_RATE = 0.001


def measured(lab, adapter, answer, base=None, causal=True):
    base = base or lab.base()
    task, heads = lab.task(answer), lab.heads(adapter, base)
    row = {"loss": lab.adapted_loss(adapter, base, task), "heads": head_numbers(heads)}
    if causal:
        row["causal"] = causal_numbers(lab.causal(adapter, base, task), heads)
    return row


def rank(lab, tasks):
    """How the rank changes what is learned, where, and whether weights tell."""
    return [{"task": t, "arm": f"r {r}", "rank": r, **measured(lab, lab.usual(t, r), t, causal=r in (1, 4, 16))}
            for t in tasks for r in RANKS]


def frozen(lab, tasks):
    """LoRA-FA: A stays the random matrix it begins as."""
    return [{"task": t, "arm": f"{arm} A, r {r}", "kind": arm, "rank": r,
             **measured(lab, lab.arm(t, {"trained": "split"}.get(arm, arm), r), t)}
            for t in tasks for r in (4, 16) for arm in ("trained", "frozen")]


def whole(lab, tasks):
    """All of q, k, v and o trained; the change cut to its best approximation of rank r."""
    rows = []
    for t in tasks:
        base = lab.base()
        adapter = lab.arm(t, "whole", "", rate=WHOLE_RATE)
        rows.append({"task": t, "arm": "whole", **measured(lab, adapter, t)})
        changes = {m: b @ a for m, (a, b) in f.read_adapter(adapter).items()}
        for r in RANKS:
            cut = adapter / f"cut{r}"
            if not (cut / "adapter_config.json").exists():
                f.write_adapter(cut, {m: f.truncated(c, r) for m, c in changes.items()}, base)
            energy = [1 - np.linalg.norm(c - b @ a) ** 2 / np.linalg.norm(c) ** 2
                      for c, (a, b) in ((changes[m], x) for m, x in f.read_adapter(cut).items())]
            rows.append({"task": t, "arm": f"cut to {r}", "rank": r, "energy": float(np.mean(energy)),
                         **measured(lab, cut, t, causal=False)})
    return rows


def rslora(lab, tasks):
    """lora_alpha stays 4: the scale is 4 / r, or with rsLoRA 4 / sqrt(r)."""
    rows = []
    for t in tasks:
        for r in (4, 16):
            for rule in ("r", "sqrt(r)"):
                name = f"{t}-{'rs' if rule != 'r' else 'a'}{r}"
                fields = {"r": r, "lora_alpha": 4, "use_rslora": "true" if rule != "r" else "false"}
                adapter = lab.usual(t) if (r, rule) == (4, "r") else lab.adapter(
                    name, lab.base(), lab.task(t), **fields)
                rows.append({"task": t, "arm": f"r {r}, alpha / {rule}",
                             "scale": 4 / (r if rule == "r" else r**0.5),
                             **measured(lab, adapter, t, causal=False)})
    return rows


def control(lab, tasks):
    """The same norms without what was learned of orientation: what every number says of chance."""
    rows = []
    for t in tasks:
        base, learned = lab.base(), lab.usual(t)
        model, adapter = f.Model(base), f.read_adapter(learned)
        places = {"learned": learned}
        for i, (arm, change) in enumerate((("turned", f.turned), ("drawn", f.drawn))):
            places[arm] = learned.parent / f"{t}-{arm}"
            if not (places[arm] / "adapter_config.json").exists():
                random = np.random.default_rng([lab.seed, known_answers.TASKS.index(t), i])
                f.write_adapter(places[arm], change(model, adapter, random), base)
        for arm, place in places.items():
            row = {"task": t, "arm": arm, **measured(lab, place, t),
                   "base_loss": lab.adapted_loss(place, base, lab.task("base")),
                   "before": lab.loss(base, lab.task(t))}
            rows.append(row | {"compose": compose_numbers(lab.compose(place, base))})
    return rows


def scale(lab, tasks):
    """The trained adapter times s. Terms of first and second order, and what the second is worth."""
    rows = []
    for t in tasks:
        base, learned = lab.base(), lab.usual(t)
        adapter = f.read_adapter(learned)
        terms = {}
        for s in SCALES:
            place = learned.parent / f"{t}-scale{s:g}"
            if not (place / "adapter_config.json").exists():
                f.write_adapter(place, adapter, base, scale=s)
            heads = lab.heads(place, base)
            terms[s] = {(h["layer"], h["circuit"], h["head"], name): term["fro"]
                        for h in heads for name, term in h["terms"].items()}
            # At s = 0 there is no change, whose shares could be taken.
            rows.append({"task": t, "arm": f"s {s:g}", "scale": s,
                         "loss": lab.adapted_loss(place, base, lab.task(t)),
                         "base_loss": lab.adapted_loss(place, base, lab.task("base")),
                         "gated": lab.gated_loss(place, base, t, {}),
                         "without_cross": lab.gated_loss(place, base, t, {"qk": 0, "vo": 0}),
                         "heads": head_numbers(heads) if s else None})
        for row in rows[-len(SCALES):]:
            row["law"] = law_error(terms[row["scale"]], terms[1.0], row["scale"])
    return rows


def law_error(found, at_one, s):
    """The largest relative difference of a term's norm from s (q, k, v, o) or s^2 (qk, vo) times that
    at 1; at 0 the largest norm."""
    if s == 0:
        return max(found.values())
    return max(abs(found[key] / (s ** (2 if key[3] in ("qk", "vo") else 1) * size) - 1)
               for key, size in at_one.items())


def half_adapter(lab, name, base, answer):
    return lab.adapter(name, base, lab.task(answer, half=True))


def new_new(lab, tasks):
    """Trained on rows of half of the symbols, where the other half's old answers stay right: does
    scaling new_new alone keep more of these than scaling everything? c is what is kept."""
    rows = []
    for t in tasks:
        base = lab.base()
        learned = half_adapter(lab, f"{t}-half", base, t)
        model, adapter = f.Model(base), f.read_adapter(learned)
        parts = learned / "new_new"
        if not (parts / "adapter" / "adapter_config.json").exists():
            f.split_at_new(model, adapter, parts)
        # The other half: the same adapter on the model whose symbols are renamed.
        other = f.write_model(learned / "other" / "whole", base, f.relabelled(model))
        if not (learned / "other" / "adapter" / "adapter_config.json").exists():
            f.split_at_new(f.Model(other), adapter, learned / "other")
        heads = head_numbers(lab.heads(learned, base))
        for c in KEPT:
            for arm in ("new_new", "cross terms", "everything"):
                place = learned / f"times{c:g}" if arm == "everything" else learned
                if arm == "everything":
                    if not (place / "adapter_config.json").exists():
                        f.write_adapter(place, adapter, base, scale=c)
                gates = {} if arm == "everything" else {"qk": c, "vo": c}
                split = arm == "new_new"
                here = (parts / "adapter", parts / "base") if split else (place, base)
                there = (learned / "other" / "adapter", learned / "other" / "base") if split else (
                    f.write_adapter(place / "renamed", f.read_adapter(place), other), other)
                rows.append({"task": t, "arm": arm, "kept": c,
                             "learned": lab.gated_loss(*here, t, gates, half=True),
                             "old": lab.gated_loss(*there, "base", gates, half=True),
                             "spread": lab.gated_loss(*there, t, gates, half=True), "heads": heads})
    return rows


def continual(lab, tasks):
    """A on rows of the first half of the symbols, then B on rows of the second, as a second adapter on
    the model with the first merged; beside both trained on the base and added."""
    rows = []
    pairs = [(a, b) for a, b in (("skip", "ov"), ("ov", "skip"), ("skip", "rev"), ("rev", "skip"))
             if a in tasks and b in tasks]
    for a, b in pairs:
        base = lab.base()
        first = half_adapter(lab, f"{a}-half", base, a)
        renamed = lambda folder, source: folder if (folder / "config.json").exists() else f.write_model(
            folder, base, f.relabelled(f.Model(source)))
        place = lab.here / f"{a}-then-{b}"
        after_a = lab.model(first / "merged", base, first)
        start = renamed(place / "start", after_a)
        second = half_adapter(lab, f"{a}-then-{b}/second", start, b)
        alone = half_adapter(lab, f"{b}-other-half", renamed(lab.here / "base-renamed", base), b)
        models = {"A": after_a, "A, then B": lab.model(place / "both", after_a, second),
                  "A + B": lab.model(place / "sum", base, first, alone),
                  "B": lab.model(alone / "unnamed", base, alone), "base": base}
        overlap = {"A, then B": known_answers.spearman(*sizes_of(lab, first, base, second, start)),
                   "A + B": known_answers.spearman(
                       *sizes_of(lab, first, base, alone, lab.here / "base-renamed"))}
        for arm, model in models.items():
            other = lab.here / "base-renamed" if arm == "base" else renamed(model / "renamed", model)
            rows.append({"task": f"{a}, {b}", "arm": arm,
                         "A": lab.loss(model, lab.task(a, half=True)),
                         "B": lab.loss(other, lab.task(b, half=True)), "overlap": overlap.get(arm)})
    return rows


def sizes_of(lab, first, base, second, other):
    sizes = [{(h["layer"], h["circuit"], h["head"]): h["rel_fro"] for h in lab.heads(adapter, on)}
             for adapter, on in ((first, base), (second, other))]
    keys = sorted(sizes[0])
    return [sizes[0][key] for key in keys], [sizes[1][key] for key in keys]


def variants(lab, tasks):
    """The base with two key/value heads, and with latents: these take 1000 steps, so seed 0 alone."""
    rows = []
    for kind in ("mha", "gqa", "mla") if lab.seed == 0 else ("mha", "gqa"):
        base = lab.base(kind)
        for t in tasks:
            adapter = lab.usual(t) if kind == "mha" else lab.adapter(
                f"{t}-{kind}", base, lab.task(t), LATENT_TARGETS if kind == "mla" else TARGETS)
            row = {"task": t, "arm": kind, "base_loss": lab.loss(base, lab.task("base")),
                   "before": lab.loss(base, lab.task(t)),
                   "parameters": sum(a.size + b.size for a, b in f.read_adapter(adapter).values())}
            # The causal harness reads no latents (docs/lora-causal.md).
            rows.append(row | measured(lab, adapter, t, base, causal=kind != "mla"))
    return rows


def fused(lab, tasks):
    """One A for q, k and v, as an adapter on a fused matrix has; r 6 has more numbers than split r 4."""
    rows = []
    for t in tasks:
        for arm, r in (("split", 4), ("fused", 4), ("fused", 6)):
            adapter = lab.arm(t, arm, r)
            stored = f.read_adapter(adapter)
            count = sum(b.size + (0 if arm == "fused" and m.split(".")[-1] in ("k_proj", "v_proj") else a.size)
                        for m, (a, b) in stored.items())
            rows.append({"task": t, "arm": f"{arm}, r {r}", "parameters": count, **measured(lab, adapter, t)})
    return rows


EXPERIMENTS = {"rank": rank, "frozen": frozen, "whole": whole, "rslora": rslora, "control": control,
               "scale": scale, "new_new": new_new, "continual": continual, "variants": variants,
               "fused": fused}
