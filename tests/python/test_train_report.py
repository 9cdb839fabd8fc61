"""The pages about training runs and sweeps in headless Chromium: figures with their numbers and CSV twins,
seeds as groups, both themes, and folders that are not complete or not what they should be."""

import json
import os
import subprocess

import numpy as np
import pytest
from fake_training import make_experiment, make_run, make_sweep
from test_lora_report import check_figures, figures, saved
from test_report import (  # noqa: F401 (fixtures)
    CHROMIUM, DRIVER, browser, choose, folder, open_page, readout, set_bar, traces, wait,
)

PROGRAM = os.environ.get("SUBSPACE_PROGRAM", "build/release/bin/subspace")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its chromedriver")
FIGURES = ["fig-held-out", "fig-loss", "fig-tuned", "fig-final", "fig-speed", "fig-rate"]


def report(out, *runs):
    return subprocess.run([PROGRAM, "report", *map(str, runs), "--out", str(out)], capture_output=True, text=True)


def written(out, *runs):
    done = report(out, *runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    return out


def quiet(driver):
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []


@pytest.fixture(scope="module")
def experiment(folder):  # noqa: F811
    found = make_experiment(folder / "experiment")
    return found, written(folder / "experiment.html", folder / "experiment")


@pytest.fixture
def page(browser, experiment):  # noqa: F811
    yield open_page(browser, experiment[1])
    quiet(browser)


def test_every_figure_has_words_numbers_and_a_twin(page):
    check_figures(page, FIGURES)


def test_seeds_of_a_configuration_are_one_group(page, experiment):
    assert page.find_element("tag name", "h1").text == "mha and mla and mla-o"
    named = [trace for trace in traces(page, "fig-held-out") if trace["name"]]
    assert [trace["name"] for trace in named] == ["mha", "mla", "mla-o"]
    for trace in named:
        values = [experiment[0][trace["name"], seed] for seed in (0, 1, 2)]
        assert trace["y"][-1] == pytest.approx(np.mean(values), rel=1e-9)
    assert len(traces(page, "fig-held-out")) == 3 * (1 + 2 + 3)  # mean, band, seeds


def test_the_table_has_means_and_intervals(page, experiment):
    rows = [[cell.text.replace("\u202f", "").replace("\u00a0", " ") for cell in row.find_elements("css selector", "th, td")]
            for row in page.find_elements("css selector", "#table tr")]
    head, body = rows[0], rows[1:]
    assert [row[0] for row in body] == ["mha", "mla", "mla-o"]
    at = head.index("held-out loss")
    for row in body:
        values = [experiment[0][row[0], seed] for seed in (0, 1, 2)]
        mean, half = row[at].split(" ± ")
        assert float(mean) == pytest.approx(np.mean(values), abs=6e-5)
        assert float(half) == pytest.approx(4.3027 * np.std(values, ddof=1) / 3**0.5, abs=6e-5)
        assert row[head.index("parameters")] == "1207" and row[head.index("runs")] == "3"
        assert "%" in row[head.index("accuracy after fine-tuning")]


def test_the_summary_says_what_is_more_than_chance(page):
    text = page.find_element("id", "summary").text.replace("\u202f", "")
    assert "3 configurations, 9 runs" in text and "mha has the lowest" in text
    assert "more than chance" in text or "within chance" in text


def test_curves_are_drawn_against_time_as_well(page):
    page.execute_script("document.getElementById('fig-loss').scrollIntoView()")
    before = traces(page, "fig-loss")[-1]["x"][-1]
    set_bar(page, "across", "minutes")
    wait(page, "return Number(document.querySelector('#fig-loss').dataset.drawn) > 1")
    after = traces(page, "fig-loss")[-1]["x"][-1]
    assert before == pytest.approx(30e6, rel=1e-3) and after == pytest.approx(6.2 / 60)


def test_smoothing_and_measures(page):
    rough = None
    for share in ("0", "0.05"):
        choose(page, "fig-loss", "share", share)
        y = np.array(traces(page, "fig-loss")[-1]["y"][50:])
        if rough is not None:
            assert np.abs(np.diff(y)).mean() < 0.7 * rough
        rough = np.abs(np.diff(y)).mean()
    choose(page, "fig-held-out", "measure", "perplexity")
    named = [trace for trace in traces(page, "fig-held-out") if trace["name"] == "mha"]
    assert named[0]["y"][-1] == pytest.approx(np.exp(2.54), rel=0.05)
    choose(page, "fig-final", "measure", "tuned")
    assert "Highest" in readout(page, "fig-final")


def test_dark(page):
    page.execute_script("document.querySelector('[name=theme]').click()")
    wait(page, "return document.documentElement.dataset.theme === 'dark'")
    assert page.execute_script("return document.querySelector('#fig-loss .plot')._fullLayout.paper_bgcolor") == "#14171a"


def test_one_run_under_way(browser, folder):  # noqa: F811
    make_run(folder / "alone", seed=3, half_line=True)
    driver = open_page(browser, written(folder / "alone.html", folder / "alone"))
    assert figures(driver) == [name for name in FIGURES if name != "fig-tuned"]
    assert "One configuration, one run" in driver.find_element("id", "summary").text
    assert len(traces(driver, "fig-held-out")) == 1
    quiet(driver)


def test_fine_tuned_seeds_alone(browser, folder):  # noqa: F811
    for seed in (0, 1):
        make_run(folder / "tuned" / f"seed_{seed}", seed, level=0.4, steps=30, base="elsewhere")
    driver = open_page(browser, written(folder / "tuned.html", folder / "tuned"))
    assert driver.find_element("tag name", "h1").text == "tuned"
    assert "fig-tuned" not in figures(driver)
    assert "accuracy" in driver.find_element("id", "summary").text.lower()
    quiet(driver)


def test_runs_on_different_data_are_not_silently_compared(browser, folder):  # noqa: F811
    for name in ("one", "two"):
        make_run(folder / name, 0, data=name * 10)
    driver = open_page(browser, written(folder / "both.html", folder / "one", folder / "two"))
    assert "data are not the same" in driver.find_element("id", "summary").text
    quiet(driver)


def test_long_runs_are_thinned_and_keep_their_end(folder, browser):  # noqa: F811
    lines = make_run(folder / "long", seed=1, steps=5000)
    driver = open_page(browser, written(folder / "long.html", folder / "long"))
    x = traces(driver, "fig-speed")[0]["x"]
    assert len(x) <= 2000 and x[-1] == [line for line in lines if "loss" in line][-1]["tokens"]
    quiet(driver)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("metrics.jsonl", lambda text: text.replace('"lr"', '"l"', 1), ["line 1", "lr"]),
        ("metrics.jsonl", lambda text: text.replace('"step": 20', '"step": 5', 1), ["line 2", "step"]),
        ("metrics.jsonl", lambda text: "nonsense\n" + text, ["line 1", "no JSON"]),
        ("metrics.jsonl", lambda text: "", ["no logged step"]),
        ("run.json", lambda text: text.replace('"train"', '"tran"'), ["train"]),
    ],
)
def test_damaged_runs_are_named(file, change, words, tmp_path):
    make_run(tmp_path / "run", seed=0)
    path = tmp_path / "run" / file
    path.write_text(change(path.read_text()))
    done = report(tmp_path / "page.html", tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "page.html").exists()
    for word in [file, *words]:
        assert word in done.stderr


