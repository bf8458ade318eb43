"""The JSON schema of job files: `orchestrator schema > jobs/job.schema.json`."""

import json

from orchestrator.job.job import Job


def json_schema() -> str:
    """The JSON schema of a job file, for editors."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "An orchestrator job"
    schema["properties"]["base"] = {"type": "string", "description": "a job file this one extends"}
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)  # a base file may hold what is required
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
