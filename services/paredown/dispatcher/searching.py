"""Goes on with searches: which recipe is tried next is Optuna's choice, which is remembered nowhere but in our tables.

The optimizer is made anew for each choice, from the trials that have ended: whoever is killed here loses nothing, and
the next dispatcher chooses from the same figures.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import optuna
import structlog
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy.orm import Session

from paredown.contracts.search import Parameters, Rung, SearchSpec, SearchState, losses_of
from paredown.core import searches
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.tables import SearchRow

log = structlog.get_logger(__name__)

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Of the optimizer's proposals, most are recipes that were tried or that no plan allows, once few are left.
_PROPOSALS = 16
_LEAST_STARTUP = 5


@dataclass(frozen=True)
class Told:
    """A recipe that was tried, with what is to be small: loss and bytes over the base's."""

    parameters: Parameters
    loss: float
    size_ratio: float


def advance(database: Database) -> None:
    """One step for each open search that no other dispatcher holds. Each step is one transaction."""
    with database.transaction() as session:
        found = searches.open_searches(session)
    for search_id in found:
        try:
            with database.transaction() as session:
                row = searches.take(session, search_id)
                if row is not None:
                    _Step(session, row).take()
        except DatabaseUnavailable:
            raise
        except Exception:
            # The other searches go on.
            log.exception("search_step_failed", search_id=str(search_id))


def suggest(
    candidates: Sequence[Parameters], tried: Sequence[int], told: Sequence[Told], spec: SearchSpec
) -> int | None:
    """Which candidate to try next; None when all were tried. The same figures give the same answer."""
    left = {_key(candidates[index]): index for index in sorted(set(range(len(candidates))) - set(tried))}
    if not left:
        return None
    seed = (spec.seed * 100_003 + len(tried)) % 2**32
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(_LEAST_STARTUP, spec.max_trials // 4))
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    choices = _choices(candidates)
    for each in told:
        distributions: dict[str, BaseDistribution] = {name: choices[name] for name in each.parameters}
        values = [each.loss, each.size_ratio]
        study.add_trial(create_trial(params=dict(each.parameters), distributions=distributions, values=values))
    for _ in range(_PROPOSALS):
        trial = study.ask()
        proposed = _proposed(trial, choices)
        if (index := left.get(_key(proposed))) is not None:
            return index
        study.tell(trial, state=TrialState.FAIL)
    return random.Random(seed).choice(list(left.values()))  # noqa: S311 - nothing secret


def _choices(candidates: Sequence[Parameters]) -> dict[str, CategoricalDistribution]:
    values: dict[str, dict[str | int | float, None]] = {}
    for parameters in candidates:
        for name, value in parameters.items():
            values.setdefault(name, {})[value] = None
    return {name: CategoricalDistribution(tuple(seen)) for name, seen in values.items()}


def _proposed(trial: optuna.Trial, choices: dict[str, CategoricalDistribution]) -> Parameters:
    """What SearchSpace.combinations makes, asked of the optimizer: only what a recipe needs."""

    def ask(name: str) -> str | int | float:
        return cast("str | int | float", trial.suggest_categorical(name, choices[name].choices))

    chosen: Parameters = {"first": ask("first"), "quantizer": ask("quantizer")}
    if "grid" in choices:
        chosen["grid"] = ask("grid")
    if chosen.get("grid") != "k-quant":
        chosen["group_size"] = ask("group_size")
    needed = {"wanda": "sparsity", "sparsegpt": "sparsity", "shortgpt": "share", "llm-pruner": "share"}
    if extra := needed.get(str(chosen["first"])):
        chosen[extra] = ask(extra)
    width = "average_bits" if chosen["quantizer"] == "mixed" else "bits"
    chosen[width] = ask(width)
    # A search of a release that knew none has none.
    if "embeddings" in choices:
        chosen["embeddings"] = ask("embeddings")
    return chosen


def _key(parameters: Parameters) -> frozenset[tuple[str, str | int | float]]:
    return frozenset(parameters.items())


class _Step:
    """What one transaction does for a search: enter what has ended, then begin what may begin, or end it."""

    def __init__(self, session: Session, row: SearchRow) -> None:
        self._session = session
        self._row = row
        self._spec = SearchSpec.model_validate(row.spec)
        searches.settle(session, row)
        self._trials = searches.trials_of(session, row)
        self._seconds = searches.seconds_since_begin(session, row)

    def take(self) -> None:
        limit = self._spec.max_seconds
        if limit is not None and self._seconds > limit:
            searches.cancel_jobs(self._session, self._row)
            self._end()
        elif self._row.state == SearchState.EXPLORING:
            self._explore()
        else:
            self._confirm()

    def _explore(self) -> None:
        """Recipe after recipe, until so many were tried, none is left, or the time for it is up."""
        rung, limit = self._spec.first_rung, self._spec.max_seconds
        late = limit is not None and rung is Rung.PROXY and self._seconds > searches.EXPLORING_SHARE * limit
        if late:
            searches.cancel_jobs(self._session, self._row)
        elif self._begin_some(rung) or self._open():
            return
        if rung is Rung.FULL:
            self._end()
        else:
            searches.advance_to(self._session, self._row, SearchState.CONFIRMING)
            self._confirm()

    def _begin_some(self, rung: Rung) -> bool:
        """Begin what may begin now; whether there will be more to begin."""
        while len(self._trials) < self._spec.max_trials:
            if len(self._open()) >= self._spec.parallel:
                return True
            candidate = self._next(rung)
            if candidate is None:
                return False
            self._begin(rung, candidate)
        return False

    def _confirm(self) -> None:
        """The best proxies, each once, at most `parallel` at a time."""
        candidates = {trial.view.number: trial.candidate for trial in self._trials}
        proxies = [trial.view for trial in self._trials if trial.view.rung is Rung.PROXY]
        begun = {trial.candidate for trial in self._trials if trial.view.rung is Rung.FULL}
        best = [candidates[view.number] for view in searches.best_first(proxies, self._spec)]
        survivors = best[: self._spec.survivors]
        for candidate in survivors:
            if candidate not in begun and len(self._open()) < self._spec.parallel:
                self._begin(Rung.FULL, candidate)
                begun.add(candidate)
        if begun >= set(survivors) and not self._open():
            self._end()

    def _end(self) -> None:
        chosen, explanation = searches.choice([trial.view for trial in self._trials], self._spec)
        searches.end(self._session, self._row, SearchState.FINISHED, chosen, explanation)
        log.info("search_finished", search_id=str(self._row.id), chosen=chosen, trials=len(self._trials))

    def _begin(self, rung: Rung, candidate: int) -> None:
        searches.begin(self._session, self._row, self._spec, rung, candidate, len(self._trials))
        self._trials = searches.trials_of(self._session, self._row)

    def _next(self, rung: Rung) -> int | None:
        candidates: list[Parameters] = [item["parameters"] for item in self._row.candidates]
        of_rung = [trial for trial in self._trials if trial.view.rung is rung]
        losses = losses_of([trial.view for trial in of_rung])
        told = [
            Told(candidates[trial.candidate], losses[trial.view.number], trial.view.size_ratio)
            for trial in of_rung
            if trial.view.number in losses and trial.view.size_ratio is not None
        ]
        return suggest(candidates, [trial.candidate for trial in of_rung], told, self._spec)

    def _open(self) -> list[searches.Trial]:
        return [trial for trial in self._trials if not trial.settled]
