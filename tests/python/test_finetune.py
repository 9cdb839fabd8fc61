"""Fine-tuning as its users meet it: sentences of two kinds are told apart, the same bits after a kill,
logits that plain PyTorch and transformers give too, refusals by name."""

import json
import math
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
import torch.nn.functional as F
import transformers
from oracle.attention import attention_output, relative
from oracle.models import Double
from oracle.networks import answer, forward
from oracle.own_models import embed, feed_forward, linear, rms
from oracle.program import export, run
from prepare_tool import prepare
from safetensors.torch import load_file, save_file

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENCODER = dict(
    model_type="subspace_encoder", vocab_size=45, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=24, q_lora_rank=8, kv_lora_rank=6, qk_nope_head_dim=4,
    qk_rope_head_dim=4, v_head_dim=8, o_lora_rank=6,
)
SETS = ["--set", "learning_rate=0.01", "--set", "batch_size=16", "--set", "log_every=1"]


def vocabulary(folder, words=WORDS):
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + words))
    return folder / "vocab.txt"


def sentences(seed, count):
    """The first half of the words is good, the other bad; most words of a sentence are of its kind."""
    draw = random.Random(seed)
    lines = ["label\tsentence"]
    for _ in range(count):
        label = draw.randrange(2)
        kinds = [label if draw.random() < 0.8 else 1 - label for _ in range(draw.randrange(3, 20))]
        lines.append(f"{label}\t" + " ".join(WORDS[20 * kind + draw.randrange(20)] for kind in kinds))
    return "\n".join(lines) + "\n"


