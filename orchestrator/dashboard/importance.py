"""Which parameters matter: PED-ANOVA of Optuna over the trials that have a value.

Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
Subspaces", 2023, https://arxiv.org/abs/2304.10255
"""

import json
import logging
import math
import warnings
from typing import TYPE_CHECKING, Any

from orchestrator.dashboard.summary import trial_value
from orchestrator.dashboard.sweep import current
from orchestrator.trials import SweepRecord, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FEWEST = 10  # trials: of fewer, nothing can be said

log = logging.getLogger(__name__)


def importance(record: SweepRecord, trials: list[Trial]) -> dict[str, float]:
    """The share of each parameter, the most important first; empty where nothing can be said."""
    ended = [
        t for t in trials if t.state != "running" and trial_value(t, record.metric) is not None
    ]
    if len(ended) < FEWEST:
        return {}
    try:
        return _ped_anova(record, ended)
    except Exception as error:  # a chart less, and no reason to show nothing
        log.warning("the importance of parameters cannot be told: %s", error)
        return {}


def _ped_anova(record: SweepRecord, trials: list[Trial]) -> dict[str, float]:
    import optuna  # takes its time to import, which no page waits for

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    values = [current(trial) for trial in trials]
    everywhere = [key for key in record.space if all(key in of_trial for of_trial in values)]
    named = {key: [_plain(of_trial[key]) for of_trial in values] for key in everywhere}
    found = {key: _distribution(record.space[key], values) for key, values in named.items()}
    distributions = {key: distribution for key, distribution in found.items() if distribution}
    study = optuna.create_study(direction="minimize" if record.mode == "min" else "maximize")
    for number, trial in enumerate(trials):
        parameters = {key: named[key][number] for key in distributions}
        study.add_trial(
            optuna.trial.create_trial(
                params=parameters,
                distributions=distributions,
                value=trial_value(trial, record.metric),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items() if math.isfinite(share)}


def _distribution(domain: dict[str, Any], values: list[Any]) -> "BaseDistribution | None":
    """What a parameter was drawn from, wide enough for all its values: they may have been
    perturbed out of it; None where all are the same."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if len(set(values)) < 2:
        return None
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if "choice" in domain or len(numbers) < len(values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(numbers), max(numbers)
    log_scale = any(kind.startswith("log") for kind in domain) and low > 0
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), log=log_scale)
    return FloatDistribution(float(low), float(high), log=log_scale)


def _plain(value: Any) -> Any:
    """A value that Optuna takes for a category: lists and sections as their JSON."""
    return json.dumps(value) if isinstance(value, dict | list) else value
