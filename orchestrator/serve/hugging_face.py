"""Hugging Face's inference API, for `huggingface_hub.InferenceClient(model="http://host:port")`.

`POST /` and `POST /models/{model}` take `{"inputs": …, "parameters": {…}}`. `Task.pipeline` names
the answer's form: that of the task's pipeline in `transformers`.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.serve.connection import unless_client_leaves
from orchestrator.serve.embeddings import Embedder
from orchestrator.serve.fill_mask import FillMask
from orchestrator.serve.predictor import Prediction, Predictor
from orchestrator.serve.protocol import RefusedError, require_model

EMBEDS = "feature-extraction"

Columns = dict[str, str]
Input = str | Columns


class Parameters(BaseModel):
    """The parameters of a pipeline. Others are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClassificationParameters(Parameters):
    top_k: int | None = Field(None, ge=1)
    function_to_apply: Literal["softmax"] | None = None


class AnswerParameters(Parameters):
    top_k: Literal[1] | None = None


class FillMaskParameters(Parameters):
    top_k: int = Field(5, ge=1, le=1000)
    targets: list[str] | None = Field(None, min_length=1, max_length=1000)


class EmbeddingParameters(Parameters):
    normalize: Literal[True] | None = None
    truncate: Literal[False] | None = None


class PipelineRequest(BaseModel):
    """One input, or a list of inputs: a text, or an object with the task's input columns."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: str | Columns | list[str] | list[Columns]
    parameters: dict[str, Any] | None = None
    options: dict[str, Any] | None = None  # of the hosted service: whether to wait for the model

    @property
    def rows(self) -> list[Input]:
        if isinstance(self.inputs, list):
            if not 0 < len(self.inputs) <= 64:
                raise RefusedError("inputs: must hold 1 to 64 inputs", 422, param="inputs")
            return list(self.inputs)
        return [self.inputs]


@dataclass(frozen=True)
class Pipeline:
    """A task's form in Hugging Face's API.

    `answer` gives one answer for each input; `wraps` tells whether the answer to a single input is
    in a list, too.
    """

    parameters: type[Parameters]
    answer: Callable[[list[Input], Any], Coroutine[Any, Any, list[Any]]]
    wraps: bool = False


def add_routes(api: FastAPI, predictor: Predictor, embedder: Embedder | None) -> None:
    pipelines = _pipelines(predictor, embedder)
    own = predictor.task.pipeline or "other"

    async def answer(request: PipelineRequest, http: Request, name: str = own) -> Any:
        if name not in pipelines:
            raise RefusedError(f"no {name} here; this model does {own}", 404)
        pipeline = pipelines[name]
        parameters = _checked(pipeline.parameters, request.parameters or {})
        answers = await unless_client_leaves(http, pipeline.answer(request.rows, parameters))
        is_single = not isinstance(request.inputs, list)
        return answers[0] if is_single and not pipeline.wraps else answers

    @api.post("/")
    async def root(request: PipelineRequest, http: Request) -> Any:
        return await answer(request, http)

    @api.post("/models/{model}")
    async def model(model: str, request: PipelineRequest, http: Request) -> Any:
        require_model(model, predictor.model_name)
        return await answer(request, http)

    @api.post("/models/{model}/pipeline/{name}")
    async def pipeline(model: str, name: str, request: PipelineRequest, http: Request) -> Any:
        require_model(model, predictor.model_name)
        return await answer(request, http, name)


def _pipelines(predictor: Predictor, embedder: Embedder | None) -> dict[str, Pipeline]:
    """What the model can do, by Hugging Face's name."""
    pipelines: dict[str, Pipeline] = {}

    def predicting(form: Callable[[Predictor, Prediction, Any], Any]) -> Any:
        async def answer(inputs: list[Input], parameters: Any) -> list[Any]:
            rows = [_columns(predictor, number, given) for number, given in enumerate(inputs)]
            predictions = await predictor.predict(rows)
            return [form(predictor, prediction, parameters) for prediction in predictions]

        return answer

    forms = {
        "text-classification": Pipeline(ClassificationParameters, predicting(_classes), wraps=True),
        "translation": Pipeline(Parameters, predicting(_translation), wraps=True),
        "question-answering": Pipeline(AnswerParameters, predicting(_answer)),
        "other": Pipeline(Parameters, predicting(_reply)),
    }
    own = predictor.task.pipeline or "other"
    if own in forms:
        pipelines[own] = forms[own]
    if own == "fill-mask" and predictor.processor.mask is not None:
        pipelines[own] = Pipeline(FillMaskParameters, FillMask(predictor).answer)
    if embedder is not None:

        async def embed(inputs: list[Input], parameters: Any) -> list[Any]:
            texts = [given for given in inputs if isinstance(given, str)]
            if len(texts) != len(inputs):
                raise RefusedError("inputs: must be texts", 422, param="inputs")
            vectors, _ = await embedder.embed(texts)
            return [vector.tolist() for vector in vectors]

        pipelines[EMBEDS] = Pipeline(EmbeddingParameters, embed, wraps=True)
    return pipelines