def test_folders_of_two_kinds_are_refused(tmp_path):
    make_run(tmp_path / "run", seed=0)
    make_sweep(tmp_path / "sweep")
    done = report(tmp_path / "page.html", tmp_path / "run", tmp_path / "sweep")
    assert done.returncode == 2 and "sweep" in done.stderr


# --- sweeps -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(folder):  # noqa: F811
    return make_sweep(folder / "sweep"), written(folder / "sweep.html", folder / "sweep")


def test_a_sweep_is_a_page(browser, sweep):  # noqa: F811
    found, path = sweep
    driver = open_page(browser, path)
    assert driver.find_element("tag name", "h1").text == "An <invented> sweep"
    assert figures(driver) == ["fig-arms", "fig-grid"]
    dots, means = traces(driver, "fig-arms")
    assert means["x"] == pytest.approx([arm["numbers"]["held_out_loss"]["mean"] for arm in found["arms"]])
    assert sorted(dots["x"]) == pytest.approx(sorted(run["numbers"]["held_out_loss"] for run in found["runs"]))
    bars = driver.execute_script("return document.querySelector('#fig-arms .plot').data[1].error_x.array")
    assert bars == pytest.approx([arm["numbers"]["held_out_loss"]["half_width_95"] for arm in found["arms"]])
    for name in figures(driver):
        rows = saved(driver, name)
        assert len(rows) > 6 and len({len(row) for row in rows}) == 1
    assert len(driver.find_elements("css selector", "#table tbody tr")) == 12
    assert "MLA-o, q_lora_rank 64, o_lora_rank 64" in driver.find_element("id", "summary").text
    quiet(driver)


def test_a_grid_over_each_field_and_as_a_ratio(browser, sweep):  # noqa: F811
    found, path = sweep
    driver = open_page(browser, path)
    choose(driver, "fig-grid", "field", "o_lora_rank")
    thick = [trace for trace in traces(driver, "fig-grid") if trace["name"]]
    assert [trace["name"] for trace in thick] == ["MLA", "MLA-o"]
    means = {arm["arm"]: arm["numbers"]["held_out_loss"]["mean"] for arm in found["arms"]}
    assert thick[0]["x"] == [16, 32, 64]
    for i, o in enumerate((16, 32, 64)):
        two = [means[f"MLA, q_lora_rank {q}, o_lora_rank {o}"] for q in (32, 64)]
        assert thick[0]["y"][i] == pytest.approx(np.mean(two))
    choose(driver, "fig-grid", "as", "ratio")
    thick = [trace for trace in traces(driver, "fig-grid") if trace["name"]]
    assert [trace["name"] for trace in thick] == ["MLA-o"]
    two = [means[f"MLA-o, q_lora_rank {q}, o_lora_rank 16"] / means[f"MLA, q_lora_rank {q}, o_lora_rank 16"]
           for q in (32, 64)]
    assert thick[0]["y"][0] == pytest.approx(np.mean(two))
    quiet(driver)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sweep: sweep.pop("arms"), ["arms"]),
        (lambda sweep: sweep["runs"][3]["numbers"].update(held_out_loss="low"), ["runs[3]", "held_out_loss"]),
        (lambda sweep: sweep["arms"][1]["numbers"]["held_out_loss"].update(mean=[1]), ["arms[1]", "mean"]),
        (lambda sweep: sweep.pop("title"), ["title"]),
    ],
)
def test_damaged_sweeps_are_named(change, words, tmp_path):
    sweep = make_sweep(tmp_path / "sweep")
    change(sweep)
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(sweep))
    done = report(tmp_path / "page.html", tmp_path / "sweep")
    assert done.returncode == 1 and not (tmp_path / "page.html").exists()
    for word in ["sweep.json", *words]:
        assert word in done.stderr
