"""This engine's endpoint for text under uvicorn, without Ray.

python -m benchmarks.peers.serve_ours FOLDER fp32|int8
"""

import sys

from benchmarks.peers.serving import folder_argument, listen
from benchmarks.served_model import MODEL, VOCABULARY, job_of, load
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.serve.app import make_app
from orchestrator.serve.text_engine import TextEngine


def main() -> None:
    processor, model = load(folder_argument())
    job = job_of(MODEL, VOCABULARY)  # for its `serve:` section; the model is the export's
    if sys.argv[2] == "int8":
        job = job.model_copy(update={"serve": job.serve.model_copy(update={"weights": "int8"})})
    trained = TrainedModel(job.build_task(), processor, model)
    listen(make_app(job.name, TextEngine(job, trained)))


if __name__ == "__main__":
    main()
