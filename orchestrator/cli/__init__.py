"""The command line: `orchestrator run jobs/language_modelling.yaml`."""

from orchestrator.cli.entry import main

__all__ = ["main"]