def _columns(predictor: Predictor, number: int, given: Input) -> Columns:
    """The task's input columns of an input: a text is the only one, or the only required one."""
    if not isinstance(given, str):
        return given
    task = predictor.task
    required = [name for name in task.inputs if name not in task.optional]
    if len(required) != 1:
        names = " and ".join(required)
        raise RefusedError(f"inputs[{number}]: must be an object with {names}", param="inputs")
    return {required[0]: given}


def _classes(predictor: Predictor, prediction: Prediction, given: ClassificationParameters) -> Any:
    reply = predictor.reply(prediction)
    if "probabilities" not in reply:  # a regression, as a classification of one label
        return [{"label": "LABEL_0", "score": reply["number"]}]
    scores = sorted(reply["probabilities"].items(), key=lambda each: -each[1])
    return [{"label": label, "score": score} for label, score in scores[: given.top_k]]


def _translation(predictor: Predictor, prediction: Prediction, _: Parameters) -> Any:
    return {"translation_text": predictor.reply(prediction)["target"]}


def _answer(predictor: Predictor, prediction: Prediction, _: AnswerParameters) -> Any:
    """The answer, its probability, and its characters in the context, which is in form NFC.

    A model that writes its answers has no probability, and a place only if the context has the
    answer word by word.
    """
    reply = predictor.reply(prediction)
    context = prediction.row["context"] or ""
    start = context.find(reply["answer"]) if reply["answer"] else -1
    end = start + len(reply["answer"])
    if "first" in prediction.answers:
        start, end = _span(predictor, prediction, context)
    place = {"start": start, "end": end} if start >= 0 else {"start": None, "end": None}
    answer = context[start:end] if start >= 0 else reply["answer"]
    return {"answer": answer, "score": reply.get("probability"), **place}


def _span(predictor: Predictor, prediction: Prediction, context: str) -> tuple[int, int]:
    """The characters from the answer's first token to its last, without the spaces around it."""
    first, last = (int(prediction.answers[name][0]) for name in ("first", "last"))
    offsets = predictor.processor.encode_with_offsets([context])[0][1]
    if not 0 <= first <= last < len(offsets):
        return -1, -1
    start, end = offsets[first][0], offsets[last][1]
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))


def _reply(predictor: Predictor, prediction: Prediction, _: Parameters) -> Any:
    return predictor.reply(prediction)


def _checked(parameters: type[Parameters], given: dict[str, Any]) -> Parameters:
    """The parameters of a request; null is as if it were not given.

    Raises:
        RefusedError: naming the first wrong one.
    """
    try:
        return parameters.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "parameters." + ".".join(str(part) for part in first["loc"])
        raise RefusedError(f"{name}: {first['msg']}", 422, param=name) from None