def sst2(folder, *more, words=WORDS, out="data", length=24):
    (folder / "train.tsv").write_text(sentences(1, 300))
    (folder / "dev.tsv").write_text(sentences(2, 90))
    prepare("sst2", "--input", folder, "--tokenizer", vocabulary(folder, words), "--length", length, "--out",
            folder / out, *more)
    return folder / out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return sst2(tmp_path_factory.mktemp("sst2"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("base")
    return init(program, folder, ENCODER)


def init(program, folder, config, *more):
    (folder / "given.json").write_text(json.dumps(config))
    result = run(program, "init", folder / "given.json", "--out", folder / "model", *more)
    assert result.returncode == 0, result.stderr
    return folder / "model"


def finetune(program, base, data, out, *more):
    return run(program, "--device", "cpu", "--threads", 1, "finetune", base, "--data", data, "--out", out, *SETS, *more)


@pytest.fixture(scope="module")
def tuned(program, base, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    result = finetune(program, base, data, out, "--seeds", "0,1", "--epochs", 4)
    assert result.returncode == 0, result.stderr
    return out


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(x["step"], x["loss"], x["grad_norm"], x["tokens"]) for x in lines if "loss" in x]


def test_separable_sentences_are_told_apart(tuned):
    result = json.loads((tuned / "result.json").read_text())
    assert [x["seed"] for x in result["runs"]] == [0, 1]
    for one in result["runs"]:
        assert one["accuracy"] > 0.9 and one["examples"] == 90 and one["steps"] == 75
        assert [x["epoch"] for x in one["epochs"]] == pytest.approx([1, 2, 3, 75 / 19])
        assert one["epochs"][-1]["accuracy"] == one["accuracy"]
        found = losses(tuned / f"seed_{one['seed']}")
        assert found[-1][1] < 0.5 * found[0][1]
    a, b = (x["accuracy"] for x in result["runs"])
    assert result["accuracy"]["mean"] == pytest.approx((a + b) / 2)
    assert result["accuracy"]["half_width_95"] == pytest.approx(12.7062 * abs(a - b) / 2, rel=1e-4)
    assert (tuned / "result.csv").read_text().count("\n") == 3
    assert not (tuned / "seed_0" / "checkpoints").exists()


def test_the_seeds_differ_in_classifier_and_order(tuned, base):
    first, second = (load_file(tuned / f"seed_{s}" / "model.safetensors") for s in (0, 1))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert losses(tuned / "seed_0")[0] != losses(tuned / "seed_1")[0]


def test_it_begins_with_the_weights_of_the_base(program, base, data, tmp_path):
    result = finetune(program, base, data, tmp_path / "out", "--set", "learning_rate=0", "--set", "steps=1")
    assert result.returncode == 0, result.stderr
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "out" / "seed_0" / "model.safetensors")
    assert set(after) - set(before) == {"classifier.weight", "classifier.bias", "pooler.dense.weight",
                                        "pooler.dense.bias"}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_eval_gives_the_accuracy_again(program, tuned, data):
    result = run(program, "--json", "--device", "cpu", "eval", tuned / "seed_1", "--data", data)
    assert result.returncode == 0, result.stderr
    found, expected = json.loads(result.stdout), json.loads((tuned / "seed_1" / "result.json").read_text())
    assert found["accuracy"] == expected["accuracy"] and found["examples"] == 90
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert "perplexity" not in found


def test_killed_and_resumed_ends_with_the_same_bits(program, base, data, tuned, tmp_path):
    out = tmp_path / "out"
    words = [program, "--device", "cpu", "--threads", "1", "finetune", base, "--data", data, "--out", out, *SETS,
             "--seeds", "0,1", "--epochs", "4"]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(out.glob("seed_0/checkpoints/[0-9]*/state.json")) and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    refused = finetune(program, base, data, out, "--seeds", "0,1", "--epochs", 4)
    assert refused.returncode == 1 and "--resume" in refused.stderr
    result = finetune(program, base, data, out, "--seeds", "0,1", "--epochs", 4, "--resume")
    assert result.returncode == 0, result.stderr
    for seed in (0, 1):
        assert losses(out / f"seed_{seed}") == losses(tuned / f"seed_{seed}")
        one, other = (x / f"seed_{seed}" / "model.safetensors" for x in (out, tuned))
        assert one.read_bytes() == other.read_bytes()


def test_a_finished_seed_of_other_settings_is_refused(program, base, data, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "out")
    result = finetune(program, base, data, tmp_path / "out", "--seeds", "0,1", "--epochs", 5, "--resume")
    assert result.returncode == 1 and "other settings" in result.stderr


def move_weights(folder):
    """Other weights of the same shapes."""
    path = folder / "model.safetensors"
    save_file({name: tensor + 0.125 for name, tensor in load_file(path).items()}, path)


def test_a_finished_seed_of_another_base_is_refused(program, base, data, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "out")
    shutil.copytree(base, tmp_path / "base")
    command = (data, tmp_path / "out", "--seeds", "0,1", "--epochs", 4, "--resume")
    kept = finetune(program, tmp_path / "base", *command)
    assert kept.returncode == 0, kept.stderr  # the same weights, wherever they lie
    move_weights(tmp_path / "base")
    result = finetune(program, tmp_path / "base", *command)
    assert result.returncode == 1 and "base_sha256 was" in result.stderr and "seed_0" in result.stderr
    # What the folder says of its numbers is still so.
    assert json.loads((tmp_path / "out" / "result.json").read_text())["runs"] == json.loads(
        (tuned / "result.json").read_text())["runs"]


def test_a_finished_seed_of_other_data_is_refused(program, base, data, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "out")
    other = sst2(tmp_path, length=16)
    result = finetune(program, base, other, tmp_path / "out", "--seeds", "0,1", "--epochs", 4, "--resume")
    assert result.returncode == 1 and "data was" in result.stderr and "seed_0" in result.stderr


def test_a_finished_seed_that_does_not_name_its_base_is_refused(program, base, data, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "out")
    path = tmp_path / "out" / "seed_0" / "result.json"
    old = json.loads(path.read_text())
    del old["asked_for"]["base_sha256"]
    path.write_text(json.dumps(old))
    result = finetune(program, base, data, tmp_path / "out", "--seeds", "0,1", "--epochs", 4, "--resume")
    assert result.returncode == 1 and "'base_sha256'" in result.stderr and "older version" in result.stderr


def test_an_interrupted_seed_of_another_base_is_refused(program, base, data, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "out")
    (tmp_path / "out" / "seed_0" / "result.json").unlink()
    shutil.copytree(base, tmp_path / "base")
    move_weights(tmp_path / "base")
    result = finetune(program, tmp_path / "base", data, tmp_path / "out", "--epochs", 4, "--resume")
    assert result.returncode == 1 and "weights that it began with" in result.stderr


# --- the arithmetic -----------------------------------------------------------------------------


def padded(rows=4, length=11):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 45, (rows, length), generator=generator)
    lengths = torch.tensor([11, 1, 4, 7])
    return tokens, lengths, (torch.arange(length) >= lengths[:, None]).long()


