"""`python -m orchestrator`, for machines where the package is a folder and not installed."""

from orchestrator.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
