"""Whether a new version answers as well as the old one: errors, times and contents of both,
compared at fixed numbers of answers.

A difference counts if chance alone would rarely make it and if it is large enough to matter. A new
version is looked at several times, so each look allows chance little.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.serve.samples import Sample

CHANCE = 0.001  # of a false alarm, in each look at each figure
FIRST_LOOK = 5
SLOWER = 2.0  # times the old version's median time ...
FORWARDED = 0.05  # ... and this many seconds, since its requests go by way of the old version
FEWEST_TIMES = 20
FEWEST_CONTENTS = 40
OTHER_CONTENTS = 0.3  # of the answers must say something else
SHUFFLES = 2_000


def looks(most: int) -> list[int]:
    """The numbers of answers of the new version after which it is judged: 5, doubled up to all."""
    counts = []
    count = min(FIRST_LOOK, most)
    while count < most:
        counts.append(count)
        count *= 2
    return [*counts, most]


def problem(samples: Sequence[Sample]) -> str:
    """What is wrong with the new version, as "answers 3 of 20 requests with an error ..."; empty if
    nothing is."""
    new = [sample for sample in samples if sample.arm == "new"]
    old = [sample for sample in samples if sample.arm == "old"]
    return _errors(new, old) or _times(new, old) or _contents(new, old)


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """The figures of both versions, for the history."""
    figures: dict[str, float] = {}
    for arm in ("new", "old"):
        of = [sample for sample in samples if sample.arm == arm]
        figures[f"{arm}_answers"] = len(of)
        figures[f"{arm}_errors"] = sum(sample.failed for sample in of)
        if seconds := [sample.seconds for sample in of if not sample.failed]:
            figures[f"{arm}_median_seconds"] = round(statistics.median(seconds), 4)
    if both := [sample.agrees for sample in samples if sample.agrees is not None]:
        figures["agreement"] = round(sum(both) / len(both), 4)
    return figures


def _errors(new: Sequence[Sample], old: Sequence[Sample]) -> str:
    """By Fisher's exact test, one-sided: the errors of both are drawn from one urn."""
    wrong, all_wrong = sum(s.failed for s in new), sum(s.failed for s in (*new, *old))
    total = len(new) + len(old)
    ways = sum(
        math.comb(all_wrong, k) * math.comb(total - all_wrong, len(new) - k)
        for k in range(wrong, min(all_wrong, len(new)) + 1)
        if len(new) - k <= total - all_wrong
    )
    likely = ways / math.comb(total, len(new))
    # Without enough of the old version's answers to compare with, half of them is too many.
    if (wrong and likely < CHANCE) or (wrong >= FIRST_LOOK and 2 * wrong > len(new) and not old):
        return (
            f"fails {wrong} of {len(new)} requests, the old one {all_wrong - wrong} of {len(old)}"
        )
    return ""


def _times(new: Sequence[Sample], old: Sequence[Sample]) -> str:
    of_new = [s.seconds for s in new if not s.failed]
    of_old = [s.seconds for s in old if not s.failed]
    if min(len(of_new), len(of_old)) < FEWEST_TIMES:
        return ""
    now, before = statistics.median(of_new), statistics.median(of_old)
    if now > SLOWER * before + FORWARDED:
        return f"takes {now:.3g} s (median of {len(of_new)}), the old one {before:.3g} s"
    return ""


def _contents(new: Sequence[Sample], old: Sequence[Sample]) -> str:
    """The distance of the two distributions of sketches, beside that of shuffled ones."""
    of_new = [s.sketch for s in new if s.sketch and not s.failed]
    of_old = [s.sketch for s in old if s.sketch and not s.failed]
    if min(len(of_new), len(of_old)) < FEWEST_CONTENTS:
        return ""
    names = sorted({*of_new, *of_old})
    number = {name: index for index, name in enumerate(names)}
    drawn = np.array([number[name] for name in (*of_new, *of_old)])

    def distance(values: np.ndarray) -> float:
        first = np.bincount(values[: len(of_new)], minlength=len(names)) / len(of_new)
        rest = np.bincount(values[len(of_new) :], minlength=len(names)) / len(of_old)
        return float(np.abs(first - rest).sum() / 2)

    found = distance(drawn)
    if found < OTHER_CONTENTS:
        return ""
    random = np.random.default_rng(0)
    shuffled = [distance(random.permutation(drawn)) for _ in range(SHUFFLES)]
    if found <= np.quantile(shuffled, 1 - CHANCE):
        return ""
    often, share = Counter(of_new).most_common(1)[0]
    return (
        f"answers otherwise: {found:.0%} of the answers moved; {share / len(of_new):.0%} are now "
        f"{often!r}, which was {of_old.count(often) / len(of_old):.0%} before"
    )
