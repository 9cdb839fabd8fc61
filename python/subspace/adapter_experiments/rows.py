"""Rows of the known-answer tasks, as src/train/induction.h draws them: of the same law, not the same."""

import numpy as np


def rows(task, count, random):
    """The object of task.json -> tokens [count, 1 + length + repeat], answers [count, repeat]."""
    symbols, length, repeat = task.get("symbols", 32), task.get("length", 16), task.get("repeat", 8)
    p = random.permuted(np.tile(np.arange(1, symbols + 1), (count, 1)), axis=1)[:, :length]
    first = random.integers(task.get("first", 2), task.get("last", 6) + 1, count)
    at = first[:, None] + np.arange(repeat)
    take = lambda shift: np.take_along_axis(p, at + shift, 1)
    tokens = np.concatenate([np.zeros((count, 1), int), p, take(0)], 1)
    answer = task.get("answer", "base")
    wanted = take({"skip": 2, "rev": -1}.get(answer, 1))
    if answer == "ov":
        other = np.where(wanted % 2 == 1, wanted + 1, wanted - 1)
        wanted = np.where(wanted <= 2 * task.get("swaps", 6), other, wanted)
    return tokens, wanted
