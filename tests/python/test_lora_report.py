"""The page about adapters in headless Chromium: every figure with its numbers, its CSV twin, both
themes, several adapters, and results that are not complete or not what they should be."""

import csv
import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from fake_lora_run import make_lora_run
from test_report import (  # noqa: F401 (fixtures)
    CHROMIUM, DRIVER, browser, folder, open_page, readout, traces, wait,
)

PROGRAM = os.environ.get("SUBSPACE_PROGRAM", "build/release/bin/subspace")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its chromedriver")

FIGURES = ["fig-size", "fig-terms", "fig-split", "fig-features", "fig-spectrum", "fig-intruders",
           "fig-modules", "fig-rope", "fig-wiring", "fig-graph", "fig-scores", "fig-causal", "fig-shapley",
           "fig-tokens"]


def report(out, *runs):
    return subprocess.run([PROGRAM, "lora", "report", *map(str, runs), "--out", str(out)],
                          capture_output=True, text=True)


def written(out, *runs):
    done = report(out, *runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    return out


@pytest.fixture(scope="module")
def one(folder):  # noqa: F811
    result = make_lora_run(folder / "one")
    return result, written(folder / "one.html", folder / "one")


@pytest.fixture
def page(browser, one):  # noqa: F811
    yield open_page(browser, one[1])
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def figures(driver):
    return [node.get_attribute("id") for node in driver.find_elements("css selector", ".figure")]


def saved(driver, figure):
    """The rows of the CSV that the figure's button saves, taken from the page: a browser lets a page
    start ten downloads by itself, no more."""
    driver.execute_script(f"""
        window.saved = null;
        window.makeUrl ??= URL.createObjectURL;
        URL.createObjectURL = (blob) => {{
          blob.text().then((text) => {{ window.saved = text; }});
          return window.makeUrl.call(URL, blob);
        }};
        document.querySelector('#{figure} [data-export=csv]').click()""")
    text = wait(driver, "return window.saved", 60)
    return list(csv.reader(io.StringIO(text)))


def check_figures(driver, names):
    """These and no others, drawn from the page's own data, each with its words and a table."""
    assert figures(driver) == names
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not driver.find_elements("css selector", ".failure")
    for name in names:
        captions = driver.find_elements("css selector", f"#{name} .caption p")
        assert len(captions) == 2 and all(len(text.text) > 100 for text in captions)
        rows = saved(driver, name)
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1, name


def test_fourteen_figures_each_with_words_and_numbers(page, folder, one):  # noqa: F811
    check_figures(page, FIGURES)


def test_sizes_are_those_of_the_file(page, folder, one):  # noqa: F811
    result, _ = one
    drawn = {trace["name"] or i: trace for i, trace in enumerate(traces(page, "fig-size"))}
    for circuit, trace in zip(["QK", "VO"], drawn.values()):
        for entry in result["heads"]:
            if entry["circuit"] == circuit:
                assert trace["z"][entry["head"]][entry["layer"]] == entry["rel_fro"]
    rows = saved(page, "fig-terms")[1:]
    shares = {}
    for layer, head, circuit, _, _, share, _ in rows:
        shares.setdefault((layer, head, circuit), []).append(float(share))
    assert len(shares) == len(result["heads"])
    assert all(abs(sum(values) - 1) < 1e-12 for values in shares.values())


def test_whole_modules(page, folder, one):  # noqa: F811
    file = json.loads((folder / "one" / "modules.json").read_text())
    names = {"q": "queries", "k": "keys", "v": "values", "o": "output"}
    page.execute_script("document.getElementById('fig-modules').scrollIntoView()")
    for side, index in [("output", 2), ("input", 4)]:  # 0.5 as the page opens, then 0.7
        eps = file["options"]["thresholds"][index]
        page.execute_script(f"""
            const f = document.getElementById('fig-modules');
            for (const [name, value] of [['side', '{side}'], ['eps', '{eps}'], ['module', 'keys']]) {{
              const field = f.querySelector(`[name=${{name}}]`);
              field.value = value;
              field.dispatchEvent(new Event('change'));
            }}""")
        wait(page, "return document.querySelector('#fig-modules .plot').getAttribute('aria-label')"
                   f".includes('below {eps}, {side}')")
        heat = traces(page, "fig-modules")[0]
        for entry in file["modules"]:
            row = heat["y"].index(names[entry["matrices"][0]])
            column = heat["x"].index(entry["layer"])
            assert heat["z"][row][column] == entry[side]["intruders"][index]
        # No low rank, so nothing random to compare it with.
        assert "random" not in readout(page, "fig-modules").split(";")[0]
        rows = saved(page, "fig-modules")
        header = rows[0]
        counted = sum(int(row[header.index("intruder")]) for row in rows[1:])
        assert counted == sum(entry[side]["intruders"][index] for entry in file["modules"])
        assert len(rows) - 1 == 10 * len(file["modules"])


def test_the_page_opens_on_the_head_that_changed_most(page, one):
    most = max(one[0]["heads"], key=lambda entry: entry["rel_fro"])
    assert f"Layer {most['layer']}, head {most['head']}" in readout(page, "fig-size")
    bar = {name: page.find_element("css selector", f".bar [name={name}]").get_attribute("value")
           for name in ("layer", "head", "circuit")}
    assert bar == {"layer": str(most["layer"]), "head": str(most["head"]),
                   "circuit": most["circuit"]}


def test_a_click_moves_all_figures(page):
    page.execute_script("""
        const plot = document.querySelector('#fig-size .plot');
        plot.emit('plotly_click', {points: [{x: 1, y: 3, curveNumber: 0}]});""")
    wait(page, "return document.querySelector('#fig-size .readout').textContent.startsWith("
               "'Layer 1, head 3')")
    page.execute_script("document.getElementById('fig-spectrum').scrollIntoView()")
    wait(page, "return document.querySelector('#fig-spectrum .readout').textContent.startsWith("
               "'QK, layer 1, head 3')")


def test_names_from_files_are_text(page):
    assert "<b>q0" in page.execute_script(
        "return document.querySelector('#fig-tokens svg').textContent")
    assert "an <invented> adapter" in page.find_element("id", "facts").text


def reading(driver):
    return driver.execute_script("return document.getElementById('reading').textContent")


def test_what_follows_from_the_algebra_stands_in_words(page):
    text = reading(page)
    assert "adds 4 new patterns" in text and "4 new vectors to send" in text
    assert "For the output it is the reverse" in text and "both exist" in text
    assert "no head can" not in text


def test_what_q_and_v_alone_cannot_do_is_said(browser, folder):  # noqa: F811
    make_lora_run(folder / "qv", terms={"QK": ["q"], "VO": ["v"]}, complete=False, groups=2)
    text = reading(open_page(browser, written(folder / "qv.html", folder / "qv")))
    assert "re-reads, and never re-writes" in text and "Here neither pair is" in text
    assert "reverse" not in text and "6 heads share 2 keys and values" in text


def choose(driver, figure, name, value):
    driver.execute_script(f"""
        const choice = document.querySelector('#{figure} [name={name}]');
        choice.scrollIntoView();
        choice.value = '{value}';
        choice.dispatchEvent(new Event('change'));""")


def test_words_of_the_chosen_head_and_splits_without_gain_can_be_chosen(page, one):
    most = max(one[0]["heads"], key=lambda entry: entry["rel_fro"])
    choose(page, "fig-tokens", "change", "delta")
    wait(page, f"""return document.querySelector('#fig-tokens .grid-svg').textContent.includes(
               '{most['circuit']}{most['head']}left0')""")
    first = "asks 1" if most["circuit"] == "QK" else "reads 1"
    assert first in page.execute_script("return document.querySelector('#fig-tokens .grid-svg').textContent")
    assert "0.24" in readout(page, "fig-tokens")
    choose(page, "fig-split", "gain", "split_gain_free")
    share = f"in in {100 * most['split_gain_free']['in_in']:.3g}"
    wait(page, f"return document.querySelector('#fig-split .readout').textContent.includes('{share}')")


def test_dark(page):
    page.execute_script("document.querySelector('[name=theme]').click()")
    wait(page, "return document.documentElement.dataset.theme === 'dark'")
    colour = page.execute_script(
        "return document.querySelector('#fig-size .plot')._fullLayout.paper_bgcolor")
    assert colour == "#14171a"


def test_adapters_are_compared(browser, folder):  # noqa: F811
    for seed, name in enumerate(["a", "b"]):
        make_lora_run(folder / name, seed=seed + 5, rotary=False)
    driver = open_page(browser, written(folder / "two.html", folder / "a", folder / "b"))
    assert figures(driver)[-1] == "fig-compare"
    assert "fig-rope" not in figures(driver)
    assert len(driver.find_elements("css selector", ".summary .of")) == 2
    driver.execute_script("const f = document.querySelector('.bar [name=run]');"
                          "f.value = '1'; f.dispatchEvent(new Event('change'))")
    wait(driver, "return document.querySelector('#fig-size').dataset.drawn > 1")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_heads_alone_are_enough(browser, folder):  # noqa: F811
    make_lora_run(folder / "heads", complete=False)
    (folder / "heads" / "heads.safetensors").unlink()
    driver = open_page(browser, written(folder / "heads.html", folder / "heads"))
    assert figures(driver) == [name for name in FIGURES[:8] if name != "fig-modules"]
    missing = driver.find_element("css selector", "#facts .absent").text
    assert "lora compose" in missing and "lora causal" in missing


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda result: result.pop("heads"), ["no list 'heads'"]),
        (lambda result: result["heads"].clear(), ["'heads' is empty"]),
        (lambda result: result["heads"][3].pop("circuit"), ["heads[3]", "circuit"]),
        (lambda result: result["heads"][2].update(rel_fro="big"), ["heads[2]", "rel_fro", "big"]),
        (lambda result: result["heads"][1].update(layer=-1), ["heads[1]", "layer"]),
    ],
)
def test_damaged_results_are_named(change, words, tmp_path):
    result = make_lora_run(tmp_path / "run", layers=1, heads=3, complete=False)
    change(result)
    (tmp_path / "run" / "heads.json").write_text(json.dumps(result))
    done = report(tmp_path / "page.html", tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "page.html").exists()
    for word in ["heads.json", *words]:
        assert word in done.stderr


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda file: file["model"].update(adapter="another"), ["another", "--modules yes"]),
        (lambda file: file.pop("modules"), ["no list 'modules'"]),
        (lambda file: file["modules"][2].pop("input"), ["modules[2]", "input"]),
        (lambda file: file["modules"][1]["output"].pop("similarity"),
         ["modules[1]", "similarity", "output"]),
    ],
)
def test_damaged_modules_are_named(change, words, tmp_path):
    make_lora_run(tmp_path / "run", layers=1, heads=3)
    path = tmp_path / "run" / "modules.json"
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))
    done = report(tmp_path / "page.html", tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "page.html").exists()
    for word in ["modules.json", *words]:
        assert word in done.stderr


def test_a_folder_without_results_says_what_makes_them(tmp_path):
    done = report(tmp_path / "page.html", tmp_path)
    assert done.returncode == 1 and "lora heads" in done.stderr
    assert Path(PROGRAM).exists()