def randomize(folder, spread=0.3):
    generator = torch.Generator().manual_seed(9)
    tensors = load_file(folder / "model.safetensors")
    for _, tensor in sorted(tensors.items()):
        tensor.add_(spread * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def test_logits_of_our_encoder_are_those_of_plain_torch_on_each_sentence_alone(program, tmp_path):
    config = dict(ENCODER, architectures=["SubspaceEncoderForSequenceClassification"], num_labels=3, rms_norm_eps=3e-3)
    folder = init(program, tmp_path, config, "--dtype", "float64")
    tensors = randomize(folder)
    tokens, lengths, segments = padded()
    found = forward(program, folder, {"input_ids": tokens, "segment_ids": segments}, tmp_path)["logits"]
    assert found.shape == (4, 3)
    whole = json.loads((folder / "config.json").read_text())
    views = [export(program, folder, layer, folder / f"views{layer}") for layer in range(2)]
    for row, length in enumerate(lengths.tolist()):
        x = embed(whole, tensors, {"input_ids": tokens[row:row + 1, :length]})[0]
        for layer in range(2):
            norm = [tensors[f"model.layers.{layer}.{n}.weight"]
                    for n in ("input_layernorm", "post_attention_layernorm")]
            x = x + attention_output(views[layer], rms(x, norm[0], whole["rms_norm_eps"]), None)
            x = x + feed_forward(whole, tensors, layer, rms(x, norm[1], whole["rms_norm_eps"]))
        first = rms(x, tensors["model.norm.weight"], whole["rms_norm_eps"])[0]
        expected = linear(tensors, "classifier", torch.tanh(linear(tensors, "pooler.dense", first)))
        assert relative(found[row], expected) <= 1e-10


def bert(labels=3):
    config = transformers.BertConfig(
        vocab_size=45, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24, num_labels=labels, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )
    torch.manual_seed(3)
    with Double():
        model = transformers.BertForSequenceClassification._from_config(
            config, attn_implementation="eager", dtype=torch.float64).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.dim() > 1 else 0.5, 0.3)
    return model


