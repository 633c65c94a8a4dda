"""One artifact: its proof, its files, how to load it, and what the catalogue says of it."""

import streamlit as st

from paredown.contracts.access import Scope
from paredown.contracts.artifact import ArtifactView, Manifest
from paredown.contracts.job import Format
from paredown.contracts.recipes import recipe_name
from paredown.contracts.report import Verdict
from paredown.web import aliases, draft, form, parts, report, serving, session, snippets
from paredown.web import format as fmt

_CHILDREN = 20


def page() -> None:
    artifact_id = parts.item_id()
    if artifact_id is None:
        parts.empty_state(
            "This address names no artifact. Choose one from the catalogue.",
            page=parts.CATALOGUE,
            action="Catalogue",
            icon="link_off",
        )
        return
    client = session.client()
    view = client.artifact(artifact_id)
    manifest = session.remembered(f"manifest.{view.id}", 600, lambda: client.manifest(view.id))
    st.set_page_config(page_title=f"{view.name} · Pare")
    st.page_link(parts.CATALOGUE, label="Catalogue", icon=":material/arrow_back:")
    st.title(parts.plain(view.name), anchor=False)
    _head(view)
    tabs = st.tabs(["Report", "Use it", "Lineage", "Files", "Manifest", "Aliases", "Edit"])
    with tabs[0], parts.problems_shown("report"):
        report.show(manifest, view.override)
        _calibration(view, manifest)
        _override(view)
    with tabs[1], parts.problems_shown("serving"):
        _use(view, manifest)
        serving.show(manifest.report)
    with tabs[2], parts.problems_shown("lineage"):
        _lineage(view)
    with tabs[3], parts.problems_shown("files"):
        _files(view)
    with tabs[4]:
        _manifest(manifest)
    with tabs[5], parts.problems_shown("aliases"):
        aliases.show(view)
    with tabs[6]:
        _edit(view)


def _head(view: ArtifactView) -> None:
    with st.container(horizontal=True, key="artifact-head", vertical_alignment="center"):
        shared = parts.badge("shared by everyone", "tag") if view.visibility == "everyone" else ""
        st.html(
            parts.verdict_badge(view.verdict) + shared + parts.alias_badges(view.aliases) + parts.tag_badges(view.tags),
            width="content",
        )
        if view.project == session.me().project:
            st.page_link(
                parts.JOB, label="Open the job", icon=":material/monitoring:", query_params={"id": str(view.job_id)}
            )
    parts.facts(
        [
            ("Model", parts.mono(view.model)),
            ("Recipe", parts.escaped(view.recipe_name)),
            ("Format", parts.escaped(view.format.value)),
            ("Parameters", fmt.count(view.parameters)),
            ("Project", parts.escaped(view.project)),
            ("Made", fmt.moment(view.created_at)),
        ]
    )


def _override(view: ArtifactView) -> None:
    """Of an artifact of this project that missed its budget: a person may take it all the same."""
    me = session.me()
    if view.verdict is not Verdict.MISSED or view.project != me.project:
        return
    st.subheader("Override the verdict", anchor=False)
    if Scope.ARTIFACTS_OVERRIDE not in me.scopes:
        st.caption("A key with the scope artifacts:override may take this artifact all the same, with a reason.")
        return
    with st.form("override"):
        reason = st.text_area(
            "Why it may be used all the same",
            max_chars=2000,
            help="The reason stays with the artifact, with this key's name and the time. The job stays rejected.",
            key=f"artifact.override.{view.id}",
        )
        pressed = st.form_submit_button("Override", icon=":material/gavel:")
    if pressed and not reason.strip():
        st.error("An override needs a reason.", icon=":material/error:")
    elif pressed:
        with parts.problems_shown("override"):
            session.client().override_verdict(view.id, reason.strip())
            st.toast("The verdict is overridden.", icon=":material/check:")
            st.rerun()


def _calibration(view: ArtifactView, manifest: Manifest) -> None:
    """The tokens that it was calibrated on, and how another job takes the same."""
    calibration, tokens = manifest.calibration, manifest.calibration_tokens_sha256
    if calibration is None or tokens is None:
        return
    st.subheader("Calibration", anchor=False)
    left_out = manifest.report.held_out_windows
    parts.facts(
        [
            ("Source", parts.mono(calibration.source)),
            ("Sequences", f"{calibration.samples} × {calibration.sequence_length}"),
            ("Seed", str(calibration.seed)),
            *([("Asymmetry", f"{calibration.asymmetry:g}")] if calibration.asymmetry else []),
            *([("Held out", f"{left_out} windows")] if left_out is not None else []),
            ("Tokens", parts.mono(f"{tokens[:16]}…")),
        ]
    )
    if view.project != session.me().project:
        return
    kept = session.client().calibrations_page(tokens_sha256=tokens, limit=1).items
    if kept:
        st.caption("Another job takes these very tokens with this source:")
        parts.copyable(kept[0].uri, None)


def _use(view: ArtifactView, manifest: Manifest) -> None:
    st.markdown("**1. Download it.** Every file is checked by its hash; run again, it resumes.")
    parts.copyable(snippets.download(view), "bash")
    loaders = snippets.loaders(view, manifest)
    if not loaders:
        st.info("No runtime loaded this artifact, so none is claimed. The report says why.", icon=":material/info:")
        return
    st.markdown("**2. Load it.** Only runtimes are listed that loaded it and generated from it.")
    for tab, (_, language, code) in zip(st.tabs([name for name, _, _ in loaders]), loaders, strict=True):
        with tab:
            parts.copyable(code, language)


