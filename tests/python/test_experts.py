"""`subspace ethos inspect`: its files against NumPy over the run's own weights, kinds of experts to
which parts do not apply, and its page in headless Chromium."""

import csv
import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import erf

from oracle.program import run
from test_ethos_training import SHORT, TINY
from test_lora_report import check_figures, figures
from test_report import (  # noqa: F401 (fixtures)
    CHROMIUM, DRIVER, browser, choose, folder, open_page, readout, set_bar, traces, wait,
)
from test_training import prepare, train
from test_train_report import quiet

in_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its chromedriver")
FIGURES = ["fig-use", "fig-histogram", "fig-heads", "fig-trained", "fig-tokens", "fig-spectra",
           "fig-groups", "fig-neighbours", "fig-between"]  # fmt: skip
WITHOUT_TEXT = ["fig-trained", "fig-spectra", "fig-groups", "fig-neighbours", "fig-between"]


def inspect(program, run_folder, *more):
    return run(program, "--device", "cpu", "--threads", 1, "ethos", "inspect", run_folder, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("experts") / "text", "decoder")


@pytest.fixture(scope="module")
def trained(data, program, tmp_path_factory):
    out = tmp_path_factory.mktemp("experts_run") / "an-ethos"
    done = train(program, TINY, data, out, *SHORT, "--steps", 40)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def found(trained, data, program):
    done = inspect(program, trained, "--data", data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("\n")[-1] == str(trained / "experts" / "experts.html")
    return trained / "experts"


def result(folder):  # noqa: F811
    return json.loads((folder / "experts.json").read_text())


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def test_everything_is_there_and_says_what_it_is(found):
    names = {path.name for path in found.iterdir() if not path.name.startswith(".")}
    assert names == {"experts.json", "experts.html", "usage.csv", "histogram.csv", "tokens.csv",
                     "clusters.csv", "neighbours.csv", "interpolation.csv", "ranks.csv",
                     "spectra.safetensors", "counts.safetensors"}  # fmt: skip
    json_ = result(found)
    assert json_["absent"] == [] and json_["run"] == "an-ethos"
    assert json_["model"]["feed_forward"] == "ethos" and json_["model"]["experts"] == 1024
    assert [layer["layer"] for layer in json_["layers"]] == [1, 2]
    assert json_["training"]["step"] == [5, 10, 15, 20, 25, 30, 35, 40]


def test_use_is_that_of_the_counts(found, data):
    counts = load_file(found / "counts.safetensors")
    tokens = result(found)["data"]["tokens"]
    held_out = json.loads((data / "meta.json").read_text())["splits"]["valid"]
    assert tokens == held_out["tokens"], "all held-out tokens and no padding"
    table = {(row["layer"], row["head"]): row for row in rows(found / "usage.csv")}
    for layer in (1, 2):
        of_layer = counts[f"layers.{layer}.counts"]
        assert of_layer.shape == (2, 1024)
        assert (of_layer.sum(1) == tokens * 8).all(), "each head chooses eight for every token"
        for head, count in [("all", of_layer.sum(0)), ("0", of_layer[0]), ("1", of_layer[1])]:
            p = count[count > 0] / count.sum()
            row = table[str(layer), head]
            assert float(row["used"]) == pytest.approx((count > 0).mean(), abs=1e-12)
            assert float(row["entropy"]) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-9)
            assert float(row["top_percent"]) == pytest.approx(np.sort(count)[-10:].sum() / count.sum())
        bins = [row for row in rows(found / "histogram.csv")
                if row["layer"] == str(layer) and row["head"] == "0"]  # fmt: skip
        for row in bins:
            inside = (of_layer[0] >= int(row["from"])) & (of_layer[0] <= int(row["to"]))
            assert int(row["experts"]) == inside.sum()
        assert sum(int(row["experts"]) for row in bins) == 1024


def test_spectra_are_those_of_the_weights(found, trained):
    spectra = load_file(found / "spectra.safetensors")
    weights = load_file(trained / "model.safetensors")
    for layer in (1, 2):
        mlp = {name: weights[f"model.layers.{layer}.mlp.{name}.weight"].astype(np.float64)
               for name in ("expert_latents", "w1", "w_u", "w_v", "keys.0", "keys.1")}  # fmt: skip
        table = gelu(mlp["expert_latents"] @ mlp["w1"].T)
        wanted = {"Z": mlp["expert_latents"], "TABLE": table, "TABLE-MEAN": table - table.mean(0),
                  "W1": mlp["w1"], "WU": mlp["w_u"], "WV": mlp["w_v"], "K1": mlp["keys.0"],
                  "K2": mlp["keys.1"]}  # fmt: skip
        for name, matrix in wanted.items():
            values = np.linalg.svd(matrix, compute_uv=False)
            got = spectra[f"layers.{layer}.{name}.stack"]
            assert np.abs(got - values).max() <= 1e-7 * values[0], name
    ranks = rows(found / "ranks.csv")
    assert {row["map"] for row in ranks} == set(wanted) and all(row["kind"] == "stack" for row in ranks)


