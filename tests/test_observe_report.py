from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from observe_fake_run import evaluation, events, make_run, make_several, ppo_rows, several_evaluations
from truing.errors import DataError
from truing.observe import side_by_side
from truing.observe.doctor import doctor
from truing.observe.folder import read_run
from truing.observe.report import SHOWN, report, short, verdict, visible
from truing.observe.step_figures import timeline

HOSTILE = "</p></style><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}\x00\u202eabc"


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser's tokeniser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.stack: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "input"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(run: Path) -> Page:
    return Page(report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("good"))


def rewrite(run: Path, data: Any) -> None:
    (run / "evaluate" / "evaluation.json").write_bytes(data if isinstance(data, bytes) else orjson.dumps(data))


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_verdict_numbers_equal_the_evaluation(good: Path) -> None:
    found = verdict(good)
    assert found["worked"] is True and found["caveats"] == []
    # By hand: gold 0.45 -> 0.61 is +0.16; the before model's sd is 0.2, so 0.80 of it; the interval is 0.13 to 0.19, 0.65 to 0.95.
    assert found["gold"] == pytest.approx(
        {"before": 0.45, "after": 0.61, "mean": 0.16, "low": 0.13, "high": 0.19, "sd_units": 0.8, "sd_low": 0.65, "sd_high": 0.95}
    )
    assert found["kl"] == {"mean": 6.9, "low": 6.5, "high": 7.3, "target": 6.0}
    assert found["length"] == pytest.approx({"before": 21.0, "after": 22.5, "ratio": 1.0714285714})
    for piece in ("It worked", "40 held-out prompts", "gold", "0.80 standard deviations", "0.65 to 0.95", "6.9 nats", "target 6", "1.07 times"):
        assert piece in found["verdict"]
    # sft says 125 s itself; ppo logged 80 steps of 4.7 s; reward has no timings.
    assert found["seconds"] == pytest.approx({"sft": 125.0, "reward": None, "ppo": 376.0, "evaluate": None, "total": 612.0})
    assert found["memory_peak_mib"] == 3100.0
    assert found["findings"] == [] and found["notes"] == []
    orjson.loads(orjson.dumps(found))  # plain JSON values only


def test_correlation_is_spearmans(good: Path) -> None:
    rows = orjson.loads((good / "evaluate" / "evaluation.json").read_bytes())["rows"]
    for side in ("before", "after"):
        scores = [t["scores"] for r in rows for t in r[side]]
        ranks = [np.argsort(np.argsort([s[n] for s in scores])) for n in ("proxy", "gold")]
        assert verdict(good)["proxy_judge_correlation"][side] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_proxy_up_and_judge_down_is_called_what_it_is(tmp_path: Path) -> None:
    found = verdict(make_run(tmp_path, hacked=True, judged=evaluation(effect=-0.05)))
    assert found["worked"] is False
    assert (
        found["verdict"].startswith("It did NOT work")
        and "fell" in found["verdict"]
        and "exploited" in found["verdict"]
        and "1 of 3 criteria failed" in found["verdict"]
    )
    assert {f["name"] for f in found["findings"]} == {"ppo/overoptimisation/monitor/gold", "ppo/overoptimisation/monitor/gold_correlation", "ppo/overoptimisation/length"}


