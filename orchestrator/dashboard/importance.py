"""The importance of each parameter, computed once per number of ended trials."""

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
    """The importances of all sweeps that are shown."""

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
    """The same as in a finished sweep's report; empty if there are too few trials."""
    from orchestrator.tune.findings import importances  # Optuna takes a second to import

    known = [trial for trial in trials if trial_value(trial, record.metric) is not None]
    try:
        space = {key: Domain.model_validate(domain) for key, domain in record.space.items()}
        shares = importances(space, Metric(record.metric, record.mode), known)
    except Exception as error:  # the page then lacks this chart only
        log.warning("cannot compute the importance of parameters: %s", error)
        return {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
