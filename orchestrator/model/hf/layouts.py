"""All layouts: the supported architectures of Hugging Face, and this package's own. A new
architecture is a file of this folder and an entry in `LAYOUTS`."""

from orchestrator.model.hf.bart import BART, MBART
from orchestrator.model.hf.bert import BERT, VIT
from orchestrator.model.hf.gpt2 import GPT2
from orchestrator.model.hf.layout import Layout, Settings
from orchestrator.model.hf.llama import ARCEE, EUROBERT, LLAMA
from orchestrator.model.hf.t5 import T5

LAYOUTS = (LLAMA, ARCEE, EUROBERT, GPT2, BERT, VIT, T5, BART, MBART)

OWN = Layout(
    model_type="orchestrator",
    classes={
        "tokens": "TransformerForTokens",
        "label": "TransformerForLabel",
        "each_token": "TransformerForEachToken",
    },
    prefix="",
    names=None,
    heads={},
    read=lambda settings: dict(settings["transformer"]),
    write=lambda config: {"transformer": config.model_dump(exclude={"init_from"})},
    fits=lambda config: True,
)


def layout_of_settings(settings: Settings) -> Layout:
    """The layout of a config.json.

    Raises:
        ValueError: if its `model_type` is not supported.
    """
    for layout in (*LAYOUTS, OWN):
        if layout.model_type == settings.get("model_type"):
            return layout
    known = ", ".join(layout.model_type for layout in LAYOUTS)
    raise ValueError(f"model_type = {settings.get('model_type')!r} is not supported; {known} are")
