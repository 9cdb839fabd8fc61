"""Runs that are disturbed: killed, interrupted, out of space, robbed of their files. What is done is
kept, nothing half written has a final name, and going on gives the bits of an undisturbed run."""

import json
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest

LAYERS = 12
CONFIG = dict(model_type="llama", hidden_size=360, num_hidden_layers=LAYERS, num_attention_heads=9,
              num_key_value_heads=3, head_dim=40, intermediate_size=8, vocab_size=8,
              rms_norm_eps=1e-6)
RESULTS = ("spectra.safetensors", "ranks.csv")


def command(program, model, out, *options):
    return [program, "--json", "--device", "cpu", "--threads", "1", "spectra", str(model),
            "--out", str(out), *options]


def run(*arguments, status=0, **how):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **how)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def finished(out):
    return sorted(int(p.stem) for p in (out / "layers").glob("*.json"))


def until(condition, process, seconds=120):
    """Waits for a condition while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def whole_or_absent(out):
    """Every file under a final name can be read to its end."""
    from safetensors.numpy import load_file

    for path in out.rglob("*.safetensors"):
        assert all(values.size for values in load_file(path).values())
    for path in out.rglob("*.json"):
        json.loads(path.read_text())


@pytest.fixture(scope="module")
def model(program, tmp_path_factory):
    """One shard a layer."""
    folder = tmp_path_factory.mktemp("lasting")
    (folder / "wanted.json").write_text(json.dumps(CONFIG))
    subprocess.run([program, "synth", folder / "wanted.json", "--out", folder / "model"],
                   check=True, capture_output=True)
    assert len(list((folder / "model").glob("*.safetensors"))) == LAYERS
    return folder / "model"


@pytest.fixture(scope="module")
def whole(program, model, tmp_path_factory):
    """The results of a run that nothing disturbed, and the seconds it took."""
    out = tmp_path_factory.mktemp("whole")
    begun = time.monotonic()
    run(program, model, out)
    return out, time.monotonic() - begun


@pytest.fixture
def mine(model, tmp_path):
    """A copy of the model to spoil."""
    return shutil.copytree(model, tmp_path / "model")


def same_as(whole, out):
    for name in RESULTS:
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole[0], out)]
    assert summaries[0]["layers"] == summaries[1]["layers"]
    assert not list(out.rglob("*.partial.*"))


def test_killed_again_and_again_gives_the_same_bits(program, model, whole, tmp_path):
    out = tmp_path / "out"
    chance = random.Random(20250711)
    kills, kept = 0, []
    # Each time a little longer, so that it ends; the first are killed before anything is done.
    for attempt in range(60):
        process = start(program, model, out, *(["--resume"] if out.exists() else []))
        try:
            process.communicate(timeout=chance.uniform(0.1, 0.5) * whole[1] * (1 + attempt / 8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        if out.exists():
            whole_or_absent(out)
            kept.append(len(finished(out)) if (out / "layers").exists() else 0)
    assert process.returncode == 0 and kills >= 3, (kills, kept)
    assert kept == sorted(kept), f"layers were lost: {kept}"
    same_as(whole, out)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_layers_and_is_status_130(program, model, whole, tmp_path, sent):
    out = tmp_path / "out"
    process = start(program, model, out)
    until(lambda: finished(out), process)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["error"]["code"] == "interrupted" and "--resume" in stderr
    done = finished(out)
    assert 0 < len(done) < LAYERS and not (out / "summary.json").exists()
    assert not list(out.rglob("*.partial.*"))
    process = start(program, model, out, "--resume")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and f"{len(done)} of {LAYERS} layers were done" in stderr
    same_as(whole, out)


def test_two_runs_into_one_folder(program, model, whole, tmp_path):
    out = tmp_path / "out"
    first = start(program, model, out)
    until(lambda: finished(out), first)
    error = run(program, model, out, "--resume", status=1)["error"]
    assert first.poll() is None, "the first run ended too early to be in the way"
    assert error["code"] == "busy" and str(out) in error["message"]
    assert f"process {first.pid}" in error["message"]
    assert run(program, model, out, "--force", status=1)["error"]["code"] == "busy"
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 0, stderr
    same_as(whole, out)


@pytest.mark.parametrize("what", ["a layer", "the joined file"])
def test_a_full_disk(program, model, whole, tmp_path, what):
    """A limit on the size of files stands for a full disk: writing fails half way through one."""
    part = (whole[0] / "layers" / "0.safetensors").stat().st_size
    limit = part // 2 if what == "a layer" else 3 * part
    out = tmp_path / "out"

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    error = run(program, model, out, status=1, preexec_fn=small_files)["error"]
    spoiled = "layers/0.safetensors" if what == "a layer" else "spectra.safetensors"
    assert error["code"] == "io" and str(out / spoiled) in error["message"]
    assert "cannot be written" in error["message"]
    assert finished(out) == ([] if what == "a layer" else list(range(LAYERS)))
    assert not (out / spoiled).exists() and not (out / "summary.json").exists()
    assert not list(out.rglob("*.partial.*"))
    whole_or_absent(out)
    run(program, model, out, "--resume")
    same_as(whole, out)


def test_folders_that_cannot_be_written(program, model, tmp_path):
    # Root may write anywhere, so these are in the way for everybody.
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "layers").write_text("not a folder")
    for out, named in ((tmp_path / "file", "file"), (tmp_path / "file" / "out", "file/out"),
                       (tmp_path / "inner", "inner/layers"), ("/proc/subspace-results", "/proc")):
        error = run(program, model, out, status=1)["error"]
        assert error["code"] == "io" and named in error["message"], error
    assert (tmp_path / "file").read_text() == "not a folder"
    assert not (tmp_path / "inner" / "summary.json").exists()
    # Found out at the very end: something has taken the result's name.
    (tmp_path / "late" / "summary.json").mkdir(parents=True)
    error = run(program, model, tmp_path / "late", "--layers", "0", status=1)["error"]
    assert error["code"] in ("io", "invalid_value") and "late" in error["message"]


def test_a_shard_that_is_deleted_during_a_run_is_still_read(program, mine, whole, tmp_path):
    """Every shard is opened before the first layer: deleting its name takes nothing away."""
    out = tmp_path / "out"
    process = start(program, mine, out)
    until(lambda: finished(out), process)
    (mine / "model-00012-of-00012.safetensors").unlink()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    same_as(whole, out)


def test_a_shard_that_shrinks_during_a_run_is_an_error(program, mine, whole, tmp_path):
    shard = mine / "model-00012-of-00012.safetensors"
    kept = tmp_path / "kept"
    shutil.copy2(shard, kept)
    out = tmp_path / "out"
    process = start(program, mine, out)
    until(lambda: finished(out), process)
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    error = json.loads(stdout)["error"]
    assert error["code"] == "io" and str(shard) in error["message"]
    assert finished(out) == list(range(LAYERS - 1)) and not (out / "summary.json").exists()
    shutil.copy2(kept, shard)
    run(program, mine, out, "--resume")
    same_as(whole, out)


def test_a_shard_that_is_gone_when_a_run_goes_on(program, mine, whole, tmp_path):
    shard = mine / "model-00012-of-00012.safetensors"
    out = tmp_path / "out"
    process = start(program, mine, out)
    until(lambda: finished(out), process)
    process.kill()
    process.communicate()
    kept = finished(out)
    shard.rename(tmp_path / "away")
    error = run(program, mine, out, "--resume", status=1)["error"]
    assert error["code"] == "not_found" and shard.name in error["message"]
    assert finished(out) == kept
    # What does not need it can be had.
    assert len(run(program, mine, tmp_path / "some", "--layers", "0-3")["layers"]) == 4
    (tmp_path / "away").rename(shard)
    run(program, mine, out, "--resume")
    same_as(whole, out)


@pytest.mark.parametrize("spoil", ["truncated", "absent"])
def test_a_layer_whose_values_are_gone_is_computed_again(program, model, whole, tmp_path, spoil):
    """The layer's JSON says that it is done; a copy of the folder may still have lost the values."""
    out = shutil.copytree(whole[0], tmp_path / "out")
    for name in (*RESULTS, "summary.json"):
        (out / name).unlink()
    values = out / "layers" / "3.safetensors"
    if spoil == "absent":
        values.unlink()
    else:
        values.write_bytes(values.read_bytes()[:-8])
    run(program, model, out, "--resume")
    same_as(whole, out)


def test_the_memory_that_was_used_is_stated_with_its_bound(whole):
    summary = json.loads((whole[0] / "summary.json").read_text())
    memory = summary["memory"]
    assert memory["peak_bytes"] == summary["peak_memory_bytes"]
    assert 1e6 < memory["peak_bytes"] <= memory["bound_bytes"]
    # Two layers in float64, and some squares of the model's width.
    layer = 8 * 360 * (360 + 120 + 120 + 360) + 8 * 360
    assert memory["layer_bytes"] == layer
    assert "two layers" in memory["bound"]