def test_tokens_are_words_of_the_text(found):
    words = {row["token"] for row in rows(found / "tokens.csv")}
    assert "w7" in words and not any(word.startswith("#") for word in words)
    for layer in result(found)["layers"]:
        # Nine words in ten are told by the one before: the router must look at the token.
        assert layer["tokens"]["information"] > layer["tokens"]["chance"]
        for expert in layer["tokens"]["experts"]:
            assert sum(token["count"] for token in expert["tokens"]) <= expert["choices"]
            for token in expert["tokens"]:
                assert token["share"] == pytest.approx(token["count"] / expert["choices"])


def test_what_lies_between_two_is_their_equation(found, trained):
    weights = load_file(trained / "model.safetensors")
    z, w1 = (weights[f"model.layers.1.mlp.{name}.weight"].astype(np.float64)
             for name in ("expert_latents", "w1"))  # fmt: skip
    pairs = result(found)["layers"][0]["interpolation"]["pairs"]
    assert {pair["kind"] for pair in pairs} == {"nearest", "drawn"}
    for pair in pairs[::7]:
        h_a, h_b, h = (gelu(v @ w1.T) for v in (z[pair["a"]], z[pair["b"]], (z[pair["a"]] + z[pair["b"]]) / 2))
        off = np.linalg.norm(h - (h_a + h_b) / 2) / np.linalg.norm(h_a - h_b)
        assert pair["departure"][5] == pytest.approx(off, rel=1e-6)
        assert len(pair["response"]) == 11


