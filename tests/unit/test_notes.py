"""Notes on the screen: lines that stay while a training runs."""

import io

import pytest
from rich.console import Console

from orchestrator.display import TerminalDisplay, figures


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_note_is_one_line_of_a_terminal_and_whole_in_a_log(is_terminal: bool) -> None:
    output = io.StringIO()
    display = TerminalDisplay(Console(file=output, force_terminal=is_terminal, width=40))
    display.start("training", total=10, unit="steps")
    display.note("step 3: " + "long " * 20 + "[red]end[/]")
    display.finish()
    (line,) = [line for line in output.getvalue().splitlines() if "step 3" in line]
    assert line.endswith("[red]end[/]") != is_terminal
    assert ("…" in line) == is_terminal


def test_the_live_line_has_the_peak_memory() -> None:
    shown = figures({"loss": 2.5, "peak memory GB": 1.234, "tokens/s": 1000.0})
    assert shown == "loss 2.500  1,000 tokens/s  peak 1.2 GB"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_stage_without_units_says_what_it_waits_for(is_terminal: bool) -> None:
    output = io.StringIO()
    display = TerminalDisplay(Console(file=output, force_terminal=is_terminal, width=80))
    display.start("starting workers", total=None, unit="")
    display.show({"waiting for": "2 more CPUs: 4 of 8 are used by other jobs"})
    display.bar.refresh()
    display.finish()
    assert "waiting for 2 more CPUs: 4 of 8 are used by other jobs" in output.getvalue()
    if not is_terminal:
        assert output.getvalue().startswith("starting workers  waiting for")


def test_what_no_longer_waits_is_not_shown() -> None:
    assert figures({"loss": 2.5, "waiting for": ""}) == "loss 2.500"
