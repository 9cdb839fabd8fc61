"""The program from outside: help, exit status, errors for people and for scripts, models on disk and
in the Hugging Face cache, and files that are wrong."""

import json
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from test_spectra import llama

COMMANDS = ["inspect", "spectra", "report", "synth", "export"]


def call(program, *arguments, **environment):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, env={**os.environ, **environment})


@pytest.fixture
def model(tmp_path):
    return llama(tmp_path / "model")


def refusal(program, *arguments, status=1):
    """The error of a command, which must be the same for people and for scripts, and sole."""
    plain = call(program, *arguments)
    assert plain.returncode == status, plain.stdout + plain.stderr
    first = plain.stderr.splitlines()[0]
    assert first.startswith("error: ") and plain.stdout == ""
    scripted = call(program, "--json", *arguments)
    assert scripted.returncode == status
    error = json.loads(scripted.stdout)["error"]
    assert first == "error: " + error["message"].splitlines()[0]
    return error


# Help and usage

def test_help_lists_the_commands_and_shows_examples(program):
    done = call(program, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout for name in COMMANDS)
    assert "subspace spectra MODEL --out DIR" in done.stdout and "Exit status" in done.stdout
    assert len(done.stdout.splitlines()) < 60, "each command's own help has the rest"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(program, command):
    done = call(program, command, "--help")
    assert done.returncode == 0 and f"Usage: subspace {command}" in done.stdout
    # An example to copy, and a word on what comes out.
    assert f"\n  subspace {command} " in done.stdout
    assert any(word in done.stdout for word in ("Printed:", "is what", "states what"))


def test_version_says_what_runs(program):
    text = call(program, "--version").stdout
    assert torch.__version__.split("+")[0] in text
    assert all(word in text for word in ("commit", "instruction sets", "devices: cpu"))


@pytest.mark.parametrize("arguments", [
    [], ["frobnicate"], ["inspect"], ["spectra", "model"], ["inspect", "model", "--colour"],
    ["--threads", "-1", "inspect", "model"], ["synth", "gpt2", "--out", "x", "--dtype", "int3"],
    ["synth", "gpt2", "--out", "x", "--spectrum", "power:-1"], ["synth", "gpt3", "--out", "x"],
])
def test_wrong_usage_is_status_two(program, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert refusal(program, *arguments, status=2)["code"] == "usage"
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_an_error(program, model, tmp_path):
    error = refusal(program, "--device", "cuda:97", "spectra", model, "--out", tmp_path / "out")
    assert "cuda:97" in error["message"] and "GPU" in error["message"]


def test_quiet_is_quiet(program, model, tmp_path):
    done = call(program, "--quiet", "spectra", model, "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == "" and "layer 1" in done.stdout


# Models on disk

def test_inspect_states_the_model_and_reads_no_weights(program, model):
    # Weights that could not be decoded do not disturb it: only headers are looked at.
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][:] = np.nan
    save_file({k: torch.from_numpy(v) for k, v in tensors.items()}, model / "model.safetensors")
    result = json.loads(call(program, "--json", "inspect", model).stdout)
    assert (result["family"], result["layers"], result["heads"], result["kv_groups"]) == (
        "llama", 2, 6, 2)
    assert result["hidden_size"] == 48 and result["dims"]["head_dim"] == 10
    needed = {t["name"]: t["shape"] for t in result["tensors"]}
    assert needed[name] == [60, 48]
    wanted = {n for n in tensors if "self_attn" in n or "input_layernorm" in n}
    assert set(needed) == wanted
    assert result["bytes_needed"] == sum(tensors[n].nbytes for n in wanted)
    assert result["bytes_in_checkpoint"] == (model / "model.safetensors").stat().st_size
    table = call(program, "inspect", model).stdout
    assert name in table and "GQA, 6 heads" in table


@pytest.mark.parametrize("dtype", [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "complex64"])
def test_every_dtype_that_the_package_writes_is_understood(program, model, dtype):
    tensors = {k: torch.from_numpy(v) for k, v in load_file(model / "model.safetensors").items()}
    name = "model.layers.1.self_attn.o_proj.weight"
    kind = getattr(torch, dtype)
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.uint8).view(kind) if (
        dtype == "float8_e8m0fnu") else tensors[name].to(kind)
    save_file(tensors, model / "model.safetensors")
    done = call(program, "--json", "inspect", model)
    assert done.returncode == 0, done.stderr
    entry = next(t for t in json.loads(done.stdout)["tensors"] if t["name"] == name)
    header = read_header(model / "model.safetensors")
    assert entry["dtype"] == header[name]["dtype"] and entry["shape"] == header[name]["shape"]


