"""How much each parameter mattered, told once for as many trials as have ended."""

import logging
import threading
from typing import Any

from orchestrator.dashboard.summary import trial_value
from orchestrator.dashboard.sweep import FollowedSweep
from orchestrator.job.search_space import Domain
from orchestrator.tasks.task import Metric
from orchestrator.tune.records import SweepRecord, Trial

log = logging.getLogger(__name__)


class Importances:
    """Of all sweeps that are looked at."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, dict[str, float]]] = {}
        self._lock = threading.Lock()

    def of(self, sweep: FollowedSweep) -> dict[str, Any]:
        """The share of each parameter, the most important first, and of how many trials."""
        assert sweep.record is not None
        trials = [trial for trial in sweep.trials if trial.state != "running"]
        with self._lock:
            count, shares = self._known.get(str(sweep.folder), (-1, {}))
            if count != len(trials):
                shares = importance(sweep.record, trials)
                self._known[str(sweep.folder)] = (len(trials), shares)
        return {"trials": len(trials), "shares": shares}


def importance(record: SweepRecord, trials: list[Trial]) -> dict[str, float]:
    """As the report of a finished sweep tells it; empty where nothing can be told."""
    from orchestrator.tune.findings import importances  # Optuna takes a second to import

    known = [trial for trial in trials if trial_value(trial, record.metric) is not None]
    try:
        space = {key: Domain.model_validate(domain) for key, domain in record.space.items()}
        shares = importances(space, Metric(record.metric, record.mode), known)
    except Exception as error:  # a chart less, and no reason to show nothing
        log.warning("the importance of parameters cannot be told: %s", error)
        return {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
