"""The shipped tiny ETHOS trains: its loss falls, its experts' use is reported, a resumed run is the
undisturbed one; and rivals at equal cost are made from it."""

import json
import math
import shutil
from pathlib import Path

import pytest

from oracle.program import run
from test_training import lines, losses, prepare, train

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny-ethos.json"
# Short rows of few words instead of GPT-2's.
SHORT = ["--set", "vocab_size=45", "--set", "max_position_embeddings=16", "--set", "log_every=5",
         "--set", "learning_rate=0.01", "--set", "batch_size=32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("ethos") / "text", "decoder")


@pytest.fixture(scope="module")
def whole(data, program, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    result = train(program, TINY, data, out, *SHORT, "--steps", 60, "--set", "checkpoint_every=30")
    assert result.returncode == 0, result.stderr
    return out


def test_its_loss_falls(whole):
    found = [loss for _, loss, _, _ in losses(whole)]
    # 40 words, of which nine in ten are told by the one before.
    assert found[0] > 3.4
    assert found[-1] < 0.7 * found[0]


def test_the_use_of_its_experts_is_reported(whole):
    logged = [line for line in lines(whole) if "loss" in line]
    for line in logged:
        assert sorted(line["experts"]) == ["1", "2"]
        for layer in line["experts"].values():
            parts = [(layer["used"], layer["entropy"], layer["kl_uniform"])]
            heads = layer["heads"]
            assert len(heads["used"]) == 2
            parts += zip(heads["used"], heads["entropy"], heads["kl_uniform"])
            for used, entropy, kl in parts:
                assert 0 < used <= 1
                assert math.isclose(entropy + kl, math.log(1024), abs_tol=1e-9)
                # So few experts cannot be more even than all of them alike.
                assert entropy <= math.log(used * 1024) + 1e-9
            assert layer["used"] >= max(heads["used"])


def test_resumed_it_ends_as_undisturbed(whole, data, program, tmp_path):
    out = tmp_path / "run"
    more = [*SHORT, "--set", "checkpoint_every=30"]
    first = train(program, TINY, data, out, *more, "--steps", 60, "--set", "keep_checkpoints=5")
    assert first.returncode == 0, first.stderr
    shutil.rmtree(out / "checkpoints" / "60")  # as if killed on the way there
    second = train(program, TINY, data, out, *more, "--steps", 60, "--set", "keep_checkpoints=5",
                   "--resume")
    assert second.returncode == 0, second.stderr
    assert "goes on behind step 30" in second.stderr
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    experts = [line["experts"] for line in lines(out) if "loss" in line]
    assert experts == [line["experts"] for line in lines(whole) if "loss" in line]


@pytest.mark.parametrize("kind", ["dense", "moe", "peer", "molae"])
def test_a_rival_at_equal_compute_trains(kind, data, program, tmp_path):
    result = train(program, TINY, data, tmp_path / "run", *SHORT, "--steps", 5, "--kind", kind,
                   "--match", "flops")
    assert result.returncode == 0, result.stderr
    assert "of the reference's FLOPs" in result.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["feed_forward"] == kind
    logged = [line for line in lines(tmp_path / "run") if "loss" in line][-1]
    assert ("experts" in logged) == (kind != "dense")


def test_match_says_the_papers_size(program):
    result = run(program, "match", ROOT / "configs" / "ethos-paper.json")
    assert result.returncode == 0, result.stderr
    assert "743979008 parameters (744 M)" in result.stdout


def test_match_and_kind_go_together(data, program, tmp_path):
    result = train(program, TINY, data, tmp_path / "run", "--kind", "peer")
    assert result.returncode == 2
    assert "--match" in result.stderr