def test_weights_alone(trained, program, tmp_path):
    done = inspect(program, trained, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "no usage: no text was given; --data DIR has some" in done.stdout
    json_ = result(tmp_path / "out")
    assert [one["what"] for one in json_["absent"]] == ["usage", "tokens"]
    assert "usage" not in json_["layers"][0] and "maps" in json_["layers"][0]
    assert not (tmp_path / "out" / "usage.csv").exists()


def test_a_run_under_way_is_its_last_checkpoint(trained, program, tmp_path):
    copy = tmp_path / "under-way"
    copy.mkdir()
    for name in ("run.json", "metrics.jsonl", "checkpoints"):
        (copy / name).symlink_to(trained / name)
    done = inspect(program, copy, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "out")["step"] == 40


@pytest.mark.parametrize("kind", ["peer", "molae", "moe"])
def test_other_kinds_say_what_does_not_apply(kind, data, program, tmp_path):
    done = train(program, TINY, data, tmp_path / "run", *SHORT, "--steps", 5, "--kind", kind, "--match",
                 "flops")
    assert done.returncode == 0, done.stderr
    done = inspect(program, tmp_path / "run", "--data", data, "--tokens", 500)
    assert done.returncode == 0, done.stderr
    json_ = result(tmp_path / "run" / "experts")
    absent = [one["what"] for one in json_["absent"]]
    layer = json_["layers"][0]
    assert "usage" in layer and "tokens" in layer
    if kind == "moe":
        assert absent == ["spectra", "clusters", "neighbours", "interpolation"]
        assert "router" in done.stdout and "maps" not in layer
        assert not (tmp_path / "run" / "experts" / "spectra.safetensors").exists()
    else:
        assert absent == ["interpolation"]
        assert "stored, not generated" in done.stdout
        assert {"DOWN", "UP", "K1", "K2"} <= set(layer["maps"])
        assert ("WU" in layer["maps"]) == (kind == "molae")
        assert layer["clusters"]["of"] == "vectors that read"
    assert (tmp_path / "run" / "experts" / "experts.html").exists()


def test_a_model_without_experts_is_refused(data, program, tmp_path):
    done = train(program, TINY, data, tmp_path / "run", *SHORT, "--steps", 2, "--kind", "dense", "--match",
                 "flops")
    assert done.returncode == 0, done.stderr
    done = inspect(program, tmp_path / "run", "--data", data)
    assert done.returncode == 1
    assert "config.json: a model without experts" in done.stderr and "ethos, peer, molae" in done.stderr
    assert not (tmp_path / "run" / "experts").exists()


def test_a_folder_that_is_no_run_is_named(program, tmp_path):
    done = inspect(program, tmp_path)
    assert done.returncode == 1 and "neither config.json nor run.json" in done.stderr


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture
def page(browser, found):  # noqa: F811
    yield open_page(browser, found / "experts.html")
    quiet(browser)


@in_browser
def test_every_figure_has_words_numbers_and_a_twin(page):
    assert page.find_element("tag name", "h1").text == "an-ethos"
    check_figures(page, FIGURES)
    for name in FIGURES:
        assert readout(page, name), name


@in_browser
def test_the_page_has_the_numbers_of_the_result(page, found):
    layers = result(found)["layers"]
    head = [cell.text for cell in page.find_elements("css selector", "#table thead th")]
    body = [[cell.text for cell in row.find_elements("css selector", "th, td")]
            for row in page.find_elements("css selector", "#table tbody tr")]  # fmt: skip
    assert [row[0] for row in body] == ["1", "2"]
    for row, layer in zip(body, layers):
        kl = float(row[head.index("KL to uniform")])
        assert kl == pytest.approx(layer["usage"]["all"]["kl_uniform"], rel=6e-3)
        cosine = float(row[head.index("nearest cosine")])
        assert cosine == pytest.approx(layer["neighbours"]["cosines"][2], rel=6e-3)
    own, chance = (trace for trace in traces(page, "fig-use")[::-1][:2])
    assert own["y"][0] == pytest.approx(layers[0]["usage"]["all"]["largest"])
    assert chance["x"] == layers[0]["usage"]["all"]["curve"]["rank"]
    bars = traces(page, "fig-histogram")[0]
    assert bars["y"] == layers[0]["usage"]["all"]["histogram"]["experts"]
    heat = traces(page, "fig-heads")[0]["z"]
    assert heat[2][1] == pytest.approx(layers[1]["usage"]["heads"][1]["kl_uniform"])


@in_browser
def test_layers_heads_and_measures_can_be_chosen(page, found):
    layers = result(found)["layers"]
    set_bar(page, "layer", "1")
    set_bar(page, "head", "1")
    wait(page, "return document.querySelector('#fig-use .readout').textContent.includes('Layer 2, head 1')")
    assert traces(page, "fig-use")[-1]["y"][0] == pytest.approx(layers[1]["usage"]["heads"][1]["largest"])
    choose(page, "fig-between", "measure", "departure")
    drawn = [trace for trace in traces(page, "fig-between") if trace["name"] == "two experts drawn at random"][0]
    pairs = [pair for pair in layers[1]["interpolation"]["pairs"] if pair["kind"] == "drawn"]
    assert drawn["y"][5] == pytest.approx(np.mean([pair["departure"][5] for pair in pairs]))
    choose(page, "fig-tokens", "why", "particular")
    choose(page, "fig-spectra", "shown", "WU")
    assert {trace["name"] for trace in traces(page, "fig-spectra")} <= {"WU", None}
    choose(page, "fig-trained", "measure", "kl_uniform")
    choose(page, "fig-heads", "measure", "used")
    choose(page, "fig-groups", "colour", "group")


@in_browser
def test_dark(page):
    page.execute_script("document.querySelector('[name=theme]').click()")
    wait(page, "return document.documentElement.dataset.theme === 'dark'")
    assert page.execute_script("return document.querySelector('#fig-use .plot')._fullLayout.paper_bgcolor") == "#14171a"


@in_browser
def test_a_page_of_the_weights_alone(browser, trained, program, tmp_path):  # noqa: F811
    assert inspect(program, trained, "--out", tmp_path / "out").returncode == 0
    driver = open_page(browser, tmp_path / "out" / "experts.html")
    assert figures(driver) == WITHOUT_TEXT
    text = driver.find_element("id", "summary").text
    assert "No usage: no text was given" in text and "No tokens" in text
    quiet(driver)


@in_browser
def test_report_writes_the_page_again(browser, found, program, tmp_path):  # noqa: F811
    done = run(program, "report", found, "--out", tmp_path / "again.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.html").read_bytes() == (found / "experts.html").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.update(format="other"), ["subspace-experts"]),
        (lambda x: x.update(layers=[]), ["no layer"]),
        (lambda x: x["layers"][1]["usage"]["all"].pop("used"), ["layers[1]", "used"]),
        (lambda x: x["layers"][0]["usage"]["all"]["curve"]["rank"].pop(), ["curve", "share"]),
        (lambda x: x["layers"][0]["tokens"]["experts"][0]["tokens"][0].update(lift="much"), ["tokens[0]", "lift"]),
        (lambda x: x["layers"][0]["clusters"]["map"].update(x=[1]), ["map", "y"]),
        (lambda x: x["layers"][1]["neighbours"].update(cosines=3), ["cosines"]),
        (lambda x: x["layers"][0]["interpolation"]["pairs"][2].pop("departure"), ["pairs[2]", "departure"]),
        (lambda x: x["layers"][0]["maps"].update(NEW={"stack": {}}), ["spectra.safetensors", "layers.1.NEW.stack"]),
    ],
)  # fmt: skip
def test_damaged_results_are_named(change, words, found, program, tmp_path):
    json_ = result(found)
    change(json_)
    (tmp_path / "experts.json").write_text(json.dumps(json_))
    (tmp_path / "spectra.safetensors").write_bytes((found / "spectra.safetensors").read_bytes())
    done = run(program, "report", tmp_path, "--out", tmp_path / "page.html")
    assert done.returncode == 1 and not (tmp_path / "page.html").exists()
    for word in words:
        assert word in done.stderr, done.stderr
