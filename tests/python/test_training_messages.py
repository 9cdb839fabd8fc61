"""What the training commands say of words and fields that they cannot take."""

import json

import pytest
from oracle.program import run
from test_training import DECODER


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "c", "--data", "d", "--out", "o", "--steps", "0"), "--steps: '0'; expected a whole number from 1"),
        (("train", "c", "--data", "d", "--out", "o", "--steps", "1.5"), "'1.5'; expected a whole number from 1"),
        (("finetune", "m", "--data", "d", "--out", "o", "--epochs", "0"), "--epochs: '0'; expected a number above 0"),
        (("finetune", "m", "--data", "d", "--out", "o", "--epochs", "nan"), "'nan'; expected a number above 0"),
        (("finetune", "m", "--data", "d", "--out", "o", "--seeds", "0,a"), "'a'; expected a whole number from 0"),
    ],
)
def test_wrong_numbers_are_answered_with_what_is_expected(words, says, program):
    result = run(program, *words)
    assert result.returncode == 2 and says in result.stderr, result.stderr


def sweep(program, folder, **fields):
    (folder / "model.json").write_text(json.dumps(DECODER))
    (folder / "sweep.json").write_text(json.dumps(fields))
    return run(program, "sweep", folder / "sweep.json", "--out", folder / "out")


def test_an_unknown_field_of_a_sweep_is_one_of_a_sweep(program, tmp_path):
    result = sweep(program, tmp_path, config="model.json", fourier=1)
    assert result.returncode == 1
    assert "a sweep has no field 'fourier'; docs/training.md lists them" in result.stderr
    result = sweep(program, tmp_path, config="model.json", seedz=[1])
    assert "did you mean 'seeds'?" in result.stderr


def test_a_configuration_that_is_not_there_is_named_with_the_sweep(program, tmp_path):
    result = sweep(program, tmp_path, config="other.json")
    assert result.returncode == 1
    for word in ("sweep.json", "'other.json'", str(tmp_path / "other.json"), "relative to the sweep"):
        assert word in result.stderr


def test_a_wrong_value_is_said_to_come_from_where_it_was_set(program, tmp_path):
    result = sweep(program, tmp_path, config="model.json", set={"decay": "stairs"}, measure="layer_time")
    assert result.returncode == 1 and "('decay' comes from" in result.stderr and "sweep.json" in result.stderr
    words = ("train", tmp_path / "model.json", "--data", tmp_path, "--out", tmp_path / "run")
    result = run(program, *words, "--set", "decay=stairs")
    assert "('decay' comes from --set decay=stairs)" in result.stderr
    (tmp_path / "model.json").write_text(json.dumps(dict(DECODER, train=dict(DECODER["train"], decay="stairs"))))
    result = run(program, *words)
    assert "'decay'" in result.stderr and "comes from" not in result.stderr
