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