def test_logits_of_bert_are_transformers(program, tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    tokens, _, segments = padded()
    found = forward(program, tmp_path, {"input_ids": tokens, "segment_ids": segments}, tmp_path)["logits"]
    expected = answer(model, {"input_ids": tokens}, attention_mask=1 - segments)
    assert relative(found, expected) <= 1e-10


def test_the_first_steps_are_those_of_plain_torch(program, data, tmp_path):
    """A tuned BERT goes to transformers and back, and AdamW's first three steps are torch's."""
    import numpy as np

    model = bert(labels=2).float()
    model.save_pretrained(tmp_path / "base")
    result = finetune(program, tmp_path / "base", data, tmp_path / "out", "--set", "steps=3", "--set", "batch_size=300",
                      "--set", "warmup=0", "--set", "decay=none", "--set", "learning_rate=0.001",
                      "--set", "max_grad_norm=0", "--set", "weight_decay=0")
    assert result.returncode == 0, result.stderr
    tokens = torch.from_numpy(np.load(data / "train.tokens.npy").astype("int64"))
    mask = (torch.arange(24) < torch.from_numpy(np.load(data / "train.lengths.npy"))[:, None]).long()
    labels = torch.from_numpy(np.load(data / "train.labels.npy").astype("int64"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0)
    expected = []
    for _ in range(3):  # every row once a step, in whatever order
        loss = F.cross_entropy(model(input_ids=tokens, attention_mask=mask).logits, labels)
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = losses(tmp_path / "out" / "seed_0")
    assert [x[1] for x in found] == pytest.approx(expected, rel=1e-4)
    assert found[-1][3] == 3 * int(mask.sum())  # padding is no token
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out" / "seed_0")
    assert again.config.id2label == {0: "negative", 1: "positive"}
    with torch.no_grad():
        ours = F.cross_entropy(again.eval()(input_ids=tokens, attention_mask=mask).logits, labels)
        theirs = F.cross_entropy(model(input_ids=tokens, attention_mask=mask).logits, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-3)


def test_a_fine_tuned_model_has_spectra(program, tuned, tmp_path):
    result = run(program, "spectra", tuned / "seed_0", "--out", tmp_path / "spectra")
    assert result.returncode == 0, result.stderr


# --- what does not fit --------------------------------------------------------------------------


def refused(program, base, data, out, *words, more=()):
    result = finetune(program, base, data, out, *more)
    assert result.returncode == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    assert not (out / "seed_0" / "run.json").exists()


def test_a_decoder_is_refused(program, data, tmp_path):
    decoder = init(program, tmp_path, dict(ENCODER, model_type="subspace_decoder"))
    refused(program, decoder, data, tmp_path / "out", "subspace_decoder", "no encoder")


def test_the_vocabulary_must_fit(program, base, tmp_path):
    big = sst2(tmp_path, words=WORDS + ["more"])
    refused(program, base, big, tmp_path / "out", "46 tokens", "vocab_size is 45")


def test_the_tokenizer_must_be_that_of_the_run(program, base, data, tmp_path):
    other = sst2(tmp_path, words=WORDS[::-1])
    shutil.copytree(base, tmp_path / "base")
    sha = json.loads((data / "meta.json").read_text())["tokenizer"]["sha256"]
    (tmp_path / "base" / "run.json").write_text(json.dumps({"tokenizer": {"name": "ours", "sha256": sha}}))
    refused(program, tmp_path / "base", other, tmp_path / "out", "'ours'", "tokenizer", sha[:8])


def test_rows_must_not_be_longer_than_the_model(program, base, tmp_path):
    refused(program, base, sst2(tmp_path, length=32), tmp_path / "out", "32", "max_position_embeddings is 24")


def test_dropout_is_refused(program, base, data, tmp_path):
    refused(program, base, data, tmp_path / "out", "dropout", more=("--set", "hidden_dropout_prob=0.1"))


def test_data_without_held_out_rows_is_refused(program, base, data, tmp_path):
    (tmp_path / "train.tsv").write_text(sentences(1, 20))
    prepare("sst2", "--train", tmp_path / "train.tsv", "--tokenizer", vocabulary(tmp_path), "--length", 24, "--out",
            tmp_path / "data")
    refused(program, base, tmp_path / "data", tmp_path / "out", "held-out")


def test_a_wrong_label_is_named(program, base, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "train.labels.npy"
    bytes_ = bytearray(path.read_bytes())
    bytes_[128:132] = (7).to_bytes(4, "little")
    path.write_bytes(bytes_)
    result = finetune(program, base, tmp_path / "data", tmp_path / "out")
    assert result.returncode == 1 and "train.labels.npy" in result.stderr and "7" in result.stderr


def text(folder):
    """Plain text, prepared."""
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[(i * k) % 40] for i in range(10)) for k in range(1, 60)))
    prepare("text", "--input", folder / "text.txt", "--valid-fraction", "0.2", "--tokenizer", vocabulary(folder),
            "--documents", "line", "--length", 16, "--out", folder / "data")
    return folder / "data"


def test_text_without_classes_is_refused(program, base, tmp_path):
    refused(program, base, text(tmp_path), tmp_path / "out", "'text'", "sst2")


def test_a_fine_tuned_model_is_no_language_model(program, tuned, tmp_path):
    result = run(program, "--device", "cpu", "eval", tuned / "seed_0", "--data", text(tmp_path))
    assert result.returncode == 1 and "'text'" in result.stderr


def test_chance_is_what_an_untrained_classifier_has(program, base, data, tmp_path):
    result = finetune(program, base, data, tmp_path / "out", "--set", "steps=1", "--set", "learning_rate=0")
    assert result.returncode == 0, result.stderr
    one = json.loads((tmp_path / "out" / "result.json").read_text())["runs"][0]
    assert one["loss"] == pytest.approx(math.log(2), abs=0.05)