def _lineage(view: ArtifactView) -> None:
    parts.facts(
        [
            ("Made of", parts.mono(view.model)),
            *(
                (f"then, {recipe_name(ancestor.recipe)}", parts.mono(f"artifact://{ancestor.artifact_id}"))
                for ancestor in view.lineage
            ),
            ("then, this artifact", parts.escaped(recipe_name(view.recipe))),
        ]
    )
    if view.lineage:
        _relative("The artifact that this one was made of", str(view.lineage[-1].artifact_id))
    made = session.client().artifacts_page(parent=view.id, limit=_CHILDREN)
    st.subheader("Made of this one", anchor=False)
    for child in made.items:
        _relative(child.name, str(child.id))
    if made.has_more:
        st.caption(f"These are the newest {_CHILDREN}; `pare artifacts --parent {view.id}` lists more.")
    if not made.items:
        st.caption("Nothing yet.")
    if view.format is not Format.SAFETENSORS:
        st.caption(f"Its weights are packed ({parts.plain(view.format.value)}), so it cannot be compressed further.")
    elif st.button("Compress it further", icon=":material/compress:", key="further"):
        st.session_state[draft.MODEL] = f"artifact://{view.id}"
        # The default budget compares with the base, which is not here then.
        st.session_state[draft.BUDGET_CHOICE] = "none"
        st.switch_page(parts.SUBMIT)


def _relative(label: str, artifact_id: str) -> None:
    st.page_link(
        parts.ARTIFACT,
        label=f"**{parts.plain(label)}**",
        icon=":material/arrow_forward:",
        query_params={"id": artifact_id},
    )


def _files(view: ArtifactView) -> None:
    links = session.client().files(view.id)
    rows = [
        [
            parts.link(link.url, link.path),
            fmt.size(link.size_bytes),
            parts.mono(f"{link.sha256[:16]}…") if link.sha256 else fmt.ABSENT,
        ]
        for link in links
    ]
    parts.table(["File", "Size", "SHA-256"], rows)
    if links:
        until = min(link.expires_at for link in links)
        st.caption(f"These addresses need no key until {fmt.moment(until)}. Reload the page for new ones.")


def _manifest(manifest: Manifest) -> None:
    isolation = manifest.isolation
    held = [
        name
        for name, applied in (
            ("own process group", isolation.process_group),
            ("empty environment", isolation.empty_environment),
            ("no network", isolation.no_network),
            ("not root", isolation.non_root),
            ("no new privileges", isolation.no_new_privileges),
        )
        if applied
    ]
    parts.facts(
        [
            ("Base revision", parts.mono(manifest.base.revision)),
            ("Base fingerprint", parts.mono(manifest.base.fingerprint)),
            ("Recipe hash", parts.mono(manifest.recipe_hash)),
            (
                "Calibration tokens",
                parts.mono(manifest.calibration_tokens_sha256 or fmt.ABSENT),
            ),
            ("Engine was held by", parts.escaped(", ".join(held) or "nothing")),
            ("Made with", parts.escaped(", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()))),
        ]
    )
    text = manifest.model_dump_json(indent=2)
    st.download_button(
        "Download manifest.json",
        text,
        "manifest.json",
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        key="manifest-download",
    )
    st.json(manifest.model_dump(mode="json"), expanded=1)


def _edit(view: ArtifactView) -> None:
    if view.project != session.me().project:
        st.info(f"This artifact belongs to the project {parts.plain(view.project)}; only it can change it.")
        return
    with st.form("edit-artifact"):
        name = st.text_input("Name", view.name, max_chars=120, key=f"artifact.name.{view.id}")
        tags = st.text_input(
            "Tags", " ".join(view.tags), help="Separate several with spaces.", key=f"artifact.tags.{view.id}"
        )
        everyone = st.toggle(
            "Readable by every project", view.visibility == "everyone", key=f"artifact.everyone.{view.id}"
        )
        saved = st.form_submit_button("Save", type="primary", icon=":material/save:")
    if saved:
        with parts.problems_shown("edit"):
            session.client().update_artifact(
                view.id,
                name=name.strip() or None,
                tags=form.split_words(tags),
                visibility="everyone" if everyone else "project",
            )
            st.toast("Saved.", icon=":material/check:")
            st.rerun()
    question = f"delete {view.id}"
    st.button("Delete this artifact", icon=":material/delete:", key="delete", on_click=parts.ask, args=(question,))
    if parts.asked() == question:
        _confirm_delete(view)


@st.dialog("Delete this artifact?", on_dismiss=parts.answered)
def _confirm_delete(view: ArtifactView) -> None:
    st.write(f"**{parts.plain(view.name)}**, all {fmt.size(view.size_bytes)} of it, is gone for good. The job stays.")
    with st.container(horizontal=True):
        if st.button("Delete for good", type="primary", key="confirm-delete"):
            with parts.problems_shown("delete"):
                session.client().delete_artifact(view.id)
                parts.answered()
                session.forget()
                st.switch_page(parts.CATALOGUE)
        if st.button("Keep it", key="dismiss-delete", on_click=parts.answered):
            st.rerun()


page()
