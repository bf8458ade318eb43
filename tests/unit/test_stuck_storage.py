"""A storage that takes connections and never answers."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

COMMAND = """
import sys
from orchestrator.storage import folder
folder.ANSWER_SECONDS = 1.0
from orchestrator.cli.entry import main
sys.exit(main())
"""


def test_a_silent_storage_ends_the_command_with_one_line(tmp_path: Path) -> None:
    """pyarrow itself would wait for minutes, also at the process's end."""
    (tmp_path / "data.txt").write_text("words and words")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"{{name: a, task: language_modelling, data: {{source: {tmp_path}/data.txt}}, "
        "model: {num_layers: 1, d_model: 32, num_heads: 2}, storage: 's3://bucket/runs'}"
    )
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(10)
        credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "run", str(job)],
            env=os.environ | credentials | {"AWS_ENDPOINT_URL": endpoint},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert done.stderr == "error: storage = s3://bucket/runs/a: does not answer within 1 s\n"
    assert time.monotonic() - started < 30
