"""`serve.engine: vllm`: where vLLM is installed, and what it does not take over."""

from orchestrator.job.keys import Key
from orchestrator.job.sections import ServeConfig

# Settings of the package's own endpoint that Ray Serve's deployment of vLLM knows nothing of. A
# request sets max_tokens itself, and vLLM queues without a bound.
OWN = ("weights", "keys", "log", "max_tokens", "max_queued_requests", "deadline_seconds")
EXAMPLE = "{py_executable: /opt/vllm/bin/python}"


def vllm_problems(serve: ServeConfig, family: str, gpus: float) -> list[tuple[Key, str]]:
    """What is wrong with `serve.engine` and `serve.vllm`: the setting, the rest of the sentence.

    Args:
        family: of the model.
        gpus: of a replica.
    """
    if serve.engine != "vllm":
        if serve.vllm is None:
            return []
        return [(("serve", "vllm"), ": is not used: set serve.engine to vllm, or delete it")]
    if family != "decoder":
        problem = f" = vllm: it serves decoders here, not model.family = {family}"
        return [(("serve", "engine"), problem)]
    if serve.vllm is None:
        problem = f" = vllm: say where vLLM is installed: serve.vllm.runtime_env, as {EXAMPLE}"
        return [(("serve", "engine"), problem)]
    if 0 < gpus < 1:
        problem = f" = {gpus:g}: vLLM takes whole GPUs: set serve.gpus_per_replica to 1"
        return [(("serve", "gpus_per_replica"), problem)]
    return [
        (("serve", key), ": Ray Serve's deployment of vLLM does not have it: delete it")
        for key in OWN
        if getattr(serve, key) != ServeConfig.model_fields[key].default
    ]
