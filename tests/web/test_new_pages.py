"""Sweeps and searches from the form alone, and tasks of a job: what a person chooses is what the service gets."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from tests.web.house import MODEL, House
from tests.web.test_pages import SUBMIT, choose, go, said, submitted

from paredown.client.recipe_files import read_request
from paredown.contracts.search import SearchSpec
from paredown.contracts.sweep import SweepSpec
from paredown.core import catalogue, jobs, searches, sweeps

NEW_SWEEP, NEW_SEARCH = "views/new_sweep.py", "views/new_search.py"


def metric(app: AppTest, label: str) -> str:
    return next(metric.value for metric in app.metric if metric.label == label)


def press(app: AppTest, key: str) -> AppTest:
    app.button(key=key).click().run()
    assert not app.exception
    return app


def from_file(app: AppTest, contract: type[Any], path: Path) -> Any:
    """What the file that the page shows says to the command."""
    path.write_text(app.code[0].value)
    return read_request(path, contract, "")


def test_a_grid_is_planned_whole_and_submitted(app: AppTest, house: House, tmp_path: Path) -> None:
    go(app, NEW_SWEEP)
    assert "Choose a model" in said(app)
    choose(app, MODEL)
    assert metric(app, "Jobs") == "4"
    app.multiselect(key="draft.sweep.pruners").set_value(["wanda"])
    app.multiselect(key="draft.sweep.sparsities").set_value([0.3, 0.5])
    app.multiselect(key="draft.sweep.quantizers").set_value(["gptq"]).run()
    # Unpruned and two sparsities, with 3 and with 4 bits.
    assert metric(app, "Jobs") == "6"
    app.toggle(key="draft.sweep.unpruned").set_value(False)
    app.text_input(key="draft.sweep.name").set_value("pruned or not").run()
    assert metric(app, "Jobs") == "4"
    shown = from_file(app, SweepSpec, tmp_path / "sweep.yaml")
    press(app, "submit")
    with house.database.transaction() as session:
        [view], _ = sweeps.list_sweeps(session, house.project, after=None, limit=5)
        kept = sweeps.get(session, house.project, view.id).spec
    assert (view.name, view.recipes) == ("pruned or not", 4)
    assert kept == shown
    assert [[stage.method for stage in recipe] for recipe in kept.recipes] == [["wanda", "gptq"]] * 4
    assert kept.budget is not None
    assert "has become a sweep" in said(app)
    assert len(submitted(house)) == 4


def test_recipes_are_put_on_a_list_and_a_bad_one_is_named(app: AppTest, house: House) -> None:
    go(app, NEW_SWEEP)
    choose(app, MODEL)
    app.radio(key="draft.sweep.mode").set_value("list").run()
    assert "Put at least one recipe on the list." in said(app)
    press(app, "sweep.put")
    app.selectbox(key="draft.stage.1.gptq.bits").set_value(3).run()
    press(app, "sweep.put")
    assert "gptq (bits 3)" in said(app).replace("\\", "")
    assert metric(app, "Jobs") == "2"
    # 128 does not divide this model's layers.
    app.selectbox(key="draft.stage.1.gptq.group_size").set_value(128).run()
    press(app, "sweep.put")
    words = said(app).replace("\\", "")
    assert "Recipe 2 (gptq-3)" in words
    assert app.button(key="submit").disabled
    press(app, "sweep.take.2")
    assert metric(app, "Jobs") == "2"
    press(app, "submit")
    assert len(submitted(house)) == 2


def test_a_search_has_its_limits_methods_and_trials(app: AppTest, house: House, tmp_path: Path) -> None:
    go(app, NEW_SEARCH)
    choose(app, MODEL)
    app.radio(key="draft.search.minimize").set_value("size").run()
    assert "Give a limit on loss" in said(app)
    app.radio(key="draft.search.minimize").set_value("loss")
    app.number_input(key="draft.search.max_size_ratio").set_value(None).run()
    assert "Give a limit on bytes" in said(app)
    app.number_input(key="draft.search.max_size_ratio").set_value(0.4)
    app.number_input(key="draft.search.max_trials").set_value(5)
    app.multiselect(key="draft.space.quantizers").set_value(["rtn", "gptq"])
    app.text_input(key="draft.space.sparsities").set_value("0.3").run()
    assert metric(app, "Recipes tried") == "≤ 5"
    shown = from_file(app, SearchSpec, tmp_path / "search.yaml")
    press(app, "submit")
    with house.database.transaction() as session:
        [view], _ = searches.list_searches(session, house.project, after=None, limit=5)
        kept = searches.get(session, house.project, view.id).spec
    assert kept == shown
    assert (kept.max_size_ratio, kept.max_trials, kept.space.quantizers) == (0.4, 5, ("rtn", "gptq"))
    assert kept.space.sparsities == (0.3,)


def test_a_limit_that_no_recipe_can_hold_is_a_sentence(app: AppTest) -> None:
    go(app, NEW_SEARCH)
    choose(app, MODEL)
    app.number_input(key="draft.search.max_size_ratio").set_value(0.01).run()
    press(app, "submit")
    assert len(app.error) == 1
    assert "max_size_ratio" in said(app) or "limit" in app.error[0].value


@pytest.mark.parametrize("typed", ["0.3 x", "2"])
def test_a_sparsity_that_is_none_is_said_at_its_field(app: AppTest, typed: str) -> None:
    go(app, NEW_SEARCH)
    choose(app, MODEL)
    app.text_input(key="draft.space.sparsities").set_value(typed).run()
    assert not app.exception
    assert any("parsities" in warning.value for warning in app.warning)
    assert app.button(key="submit-disabled").disabled


def test_tasks_are_chosen_with_their_rows(app: AppTest, house: House) -> None:
    go(app, SUBMIT)
    choose(app, MODEL)
    app.multiselect(key="draft.tasks").set_value(["mmlu", "blimp"]).run()
    assert "name its rows in source" in said(app), "nobody knows where BLiMP lies"
    assert app.button(key="submit-disabled").disabled
    row = b'{"sentence_good": "He is.", "sentence_bad": "He are.", "UID": "agreement"}\n'
    next(box for box in app.file_uploader if "sentence_good" in box.label).set_value(("rows.jsonl", row, "text/plain"))
    app.run()
    press(app, "upload-blimp-send")
    app.number_input(key="draft.task.blimp.limit").set_value(500).run()
    words = shlex.split(next(code.value for code in app.code if code.value.startswith("curl")))
    assert '"limit": 500' in words[words.index("--data") + 1]
    press(app, "submit")
    with house.database.transaction() as session:
        (dataset,), _ = catalogue.list_datasets(session, house.project, after=None, limit=5)
        tasks = jobs.get(session, house.project, submitted(house)[0]).spec.evaluation.tasks
    assert [(task.name, task.source, task.limit) for task in tasks] == [
        ("blimp", f"dataset://{dataset.id}", 500),
        ("mmlu", None, None),
    ]


def test_languages_are_measured_one_by_one(app: AppTest, house: House) -> None:
    go(app, SUBMIT)
    choose(app, MODEL)
    texts = []
    for name in ("french.txt", "finnish.txt"):
        app.file_uploader[0].set_value((name, name.encode() * 99, "text/plain")).run()
        press(app, "upload-send")
        texts.append(app.selectbox(key="draft.calibration.source").value)
    app.multiselect(key="draft.domains").set_value(texts).run()
    assert [app.text_input(key=f"draft.domain.{text}").value for text in texts] == ["french.txt", "finnish.txt"]
    app.text_input(key=f"draft.domain.{texts[0]}").set_value("Finnish")
    app.text_input(key=f"draft.domain.{texts[1]}").set_value("Finnish").run()
    assert "Two domains have the same name" in said(app)
    assert app.button(key="submit-disabled").disabled
    app.text_input(key=f"draft.domain.{texts[0]}").set_value("French").run()
    press(app, "submit")
    with house.database.transaction() as session:
        domains = jobs.get(session, house.project, submitted(house)[0]).spec.evaluation.domains
    assert [(domain.name, domain.source) for domain in domains] == list(zip(["French", "Finnish"], texts, strict=True))
