"""Trials in Optuna's form, and the importances of options."""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from rl_lnlstm.tuning.records import Trial
from rl_lnlstm.tuning.space import LogRange, Point, Space, encoded, point_of

TOP = 0.25  # the share of trials that importances tell from the others

optuna.logging.set_verbosity(optuna.logging.ERROR)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's form. A choice is an integer, the place of its value, because the values have an order."""
    return {
        name: FloatDistribution(values.low, values.high, log=True)
        if isinstance(values, LogRange)
        else IntDistribution(0, len(values.values) - 1)
        for name, values in space.items()
    }


def encoded_point(point: Point, space: Space) -> dict[str, float]:
    """A point as the numbers that Optuna sees."""
    return {name: encoded(name, value, space) for name, value in point.items()}


def as_optuna(trial: Trial, space: Space) -> FrozenTrial | None:
    """A trial that has ended, in Optuna's form; None if it is outside the space. Failed trials count as bad ones."""
    point = point_of(trial.options, space)
    if point is None:
        return None
    scored = not math.isnan(trial.score) and trial.state != "failed"
    return create_trial(
        state=TrialState.COMPLETE if scored else TrialState.PRUNED,
        value=trial.score if scored else None,
        params=encoded_point(point, space),
        distributions=distributions(space),
    )


def importances(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    """How much each part of the space decides whether a trial is among the best quarter; they sum to 1.

    See Watanabe et al. (2023), "PED-ANOVA: Efficiently quantifying hyperparameter importance in arbitrary subspaces".
    It needs only the order of the scores, so pruned trials count too. Empty if there are too few trials.
    """
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        if trial.state in ("completed", "pruned") and (found := as_optuna(trial, space)) is not None:
            study.add_trial(found)
    values = {trial.value for trial in study.trials}
    if len(study.trials) < 4 or len(values) < 2 or not space:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