def test_an_interval_around_zero_is_no_success(tmp_path: Path) -> None:
    found = verdict(make_run(tmp_path, judged=evaluation(effect=0.01)))  # 0.01 +- 0.03
    assert found["worked"] is False and "did not clearly change" in found["verdict"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"after": {"distinct_2": 0.3}}, "collapsed into repetition"),  # 0.3 / 0.82 = 0.37
        ({"length_ratio": 1.9}, "1.90 times as long"),
        ({"kl_sequence": {"mean": 13.0}}, "more than twice its target"),
    ],
)
def test_a_rise_bought_badly_is_success_only_in_part(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    data = evaluation()
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    found = verdict(make_run(tmp_path, judged=data))
    assert found["worked"] is False and found["verdict"].startswith("It worked only in part") and words in found["verdict"]


def test_a_proxy_that_lost_touch_is_named(tmp_path: Path) -> None:
    data = evaluation()
    rng = np.random.default_rng(0)
    for row in data["rows"]:
        for text in row["after"]:
            text["scores"]["proxy"] = rng.normal()
    assert any("rank correlation" in c for c in verdict(make_run(tmp_path, judged=data))["caveats"])


def test_without_an_independent_judge_there_is_no_verdict(tmp_path: Path) -> None:
    data = evaluation()
    for part in (data["before"]["scores"], data["after"]["scores"], data["difference"]):
        for name in ("gold", "vader"):
            del part[name]
    found = verdict(make_run(tmp_path, judged=data))
    assert found["worked"] is None and "no independent judge" in found["verdict"]
    # With VADER alone, VADER is the judge, and is named.
    data["difference"]["vader"] = {"mean": 0.25, "low": 0.2, "high": 0.3, "sd_units": 0.8, "sd_low": 0.6, "sd_high": 1.0}
    found = verdict(make_run(tmp_path / "again", judged=data))
    assert found["judge"] == "vader" and "independent vader judge" in found["verdict"]


def test_the_evaluation_may_name_its_judge(tmp_path: Path) -> None:
    data = evaluation()
    data["verdict_score"] = "vader"
    assert verdict(make_run(tmp_path, judged=data))["judge"] == "vader"
    data["verdict_score"] = "proxy"  # what was trained on cannot be the independent judge
    rewrite(tmp_path / "film", data)
    assert verdict(tmp_path / "film")["judge"] == "gold"


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_runs_nothing(good: Path) -> None:
    path = report(good)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == good / "report.html" and not page.unbalanced and not page.stack
    assert not re.search(r"https?:|//[a-z]|@import|javascript:|url\((?!#)", text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "img", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style"
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
                assert (value or "").startswith("#"), (tag, name, value)
    policy = next(a["content"] or "" for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and text.count("<style") == 1
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and f"'sha256-{digest}'" in policy and "unsafe" not in policy
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert used and used <= set(ids)  # every marker and clip path that a figure names is there


def test_the_page_says_what_the_folder_holds(good: Path) -> None:
    page = page_of(good)
    for piece in (
        verdict(good)["verdict"],
        "gold up by 0.5 sd",
        "square root of KL",
        "target 6",
        "human ceiling",
        "prompts.jsonl",
        "2.13.0",
        "9f2b" * 16,
        "10 min 12 s",
        "3.03 GiB",
        "6 min 16 s",
    ):
        assert piece in page.text, piece
    assert sum(t == "svg" for t, _ in page.tags) == 13
    assert "What is missing" not in page.text


def test_the_same_folder_gives_the_same_bytes(good: Path) -> None:
    first = report(good).read_bytes()
    assert report(good).read_bytes() == first


def test_samples_are_spread_from_best_to_worst(good: Path) -> None:
    rows = orjson.loads((good / "evaluate" / "evaluation.json").read_bytes())["rows"]
    change = sorted(r["after"][0]["scores"]["gold"] - r["before"][0]["scores"]["gold"] for r in rows)
    page = page_of(good)
    prompts = [a for t, a in page.tags if a.get("class") == "pair"]
    assert len(prompts) == SHOWN
    for extreme in (change[0], change[-1]):
        assert f"{abs(extreme):.3f}" in page.text
    assert f"prefers the after text on {sum(c > 0 for c in change)} of all 40" in page.text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    data = evaluation(before=[HOSTILE], after=[HOSTILE])
    data["rows"][0]["prompt"] = HOSTILE
    for part in (data["before"]["scores"], data["after"]["scores"], data["difference"]):
        part[HOSTILE] = part["vader"]
    data["criteria"][0]["name"] = HOSTILE
    run = make_run(tmp_path, judged=data)
    (run / "recipe.yaml").write_text("name: x # " + HOSTILE, encoding="utf-8")
    rows = ppo_rows()
    rows.append(("finding", 3, {"name": HOSTILE, "severity": HOSTILE, "message": HOSTILE}))
    rows = [(k, s, {**v, f"monitor/{HOSTILE} $x$ \\frac": 0.1 * s} if k == "metrics" else v) for k, s, v in rows]
    rows.append(("session", 4, {"versions": {HOSTILE: HOSTILE}}))
    shutil.rmtree(run / "ppo")
    events(run / "ppo", rows)
    text = report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.unbalanced and not page.stack
    assert not {t for t, _ in page.tags} & {"script", "img"}
    assert text.count("</style") == 1 and "\x00" not in text and "\u202e" not in text
    assert "{{ 7*7 }}" in page.text and "[U+0000][U+202E]abc" in page.text
    # The same text unescaped would have been a script: the parser above does see one.
    assert "script" in {t for t, _ in Page(f"<p>{HOSTILE}</p>").tags}


def test_folder_name_is_hostile_too(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    odd = tmp_path / "<b onclick=alert(1)>&\u202e"
    run.rename(odd)
    page = page_of(odd)
    assert "b" not in {t for t, a in page.tags if "onclick" in a} and "<b onclick=alert(1)>&[U+202E]" in page.text


def test_visible_and_short() -> None:
    assert visible("a\tb\n\x1b[31mred\ud800") == "a\tb\n[U+001B][31mred[U+D800]"
    assert visible("x" * 10, 4) == "xxxx ... (6 more characters)"
    assert [short(v) for v in (None, 0, 0.0, 1.5, -0.25, 12345.6, 1e-5, 2e9, "s")] == ["–", "0", "0.000", "1.50", "−0.250", "12,346", "1e-05", "2e+09", "s"]


# -- several runs in one pipeline --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_several(tmp_path_factory.mktemp("several"))


def test_each_run_of_a_pipeline_has_a_verdict_of_its_own(several: Path) -> None:
    found = verdict(several)
    gamed, mended = found["runs"]
    assert (gamed["name"], gamed["worked"]) == ("gamed", False) and (mended["name"], mended["worked"]) == ("mended", True)
    assert found["worked"] is None and found["gold"] is None and found["kl"]["mean"] is None  # the whole has no one number of its own
    assert found["judge"] == "gold" and gamed["gold"]["sd_units"] == pytest.approx(-0.25) and mended["gold"]["sd_units"] == pytest.approx(0.8)
    assert found["verdict"].startswith("gamed: It did NOT work") and " mended: It worked: " in found["verdict"]
    assert "exploited" in found["verdict"] and "2.20 times as long" in found["verdict"]
    assert {f["name"].partition("/")[0] for f in gamed["findings"]} == {"gamed"} and mended["findings"] == []
    assert found["seconds"]["gamed"] == pytest.approx(80 * 4.7) and mended["seconds"]["mended"] == pytest.approx(376.0)
    assert found["notes"] == [] and orjson.loads(orjson.dumps(found))
    assert set(verdict(several / "gamed")) == set(gamed) - {"name"} == set(found) - {"runs"}  # the same keys everywhere


def test_the_page_shows_runs_side_by_side(several: Path) -> None:
    page = page_of(several)
    assert not page.unbalanced and not page.stack
    for piece in (
        "Runs side by side", "reward - 0.01 * excess_tokens(16)", "kl.coef 0.02 0.1 worked NO yes", "\u22120.250 \u22120.400 to \u22120.100 +0.800 0.650 to 0.950",
        "38% 30 to 46% 79% 71 to 86%", "14.0 13.2 to 14.8 6.90 6.50 to 7.30", "2.20\u00d7 21.0 \u2192 46.2 tokens 1.07\u00d7", "Before and after on held-out prompts \u00b7 gamed",
        "PPO \u00b7 mended", "Samples side by side", "the 40 prompts that all evaluations share",
    ):  # fmt: skip
        assert piece in page.text, piece
    assert "prompts.jsonl 0.0" not in page.text and page.text.count("Reward and judge") == 1  # what does not differ is not listed
    assert sum(a.get("class") == "sides three" for _, a in page.tags) == SHOWN
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_one_of_several_that_cannot_be_read_is_noted(tmp_path: Path) -> None:
    run = make_several(tmp_path)
    (run / "check-gamed" / "evaluation.json").write_bytes(b"[1")
    found = verdict(run)
    assert "runs" not in found and found["worked"] is True and any("check-gamed" in note for note in found["notes"])
    assert [p.key for p in side_by_side.overlay(read_run(run), "gold")] == ["several-reward", "several-length"]  # the two trainings still differ
    data = several_evaluations()
    del data["check-gamed"]["kl_sequence"]
    data["check-mended"]["rows"][0]["prompt"] = "another"
    found = verdict(make_several(tmp_path / "again", data))
    assert "gamed: evaluation.json has no value kl_sequence.mean" in found["notes"] and found["runs"][0]["kl"]["mean"] is None
    assert len(side_by_side.samples(read_run(tmp_path / "again" / "verbose").compared(), "gold")) == 39  # of 40 prompts, one is not shared


@pytest.mark.parametrize("recipe", ["", "stages: {gamed: 3}", "stages: [1]", "nonsense: [", "stages: {check-gamed: {after: nowhere}}"])
def test_models_are_found_by_their_folders_when_the_recipe_says_nothing(tmp_path: Path, recipe: str) -> None:
    run = make_several(tmp_path)
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert [r["name"] for r in verdict(run)["runs"]] == ["gamed", "mended"]
    data = several_evaluations()
    for found in data.values():
        found["after"]["model"] = "somewhere\0else"
    again = make_several(tmp_path / "again", data)
    (again / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert [r["name"] for r in verdict(again)["runs"]] == ["check-gamed", "check-mended"]


def test_settings_are_compared_like_with_like(tmp_path: Path) -> None:
    run = make_several(tmp_path)
    for name, coef in (("gamed", 0.02), ("mended", 0.1)):
        (run / name / "recipe.yaml").write_text(f"method: ppo\nmodel: runs/x/sft/model\nkl: {{coef: {coef}}}\ninputs: {{model: hash of {name}}}\n", encoding="utf-8")
    differ = dict(side_by_side.settings(read_run(run), ["gamed", "mended"]))
    assert differ == {"reward": ["reward", "reward - 0.01 * excess_tokens(16)"], "kl.coef": ["0.02", "0.1"]}
    (run / "recipe.yaml").write_text("stages: {gamed: {model: sft, kl: {coef: 0.5}}}", encoding="utf-8")  # only one of them: the stages' own are used
    assert dict(side_by_side.settings(read_run(run), ["gamed", "mended"])) == {"kl.coef": ["0.02", "0.1"]}
    (run / "mended" / "recipe.yaml").unlink()
    assert side_by_side.settings(read_run(run), ["gamed", "mended"]) == []  # one recipe alone has nothing to differ from


def test_two_evaluations_of_one_model_stay_apart(tmp_path: Path) -> None:
    run = make_several(tmp_path)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("after: mended", "after: gamed"), encoding="utf-8")
    assert [r["name"] for r in verdict(run)["runs"]] == ["gamed", "gamed (check-mended)"] and page_of(run).text


def test_hostile_names_of_runs_stay_text(tmp_path: Path) -> None:
    run = make_several(tmp_path)
    odd = "<img src=x>&$x$"
    (run / "gamed").rename(run / odd)
    text = (run / "recipe.yaml").read_text().replace("  gamed:", f"  '{odd}':").replace("after: gamed", f"after: '{odd}'").replace("excess_tokens(16)", "<script>")
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    page = page_of(run)
    assert verdict(run)["runs"][0]["name"] == odd
    assert odd in page.text and "<script>" in page.text and not {t for t, _ in page.tags} & {"img", "script"}


# -- where the time goes -----------------------------------------------------------------------------------------------


def test_the_phases_of_a_step_add_up(tmp_path: Path) -> None:
    def timed(at: int, **seconds: float) -> tuple[str, int, dict[str, Any]]:
        return "timing", at, {f"seconds/{k}": v for k, v in seconds.items()}

    rows = [("metrics", s, {"reward/proxy": 0.1 * s}) for s in (1, 2, 3, 4)]
    # Step 3 is a second event of the same step, as the loop writes the whole and PPO its phases; step 4 did not finish.
    rows += [timed(1, generate=6.0, update=3.0, step=10.0), timed(2, generate=1.0, update=2.0, step=4.0), timed(3, generate=2.0, update=2.0), timed(3, step=3.9), timed(4, generate=9.0)]
    events(tmp_path / "ppo", rows)
    (stage,) = read_run(tmp_path / "ppo").stages
    seconds = {k: v.tolist() for k, v in timeline(stage).items()}
    # Other is 10 - 9 and 4 - 3; phases that add up to 0.1 more than the step by their own clocks' rounding leave nothing, not less.
    assert seconds == {"step": [1, 2, 3], "generate": [6.0, 1.0, 2.0], "update": [3.0, 2.0, 2.0], "other": [1.0, 1.0, 0.0]}
    text = page_of(tmp_path / "ppo").text
    # By their length the steps are 10, 4 and 4.0 (2 + 2): the middle one takes 4 s.
    assert "Where the time of a step goes" in text and "the median step takes 4 s" in text and "every step" in text
    shutil.rmtree(tmp_path / "ppo")
    events(tmp_path / "ppo", [*rows[:4], timed(1, step=2.0)])
    assert timeline(read_run(tmp_path / "ppo").stages[0]) == {} and "Where the time" not in page_of(tmp_path / "ppo").text


def test_the_time_of_the_median_step_is_said(good: Path) -> None:
    text = page_of(good).text  # 2.1 of 4.7 s is 45%, 0.3 6%, 0.4 9%, 0.6 13%, 1.2 26%; 0.1 is left, 2%
    for piece in ("generate 2.1 s, 45%", "trunk 300 ms, 6%", "score 400 ms, 9%", "reference 600 ms, 13%", "update 1.2 s, 26%", "other 100 ms, 2%", "30 of 80 steps"):
        assert piece in text, piece


def test_parts_are_drawn_when_there_are_two(tmp_path: Path) -> None:
    for parts, drawn in (({}, False), ({"part/rm": 1.0}, False), ({"part/rm": 1.0, "part/" + "long" * 9: 2.0}, True), ({f"part/{i}": float(i) for i in range(8)}, True)):
        shutil.rmtree(tmp_path / "ppo", ignore_errors=True)
        events(tmp_path / "ppo", [("metrics", s, {"reward/proxy": 0.1 * s, **{k: v * s for k, v in parts.items()}}) for s in range(1, 5)])
        text = page_of(tmp_path / "ppo").text
        assert ("Parts of the reward" in text) is drawn
        assert ("The 3 that vary least are left out" in text) is (len(parts) == 8)


# -- what is missing or broken -----------------------------------------------------------------------------------------


def test_a_single_stage_is_a_valid_run(good: Path) -> None:
    for stage, title in (("sft", "Loss and stopping"), ("reward", "Loss and accuracy"), ("ppo", "The same against time")):
        found = verdict(good / stage)
        assert found["worked"] is None and found["verdict"].startswith("No verdict yet")
        text = page_of(good / stage).text
        assert title in text and "evaluation.json is missing" in text
    assert "reward/proxy went from" in verdict(good / "ppo")["verdict"]
    assert "Samples of ppo at step 80" in page_of(good / "ppo").text


def test_an_unfinished_pipeline_is_shown_as_far_as_it_went(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("ppo", "evaluate", "reward"):
        shutil.rmtree(run / name)
    assert "Loss and stopping" in page_of(run).text


def test_no_run_folder(tmp_path: Path) -> None:
    for bad, words in ((tmp_path / "nowhere", "no such run folder"), (tmp_path, "is no run folder")):
        for function in (report, verdict, doctor):
            with pytest.raises(DataError, match=words):
                function(bad)


def test_empty_events(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "sft" / "events.jsonl").write_bytes(b"")
    assert "holds no metrics" in page_of(run).text
    shutil.rmtree(run / "evaluate")
    for stage in ("reward", "ppo"):
        (run / stage / "events.jsonl").write_bytes(b"")
    assert verdict(run)["worked"] is None and page_of(run).text


def test_a_corrupt_line_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "sft" / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = b'{"kind": "metrics", "step": 7, "loss": NaN}\n'
    path.write_bytes(b"".join(lines))
    text = page_of(run).text
    assert "events.jsonl:7:" in text and "The same against time" in text and "Loss and stopping" not in text


def test_metrics_that_are_not_finite_are_found_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = ppo_rows()
    for i in (20, 30):  # rows[0] is the session, then metrics and timing by turns: indices 2s - 1 are step s
        rows[2 * i - 1][2]["policy/loss"] = float("nan")
    shutil.rmtree(run / "ppo")
    events(run / "ppo", rows)
    (finding,) = [f for f in doctor(run) if f.name == "ppo/policy/loss"]
    assert finding.severity == "error" and finding.step == 20 and "at 2 steps, first nan at step 20" in finding.message
    assert "first nan at step 20" in page_of(run).text


@pytest.mark.parametrize("key", list(evaluation()))
def test_each_missing_key_of_the_evaluation_is_survived(tmp_path_factory: pytest.TempPathFactory, good: Path, key: str) -> None:
    run = tmp_path_factory.mktemp("missing") / "film"
    (run / "evaluate").mkdir(parents=True)
    data = evaluation()
    del data[key]
    rewrite(run, data)
    found = verdict(run)
    optional = {"win_rate", "reward_accuracy", "rows", "seconds_total", "memory_peak_mib", "criteria"}
    assert key in optional or any(key in note for note in found["notes"])
    assert page_of(run).text
    for wrong in (None, "text", -1, [], [1], {"x": None}, {"gold": 3}, True):
        rewrite(run, {**data, key: wrong})
        assert page_of(run).text and verdict(run)


def test_an_evaluation_that_is_no_json_object(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for bad in (b"", b"[1]", b'{"prompts": NaN}', b"\xff"):
        rewrite(run, bad)
        found = verdict(run)
        assert found["worked"] is None and any("evaluation.json" in note and "left out" in note for note in found["notes"])
        assert page_of(run).text


def test_numbers_measured_once_at_the_end_are_shown_and_checked(tmp_path: Path) -> None:
    rows = [("metrics", s, {"loss": 0.69 - 0.001 * s, "accuracy": 0.6, "grad/norm": 1.0}) for s in range(1, 21)]
    events(tmp_path / "reward", [*rows, ("result", 20, {"eval/accuracy": 0.51, "eval/pairs": 80, "updates": 20})])
    (finding,) = doctor(tmp_path / "reward")
    assert finding.name == "reward/eval/accuracy" and "ended at 0.51, outside" in finding.message
    assert "held out" in page_of(tmp_path / "reward").text
    data = evaluation()
    data["reward_accuracy"]["wide"] = {"low": 1.0, "high": None, "pairs": 740, "reward_model": 0.846, "human": 0.907, "gold": 0.873}
    text = page_of(make_run(tmp_path, judged=data)).text
    assert "Of the 740 pairs whose mean ratings differ by 1.00 or more, it ranks 84.6%" in text and "90.7%" in text and "87.3%" in text


def test_unknown_spreads_fall_back_to_raw_scores(good: Path) -> None:
    assert "Raw scores: reward model on the left scale" in page_of(good / "ppo").text
    assert "in standard deviations of the before model" in page_of(good).text


def test_damaged_samples_are_noted_by_line(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "ppo" / "samples" / "step-000080.jsonl"
    path.write_bytes(b'{"completion": "whole"}\n{"compl')
    text = page_of(run / "ppo").text
    assert "whole" in text and "step-000080.jsonl:2" in text


# -- the doctor --------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_what_was_planted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert doctor(run) == []
    rows = [(k, s, {**v, "policy/clip_share": 0.9, "polcy/loss": 1.0, "kl/sequence": 13.0} if k == "metrics" else v) for k, s, v in ppo_rows()]
    rows[2 * 7 - 1][2]["policy/first_ratio_error"] = 0.01
    shutil.rmtree(run / "ppo")
    events(run / "ppo", [*rows, ("finding", 5, {"name": "reward/failed", "severity": "info", "message": "one score timed out"})])
    found = {f.name: f for f in doctor(run)}
    assert set(found) == {"ppo/policy/clip_share", "ppo/policy/first_ratio_error", "ppo/polcy/loss", "ppo/reward/failed", "ppo/kl/target"}
    assert found["ppo/policy/first_ratio_error"].severity == "error" and found["ppo/policy/first_ratio_error"].step == 7
    assert "0.9" in found["ppo/policy/clip_share"].message and "lower lr" in found["ppo/policy/clip_share"].message
    assert "did you mean 'policy/loss'" in found["ppo/polcy/loss"].message
    assert "13 nats" in found["ppo/kl/target"].message and "target of 6" in found["ppo/kl/target"].message
    severities = [f.severity for f in doctor(run)]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


# -- a real browser ----------------------------------------------------------------------------------------------------


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no chromium here: the page is not looked at by a browser (apt-get install chromium)")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ]
    command = [browser, *flags, f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", *arguments, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_browser_draws_it_and_obeys_the_policy(tmp_path: Path, good: Path) -> None:
    from matplotlib.image import imread

    page = tmp_path / "report.html"
    page.write_bytes(report(good).read_bytes())
    done = browse(page, "--window-size=1200,3000", f"--screenshot={tmp_path / 'wide.png'}")
    assert (tmp_path / "wide.png").is_file(), done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr  # chromium reports each refused style or load
    picture = imread(tmp_path / "wide.png")[..., :3]
    assert picture.shape[:2] == (3000, 1200)
    for colour in ("0072b2", "c65300", "00805c"):  # the figures' lines and the verdict's bar have their colours: style sheet and SVG are alive
        rgb = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        assert (np.abs(picture - rgb).max(axis=-1) < 0.02).sum() > 200, colour


def test_a_phone_needs_no_sideways_scrolling(tmp_path: Path, good: Path) -> None:
    # A browser window cannot be narrower than about 500 points, so a frame of 400 holds the page and a script outside it measures.
    (tmp_path / "report.html").write_bytes(report(good).read_bytes())
    outer = tmp_path / "outer.html"
    measure = "d = this.contentDocument.documentElement; document.title = 'w' + d.scrollWidth"
    outer.write_text(f'<iframe src="report.html" width="400" height="2000" onload="{measure}"></iframe>', encoding="utf-8")
    done = browse(outer, "--allow-file-access-from-files", "--dump-dom")
    measured = re.search(r"<title>w(\d+)</title>", done.stdout)
    assert measured, done.stderr[-2000:]
    assert int(measured[1]) <= 400
