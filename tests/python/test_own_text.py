"""What the documents tell a newcomer to do with a text file of one's own, done as written."""

import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from oracle.program import run
from prepare_tool import Data, prepare

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the river cold stone of people small town walked home rain bread songs children ships winter".split()


def commands(document):
    """The document's commands from the first on mine.txt to the first on files that a newcomer does not have."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?\./run .*$", text, re.MULTILINE)
    start = next(i for i, line in enumerate(lines) if "--input mine.txt" in line)
    found = []
    for line in lines[start:]:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "python" and "mine.txt" not in words:
            break
        found.append(words)
    return found


def own_text(folder):
    """A few hundred lines in paragraphs, and a vocabulary as BERT's is written."""
    draw = random.Random(4)
    paragraphs = [[" ".join(draw.choice(WORDS) for _ in range(12)).capitalize() + "." for _ in range(draw.randint(2, 5))]
                  for _ in range(60)]
    (folder / "mine.txt").write_text("\n\n".join("\n".join(lines) for lines in paragraphs) + "\n")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]) + "\n")


@pytest.mark.parametrize("style, length", [("decoder", 128), ("encoder", 64)])
def test_perplexity_of_a_word_spreads_the_loss_over_words(program, tmp_path, style, length):
    own_text(tmp_path)
    prepare("text", "--input", tmp_path / "mine.txt", "--documents", "blank", "--valid-fraction", "0.1", "--tokenizer",
            "bytes", "--style", style, "--length", length, "--out", tmp_path / "data")
    made = run(program, "init", ROOT / "configs" / f"tiny-{style}-mla-o.json", "--out", tmp_path / "model")
    assert made.returncode == 0, made.stderr
    done = run(program, "--json", "--device", "cpu", "--threads", 1, "eval", tmp_path / "model", "--data",
               tmp_path / "data")
    assert done.returncode == 0, done.stderr
    found, valid = json.loads(done.stdout), Data(tmp_path / "data").meta["splits"]["valid"]
    # Bytes: a word is several tokens, and the end of a document is no text.
    assert valid["words"] * 3 < valid["text_tokens"] < valid["tokens"]
    assert found["word_perplexity"] == pytest.approx(
        math.exp(found["loss"] * valid["text_tokens"] / valid["words"]), rel=1e-9)


@pytest.mark.parametrize("document, at_least", [("README.md", 6), ("docs/training.md", 3), ("docs/data.md", 4)])
def test_it_works_as_written(program, tmp_path, document, at_least):
    own_text(tmp_path)
    # A checkout has these names, among them a file `run`: what is to be made may not be called that.
    for name in ("configs", "run"):
        (tmp_path / name).symlink_to(ROOT / name)
    starts = {"python": [sys.executable], "subspace": [str(Path(program).resolve())]}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    found = commands(document)
    assert len(found) >= at_least
    for name, *arguments in found:
        short = ["--steps", "3"] if arguments[0] == "train" else []
        done = subprocess.run([*starts[name], *arguments, *short], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, timeout=600)
        assert done.returncode == 0, (arguments, done.stderr)
        for option, value in zip(arguments, arguments[1:]):
            assert option != "--out" or (tmp_path / value).exists(), value
