"""A distributed training orchestrator on Ray: one YAML job, five stages, raw data to endpoint."""

__version__ = "0.1.0"
