"""scripts/experiment.py: every arm and seed trained and fine-tuned, stopped and gone on with, its record;
the comparison of experts without fine-tuning."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_finetune import ENCODER, WORDS, sst2, vocabulary
from prepare_tool import prepare

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[(i * k) % 40] for i in range(9)) for k in range(1, 200)))
    prepare("text", "--input", folder / "text.txt", "--valid-fraction", "0.2", "--tokenizer", vocabulary(folder),
            "--documents", "line", "--length", 16, "--out", folder / "text")
    sst2(folder, out="sst2")
    (folder / "configs").mkdir()
    train = dict(batch_size=8, steps=99, learning_rate=0.01)
    dense = {key: value for key, value in ENCODER.items() if key != "o_lora_rank"}
    for name, model in (("encoder-mla", dense), ("encoder-mla-o", ENCODER)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(dict(model, train=train)))
    return folder


def command(lab, out, *more):
    return [sys.executable, ROOT / "scripts" / "experiment.py", "--tokens", "4000", "--seeds", "0,1", "--arms",
            "MLA,MLA-o", "--data", lab / "text", "--sst2", lab / "sst2", "--out", out, "--jobs", "2", "--configs",
            lab / "configs", "--device", "cpu", "--epochs", "1", "--record", out / "record.json", *more]


def environment(program):
    return dict(os.environ, SUBSPACE_PROGRAM=program, CUDA_VISIBLE_DEVICES="")


def run(program, words):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600, env=environment(program))


def test_all_runs_and_their_record(program, lab, tmp_path):
    out = tmp_path / "out"
    result = run(program, command(lab, out))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("SST-2") == 5 and result.stdout.count("seed 1") == 2  # a line a run, the table's head
    record = json.loads((out / "record.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["MLA", "MLA-o"]
    for arm in record["arms"]:
        assert [x["seed"] for x in arm["runs"]] == [0, 1]
        table = arm["table"]
        values = [x["sst2_accuracy"] for x in arm["runs"]]
        assert table["sst2_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
        assert table["sst2_accuracy"]["half_width_95"] == pytest.approx(12.7062 * abs(values[0] - values[1]) / 2, rel=1e-6)
        for one in arm["runs"]:
            assert one["tokens"] == pytest.approx(4000, rel=0.1)
            assert one["curve"][-1][0] == one["tokens"] and len(one["held_out"]) >= 10
            assert one["held_out"][-1][1] == one["loss"]
    assert record["arms"][0]["parameters"] > record["arms"][1]["parameters"]
    before = {path: path.read_bytes() for path in out.glob("runs/*/model.safetensors")}
    assert len(before) == 4
    assert run(program, command(lab, out)).returncode == 0  # nothing is left to do
    assert {path: path.read_bytes() for path in before} == before


def test_stopped_and_gone_on_with_it_ends_the_same(program, lab, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    process = subprocess.Popen(list(map(str, command(lab, out))), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=environment(program))
    deadline = time.time() + 300
    while not list(out.glob("runs/*/checkpoints/[0-9]*/state.json")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 130), text
    assert run(program, command(lab, out)).returncode == 0
    assert run(program, command(lab, other)).returncode == 0
    numbers = [[[(x["loss"], x["sst2_accuracy"]) for x in arm["runs"]]
                for arm in json.loads((folder / "record.json").read_text())["arms"]] for folder in (out, other)]
    assert numbers[0] == numbers[1]


def test_a_run_that_fails_is_named_and_the_others_go_on(program, lab, tmp_path):
    out = tmp_path / "out"
    broken = tmp_path / "configs"
    broken.mkdir()
    for path in (lab / "configs").iterdir():
        (broken / path.name).write_text(path.read_text())
    model = json.loads((broken / "encoder-mla.json").read_text())
    (broken / "encoder-mla.json").write_text(json.dumps(dict(model, vocab_size=10)))
    result = run(program, [*command(lab, out), "--configs", broken])
    assert result.returncode == 1
    assert result.stdout.count("FAILED") == 2 and "vocab_size" in result.stdout
    record = json.loads((out / "record.json").read_text())
    assert [len(arm["runs"]) for arm in record["arms"]] == [0, 2]


def test_experts_are_compared_without_fine_tuning(program, lab, tmp_path):
    configs, out = tmp_path / "configs", tmp_path / "out"
    configs.mkdir()
    prepare("text", "--input", lab / "text.txt", "--valid-fraction", "0.2", "--tokenizer", vocabulary(lab), "--documents",
            "line", "--length", 16, "--style", "decoder", "--special", "eos=[SEP]", "--pack", "--out", tmp_path / "text")
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=ENCODER["vocab_size"],
                 max_position_embeddings=16, intermediate_size=32, tie_word_embeddings=True,
                 model_type="subspace_decoder", hidden_act="swiglu", train=dict(batch_size=8, steps=9, learning_rate=0.01))
    experts = dict(first_k_dense_replace=1, num_experts=64, num_expert_heads=2, num_experts_per_head=4, query_dim=16)
    (configs / "dense-small.json").write_text(json.dumps(small))
    (configs / "ethos-small.json").write_text(json.dumps(
        dict(small, **experts, feed_forward="ethos", expert_latent_dim=8, expert_hidden_dim=32)))
    words = [sys.executable, ROOT / "scripts" / "experiment.py", "--kind", "experts", "--tokens", "4000", "--seeds", "0,1",
             "--data", tmp_path / "text", "--out", out, "--configs", configs, "--device", "cpu", "--record", out / "record.json"]
    result = run(program, [*words, "--arms", "ETHOS,dense"])
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((out / "record.json").read_text())
    assert record["benchmark"] == "experiment-experts" and "sst2" not in record
    ethos, dense = record["arms"]
    assert (ethos["arm"], dense["arm"]) == ("ETHOS", "dense")
    assert 0 < ethos["table"]["experts_used"]["mean"] <= 1 and "experts_used" not in dense["table"]
    for one in ethos["runs"] + dense["runs"]:
        assert one["curve"][-1] == [one["tokens"], one["curve"][-1][1], round(one["seconds"], 2)]
        assert one["held_out"][-1][:2] == [one["tokens"], one["loss"]]
    for one in ethos["runs"]:
        used, kl = one["experts"]["used"], one["experts"]["kl_uniform"]
        assert [x[0] for x in used] == [x[0] for x in kl] and len(used) >= len(one["curve"]) - 1
        assert used[-1][1] == pytest.approx(one["experts_used"], abs=1e-4)  # the model's one layer of experts
        assert kl[-1][1] == pytest.approx(one["experts_kl_uniform"], abs=1e-4)
    assert "experts" not in dense["runs"][0]
    assert not (out / "sst2").exists()
    refused = run(program, [*words, "--arms", "ETHOS,MLA"])
    assert refused.returncode == 2 and "--arms MLA" in refused.stderr


def test_the_use_of_experts_is_that_of_whole_intervals():
    """A last line of fewer steps saw less text: its share of experts used says nothing beside the others'."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import experiment

    def line(step, *used):
        return {"step": step, "tokens": 10 * step,
                "experts": {str(i): {"used": x, "kl_uniform": 2 * x} for i, x in enumerate(used)}}

    steps = [line(50, 1.0, 0.5), line(100, 0.75, 0.25), line(102, 0.1, 0.1)]
    assert experiment.expert_usage(steps) == {"experts_used": 0.5, "experts_kl_uniform": 1.0}
    assert experiment.expert_curve(steps) == {"experts": {
        "used": [[500, 1.0, 0.5], [1000, 0.75, 0.25]], "kl_uniform": [[500, 2.0, 1.0], [1000, 1.5, 0.5]]}}
    assert experiment.expert_usage(steps[2:])["experts_used"] == pytest.approx(0.1)  # nothing whole: what there is
    assert experiment.expert_curve([{"step": 50, "tokens": 500}]) == experiment.expert_usage([{"step": 50}]) == {}
