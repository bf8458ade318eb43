"""Encoders and encoder-decoders: padding, caches and heads, and generation with all of them."""

import pytest
import torch
import transformers

from orchestrator.model.generate import GREEDY, Sampling, beam_search, generate, generate_batch
from orchestrator.model.transformer import Cache, Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.storage.folder import Folder

NO_END, END = -1, 10


def random_tokens(*shape: int, vocab_size: int = 10) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(2))


PAIR = {"family": "encoder_decoder", "bias": True}


def continued(model: Transformer, cache: Cache, prompts_BT: torch.Tensor, **sampling) -> list:
    chosen = Sampling(**{"temperature": 0.0, **sampling})
    columns = list(generate_batch(model, cache, prompts_BT, 6, chosen, NO_END))
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
def test_padding_changes_nothing_of_an_encoder(
    make_model, positions: str, norm_position: str
) -> None:
    model = make_model(family="encoder", positions=positions, norm_position=norm_position)
    short = random_tokens(1, 5)
    padded = torch.cat((short, random_tokens(1, 3)), 1)
    real_BT = torch.arange(8)[None] < 5
    torch.testing.assert_close(model(padded, real_BT)[:, :5], model(short))


def test_logits_of_some_tokens_alone_are_those_of_all(make_model) -> None:
    model, tokens = make_model(family="encoder"), random_tokens(2, 6)
    real_BT = torch.arange(6)[None] < torch.tensor([[6], [4]])
    selected_BT = torch.zeros(2, 6, dtype=torch.bool)
    selected_BT[0, 5], selected_BT[0, 1], selected_BT[1, 3] = True, True, True
    found = model(tokens, real_BT, selected_BT=selected_BT)
    torch.testing.assert_close(found, model(tokens, real_BT)[selected_BT])


def test_an_encoder_sees_what_comes_later(make_model) -> None:
    model, tokens = make_model(family="encoder"), random_tokens(1, 6)
    changed = tokens.clone()
    changed[0, -1] += 1
    assert (model(tokens) - model(changed))[0, 0].abs().max() > 1e-3


@pytest.mark.parametrize("takes_first", [False, True])
def test_a_label_does_not_depend_on_padding(make_config, takes_first: bool) -> None:
    config = make_config(family="encoder", norm_position="post" if takes_first else "pre")
    model = Transformer(config, 11, "label", num_outputs=3).eval()
    short = random_tokens(2, 5)
    padded = torch.cat((short, random_tokens(2, 3)), 1)
    real_BT = (torch.arange(8)[None] < 5).expand(2, -1)
    assert model(short).shape == (2, 3)
    torch.testing.assert_close(model(padded, real_BT), model(short))


def test_padding_that_sees_nothing_is_still_a_number(make_model) -> None:
    model = make_model(family="encoder")
    assert model(random_tokens(2, 5), torch.zeros(2, 5, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("chunks", [[1] * 8, [8], [3, 4, 1]])
def test_a_decoder_beside_an_encoder_gives_the_same_with_its_caches(
    make_model, chunks: list[int]
) -> None:
    model = make_model(**PAIR)
    tokens, source = random_tokens(3, 8), random_tokens(3, 7)
    real = torch.arange(7)[None] < torch.tensor([[7], [4], [2]])
    cache = model.new_cache(3, 8, source_BS=source, source_real_BS=real)
    with torch.no_grad():
        parts = [model(chunk, cache=cache) for chunk in tokens.split(chunks, dim=1)]
        whole = model(tokens, source_BS=source, source_real_BS=real)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_a_decoder_sees_the_source_and_not_its_padding(make_model) -> None:
    model, tokens = make_model(**PAIR), random_tokens(1, 4)
    source = random_tokens(1, 6)
    real = torch.tensor([[True] * 4 + [False] * 2])
    found = [source, source + torch.tensor([[0, 0, 0, 0, 1, 1]]), source + torch.eye(6).long()[:1]]
    first, padding, other = (model(tokens, source_BS=s, source_real_BS=real) for s in found)
    torch.testing.assert_close(first, padding)
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
def test_prompts_padded_on_the_left_go_on_as_each_by_itself(make_model, positions: str) -> None:
    model = make_model(positions=positions, num_kv_heads=2)
    prompts = [random_tokens(1, length)[0].tolist() for length in (5, 3, 1)]
    alone = [list(generate(model, prompt, 6, GREEDY, NO_END)) for prompt in prompts]
    padded = torch.tensor([[0] * (5 - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[False] * (5 - len(p)) + [True] * len(p) for p in prompts])
    together = continued(model, model.new_cache(3, 11, real), padded)
    assert together == alone


def test_a_sequence_that_has_ended_stays_so(make_model) -> None:
    model = make_model()
    prompts = random_tokens(2, 3)
    free = continued(model, model.new_cache(2, 9), prompts)
    end = free[0][1]
    columns = list(generate_batch(model, model.new_cache(2, 9), prompts, 6, GREEDY, end))
    first = [column[0] for column in columns]
    assert first[free[0].index(end) :] == [end] * (len(columns) - free[0].index(end))


def test_a_repetition_penalty_makes_what_was_said_less_probable(make_model) -> None:
    model = make_model()
    prompts = random_tokens(1, 3)
    said = [
        len(set(row))
        for penalty in (1.0, 1000.0)
        for row in continued(model, model.new_cache(1, 9), prompts, repetition_penalty=penalty)
    ]
    assert said[1] == 6 >= said[0]  # nothing twice


@pytest.mark.parametrize("num_beams", [1, 3, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beam_search_finds_what_hugging_face_s_finds(
    make_model, tmp_path, num_beams: int, length_penalty: float
) -> None:
    model = make_model(vocab_size=END + 1, max_seq_len=24, norm_eps=1e-5, **PAIR)
    ids = {"eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": END}
    pretrained.save(model, Folder(str(tmp_path)), **ids, bos_token_id=None)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    source = random_tokens(5, 7)
    real = torch.arange(7)[None] < torch.tensor([[7], [4], [2], [6], [1]])
    expected = theirs.generate(
        input_ids=source,
        attention_mask=real.long(),
        num_beams=num_beams,
        max_new_tokens=10,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping=False,
    )[:, 1:]

    cache = model.new_cache(5, 11, source_BS=source, source_real_BS=real)
    start = torch.full((5, 1), END)
    found = beam_search(model, cache, start, 10, num_beams, END, length_penalty)

    assert found == [row[: row.index(END)] if END in row else row for row in _rows(expected)]


def _rows(tokens: torch.Tensor) -> list[list[int]]:
    """Padding is the token 0 behind an end."""
    return [row.tolist() for row in tokens]


def test_what_is_written_is_read_again(make_model, tmp_path) -> None:
    model = make_model(**PAIR)
    pretrained.save(model, Folder(str(tmp_path)))
    again = Transformer(*pretrained.read_config(Folder(str(tmp_path))))
    pretrained.load(again, Folder(str(tmp_path)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