def test_hugging_face_cache(program, model, tmp_path):
    home = tmp_path / "home"
    repository = home / "hub" / "models--some-org--Tiny-1.5"
    for commit, layers in (("a" * 40, 2), ("b" * 40, 1)):
        snapshot = repository / "snapshots" / commit
        shutil.copytree(model, snapshot)
        config = json.loads((snapshot / "config.json").read_text())
        config["num_hidden_layers"] = layers
        (snapshot / "config.json").write_text(json.dumps(config))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "refs" / "v2").write_text("b" * 40)

    def layers(name, **environment):
        done = call(program, "--json", "inspect", name, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["layers"]

    where = {"HF_HOME": str(home), "HF_HUB_CACHE": ""}
    assert layers("some-org/Tiny-1.5", **where) == 2
    assert layers("some-org/Tiny-1.5@v2", **where) == 1
    assert layers("some-org/Tiny-1.5@" + "b" * 40, **where) == 1
    assert layers("some-org/Tiny-1.5", HF_HOME="/nowhere", HF_HUB_CACHE=str(home / "hub")) == 2
    for name, says in (("some-org/Tiny-1.5@v3", "v3"), ("other/one", "models--other--one"),
                       ("../../some-org/Tiny-1.5", "no such folder")):
        done = call(program, "inspect", name, **where)
        assert done.returncode == 1 and says in done.stderr


def test_a_url_is_refused_with_what_to_do(program):
    error = refusal(program, "inspect", "https://example.com/model")
    assert error["code"] == "unsupported" and "download" in error["message"]


# Files that are wrong

def read_header(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def config(model, **changes):
    path = model / "config.json"
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        fields.pop(name) if value is None else fields.update({name: value})
    path.write_text(json.dumps(fields))


def rewrite(model, change):
    tensors = {k: torch.from_numpy(v) for k, v in load_file(model / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def shard(model, weight_map):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = [n for n in read_header(model / "model-00001-of-00002.safetensors") if n[0] != "_"]
    index = {"metadata": {"total_size": 1},
             "weight_map": {**dict.fromkeys(names, "model-00001-of-00002.safetensors"), **weight_map}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def truncate(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def overwrite(path, data):
    with open(path, "r+b") as file:
        file.write(data)


O0 = "model.layers.0.self_attn.o_proj.weight"
WRONG = {
    "no config.json": (lambda m: (m / "config.json").unlink(), "not_found", "config.json"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "not_found", "no weights"),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), "invalid_format",
                          "config.json"),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), "invalid_format",
                         "config.json"),
    "field missing": (lambda m: config(m, num_attention_heads=None), "not_found",
                      "num_attention_heads"),
    "field of the wrong type": (lambda m: config(m, hidden_size="wide"), "invalid_value",
                                "hidden_size"),
    "field out of range": (lambda m: config(m, num_hidden_layers=-3), "invalid_value",
                           "num_hidden_layers"),
    "unknown family": (lambda m: config(m, model_type="perceptron"), "unsupported", "perceptron"),
    "more layers than weights": (lambda m: config(m, num_hidden_layers=3), "not_found",
                                 "model.layers.2."),
    "missing tensor": (lambda m: rewrite(m, lambda t: t.pop(O0)), "not_found", O0),
    "wrong shape": (lambda m: rewrite(m, lambda t: t.update({O0: torch.zeros(48, 59)})),
                    "invalid_shape", "[48, 59]"),
    "missing shard": (lambda m: shard(m, {O0: "model-00002-of-00002.safetensors"}), "not_found",
                      "model-00002-of-00002.safetensors"),
    "index names a tensor its shard lacks": (
        lambda m: (rewrite(m, lambda t: t.pop(O0)),
                   shard(m, {O0: "model-00001-of-00002.safetensors"})), "invalid_format", O0),
    "shard outside the folder": (lambda m: shard(m, {O0: "../other.safetensors"}),
                                 "invalid_format", "../other.safetensors"),
    "truncated data": (lambda m: truncate(m / "model.safetensors",
                                          (m / "model.safetensors").stat().st_size - 5),
                       "invalid_format", "truncated"),
    "truncated header": (lambda m: truncate(m / "model.safetensors", 50), "invalid_format",
                         "truncated"),
    "empty file": (lambda m: truncate(m / "model.safetensors", 0), "invalid_format", "0 bytes"),
    "header of 2^60 bytes": (lambda m: overwrite(m / "model.safetensors", struct.pack("<Q", 1 << 60)),
                             "invalid_format", str(1 << 60)),
    "header that is no JSON": (lambda m: overwrite(m / "model.safetensors",
                                                   struct.pack("<Q", 40) + b"x" * 40),
                               "invalid_format", "model.safetensors"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", ["inspect", "spectra"])
def test_wrong_files_are_named(program, model, tmp_path, command, case):
    spoil, code, says = WRONG[case]
    spoil(model)
    more = ["--out", tmp_path / "out"] if command == "spectra" else []
    error = refusal(program, command, model, *more)
    assert error["code"] == code and says in error["message"], error
    assert str(model) in error["message"] or "safetensors" in error["message"], error
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("path, says", [("nothing", "nothing"), ("file", "file")])
def test_what_is_no_folder_is_refused(program, tmp_path, path, says):
    (tmp_path / "file").write_text("x")
    error = refusal(program, "inspect", tmp_path / path)
    assert error["code"] == "not_found" and says in error["message"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_with_their_place(program, model, tmp_path, value):
    rewrite(model, lambda t: t[O0].__setitem__((7, 11), value))
    error = refusal(program, "spectra", model, "--out", tmp_path / "out", "--force")
    assert error["code"] == "not_finite" and O0 in error["message"]
    assert "[7, 11]" in error["message"]


def test_an_unwritable_folder_is_an_error(program, model, tmp_path):
    (tmp_path / "file").write_text("x")
    error = refusal(program, "spectra", model, "--out", tmp_path / "file" / "out")
    assert error["code"] == "io" and "file" in error["message"]


@pytest.mark.parametrize("file, says", [
    (None, "none: no such folder"),
    ("none", "none: a file"),
    ("none/nothing.txt", "none: no results in this folder; expected summary.json"),
    ("none/meta.json", "none: no results in this folder, but data to train on; expected summary.json"),
    ("none/heads.json", "`subspace lora report`"),
])
def test_report_of_what_is_no_run(program, tmp_path, file, says):
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    # Also beside results of another kind, which it does not have either.
    for folders in (["none"], ["none", "run"], ["run", "none"]):
        error = refusal(program, "report", *(tmp_path / name for name in folders), "--out", tmp_path / "r.html")
        assert error["code"] == "not_found" and says in error["message"]
        assert not (tmp_path / "r.html").exists()
