"""The `tune:` section of a job: the space of a sweep, and which settings exclude each other."""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from orchestrator.job.strict_section import StrictSection

NOT_SWEPT = ("train.steps", "train.minutes", "train.epochs", "train.seed", "model.max_seq_len")
MAX_EXAMPLES = 100
FEW_TRIALS = 8  # with fewer, TPE has too little to learn from

Search = Literal["grid", "random", "tpe"]

# Keys that population based training may change in a running trial: they change neither the shapes
# of weights nor the data.
CHANGED_ON_THE_WAY = ("train.lr", "train.weight_decay", "train.grad_clip", "train.min_lr_ratio")

# The default space: the keys that change most results, and their ranges.
DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "train.lr": {"loguniform": [5e-4, 2e-2]},
    "train.weight_decay": {"loguniform": [0.01, 0.5]},
    "model.dropout": {"uniform": [0.0, 0.3]},
}
DEFAULT_SPACE_OF_PRETRAINED: dict[str, dict[str, Any]] = {
    "train.lr": {"loguniform": [1e-5, 5e-4]},
    "train.weight_decay": {"loguniform": [1e-3, 0.1]},
    "model.dropout": {"uniform": [0.0, 0.2]},
}


class Domain(StrictSection):
    """The values of one key that a sweep tries."""

    choice: list[Any] | None = Field(None, min_length=1, description="one of these")
    uniform: tuple[float, float] | None = Field(None, description="between the two")
    loguniform: tuple[float, float] | None = Field(None, description="the same, on a log scale")
    randint: tuple[int, int] | None = Field(None, description="an integer, the second excluded")
    when: dict[str, Any] | None = Field(
        None,
        min_length=1,
        description="tried only where other keys of the space have this value, or one of a list",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = {k: v for k, v in self.model_dump(exclude={"when"}).items() if v is not None}
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, loguniform, randint")
        (kind, values), *_ = given.items()
        if kind != "choice" and values[0] >= values[1]:
            raise ValueError(
                f"{kind}: [{values[0]}, {values[1]}]: the first must be the smaller one"
            )
        if kind == "loguniform" and values[0] <= 0:
            raise ValueError(f"loguniform: [{values[0]}, {values[1]}]: must be positive")
        return self

    def examples(self) -> list[Any]:
        """Example values. The domain is valid if all of them are."""
        if self.randint is not None:
            low, high = self.randint
            return [*range(low, high)[:MAX_EXAMPLES], high - 1]
        if (ends := self.uniform or self.loguniform) is not None:
            # One value between the ends: the ends may be whole numbers, the samples are not.
            return [*ends, ends[0] + (ends[1] - ends[0]) / math.e]
        return list(self.choice or ())

    def applies(self, values: dict[str, Any]) -> bool:
        """Whether the key is tried together with these values of other keys."""
        return all(
            key in values
            and (
                values[key] in condition
                if isinstance(condition, list)
                else values[key] == condition
            )
            for key, condition in (self.when or {}).items()
        )


class TuneConfig(StrictSection):
    """The `tune:` section of a job. Without one, nothing is swept."""

    trials: int = Field(16, ge=1, le=10_000, description="configurations that are tried")
    steps: int = Field(100, ge=1, description="optimizer steps of a trial that is not stopped")
    minutes: float | None = Field(
        None, gt=0, description="time budget of the whole sweep, however many trials it allows"
    )
    search: Literal["auto", "grid", "random", "tpe"] = Field(
        "auto", description="auto: grid if it fits into the trials, else tpe of Optuna"
    )
    scheduler: Literal["asha", "median", "pbt", "none"] = Field(
        "asha", description="what stops bad trials early, or has them go on from better ones"
    )
    repeats: int = Field(
        1, ge=1, le=100, description="seeds of each configuration that is not stopped early"
    )
    workers: int = Field(
        1, ge=1, description="of each trial: one runs in a process that the next trial takes over"
    )
    space: dict[str, Domain] = Field(
        {}, description="the keys that are tried, train.lr say, and their values"
    )
    warm_start: bool = Field(
        False, description="learn from earlier sweeps of this job, and try their best first"
    )
    deploy_best_trial: bool = Field(
        False, description="take the best trial's weights in place of training anew"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the sampled configurations")

    @property
    def searched_by(self) -> Search:
        """The search, resolved if it is `auto`."""
        if self.search != "auto":
            return self.search
        if self.scheduler == "pbt":
            return "random"
        if (count := self.grid_size()) is not None and count <= self.trials:
            return "grid"
        return "tpe" if self.trials >= FEW_TRIALS else "random"

    @property
    def configurations(self) -> int:
        """The number of configurations that are tried; a grid may have fewer than `trials`."""
        size = self.grid_size() if self.searched_by == "grid" else None
        return self.trials if size is None else min(size, self.trials)

    def grid_size(self) -> int | None:
        """The size of the grid; None if a key has no list of values."""
        if any(domain.choice is None for domain in self.space.values()):
            return None
        return len(grid(self.space))

    def problems(self) -> list[tuple[str, str]]:
        """Settings that exclude each other: the key, and the rest of the sentence."""
        problems = []
        for name, domain in self.space.items():
            for key in domain.when or {}:
                if key not in self.space or name in _needs(self.space, name):
                    problems.append(
                        (f"space.{name}", f".when: {key}: is no other key of the space")
                    )
        if problems:
            return problems
        if self.search == "grid" and (size := self.grid_size()) is None:
            problems.append(("search", " = grid: every key of the space must be a choice"))
        elif self.search == "grid" and size is not None and size > self.trials:
            problems.append(("trials", f" = {self.trials}: the grid has {size} configurations"))
        if self.scheduler == "pbt":
            problems += self._pbt_problems()
        if self.deploy_best_trial and self.repeats > 1:
            problems.append(
                ("repeats", f" = {self.repeats}: tune.deploy_best_trial takes one trial")
            )
        return problems

    def _pbt_problems(self) -> list[tuple[str, str]]:
        problems = []
        if self.search in ("grid", "tpe"):
            problems.append(("search", f" = {self.search}: pbt samples its population at random"))
        if self.repeats > 1:
            problems.append(
                ("repeats", f" = {self.repeats}: with pbt, no configuration stays itself")
            )
        if self.trials < 4:
            problems.append(("trials", f" = {self.trials}: pbt needs a population of 4 or more"))
        if self.workers > 1:
            problems.append(("workers", f" = {self.workers}: pbt needs trials of one worker"))
        for name, domain in self.space.items():
            if name not in (*CHANGED_ON_THE_WAY, "model.dropout"):
                problems.append((f"space.{name}", ": cannot change while a trial of pbt goes on"))
            if domain.when:
                problems.append((f"space.{name}", ".when: pbt knows no conditions"))
        return problems


def in_order(space: dict[str, Domain]) -> list[str]:
    """The keys of a space by name, each after the keys in its condition."""
    ordered: dict[str, None] = {}

    def add(name: str, seen: tuple[str, ...]) -> None:
        for key in sorted(space[name].when or {}):
            if key in space and key not in seen:
                add(key, (*seen, name))
        ordered.setdefault(name)

    for name in sorted(space):
        add(name, ())
    return list(ordered)


def grid(space: dict[str, Domain]) -> list[dict[str, Any]]:
    """All configurations of a space of choices, without duplicates caused by conditions."""
    combinations: list[dict[str, Any]] = [{}]
    for name in in_order(space):
        domain = space[name]
        grown = []
        for values in combinations:
            if domain.applies(values):
                grown += [{**values, name: choice} for choice in domain.choice or ()]
            else:
                grown.append(values)
        combinations = grown
    return combinations


def _needs(space: dict[str, Domain], name: str, seen: tuple[str, ...] = ()) -> set[str]:
    """The keys in a key's condition, and the keys in their conditions."""
    keys = set((space[name].when or {}) if name in space else {})
    for key in keys - set(seen):
        keys |= _needs(space, key, (*seen, key))
    return keys


def with_default_space(data: dict[str, Any]) -> dict[str, Any]:
    """Plain job data with a space to sweep, if the job asks for a sweep and names no space."""
    tune, model = data.get("tune"), data.get("model")
    if not isinstance(tune, dict) or tune.get("space"):
        return data
    pretrained = isinstance(model, dict) and model.get("init_from") is not None
    return {
        **data,
        "tune": {**tune, "space": DEFAULT_SPACE_OF_PRETRAINED if pretrained else DEFAULT_SPACE},
    }
