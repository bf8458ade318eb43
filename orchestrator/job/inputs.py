"""The inputs of a job besides its data, for fingerprints: weights, and the code of a task."""

import contextlib
import hashlib
import inspect
import sys
from pathlib import Path

from orchestrator.storage.folder import Folder, Stamp
from orchestrator.storage.submitted import lasting_stamp

TOKENIZER_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
OF_WEIGHTS = (".safetensors", ".safetensors.index.json")

Stamps = dict[str, Stamp]


def model_files(init_from: str) -> Stamps:
    """The files of `model.init_from`: names, sizes and modification times."""
    stamps = Folder(init_from).stamps()
    names = [name for name in stamps if name in TOKENIZER_FILES or name.endswith(OF_WEIGHTS)]
    return {name: lasting_stamp(f"{init_from}/{name}", stamps[name]) for name in sorted(names)}


def source_files(task: type) -> dict[str, str]:
    """Digests of the files that define a user's own task, by class. A class without a file, such
    as one from a console, has none."""
    known = {"orchestrator", *sys.stdlib_module_names}
    digests: dict[str, str] = {}
    for each in task.__mro__:
        if each.__module__.partition(".")[0] in known:
            continue
        with contextlib.suppress(OSError, TypeError):
            content = Path(inspect.getfile(each)).read_bytes()
            digests[each.__qualname__] = hashlib.sha256(content).hexdigest()
    return digests
