"""A step of many sequences: what each gets does not depend on the others."""

import math
import random
from dataclasses import replace

import pytest
import torch

from orchestrator.infer.generation import GenerationRequest, Token
from orchestrator.infer.sequence import Sequence
from orchestrator.infer.slot_cache import (
    Products,
    Room,
    Row,
    SlotCache,
    piece_bounds,
    slots_that_fit,
    whole_blocks,
)
from orchestrator.model.config import ModelConfig
from orchestrator.model.generate import GREEDY, Sampling, generate_batch
from orchestrator.model.transformer import Transformer
from tests.unit.generation import answers, make_batch, request

VOCAB, LENGTH = 60, 96
KINDS = [
    {"positions": "rotary"},
    {"positions": "learned", "num_kv_heads": 2, "activation": "swiglu", "d_ff": 48},
    {
        "positions": "sinusoidal",
        "norm": "layernorm",
        "activation": "gelu",
        "bias": True,
        "d_ff": 51,
    },
    {"positions": "relative", "num_kv_heads": 1, "tie_embeddings": False},
    {"family": "encoder_decoder"},
    {"family": "encoder_decoder", "positions": "relative", "norm_position": "post"},
]


def make(make_model, **kind: object) -> Transformer:
    sizes = {"d_model": 32, "num_heads": 4, "max_seq_len": LENGTH}
    return make_model(vocab_size=VOCAB, **{**sizes, **kind})


def random_requests(model: Transformer, seed: int, count: int) -> list[GenerationRequest]:
    """Prompts of all lengths, many of which begin alike, and greedy and sampled ones."""
    chance = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [chance.randrange(VOCAB) for _ in range(chance.randint(least, most))]

    common, sources = tokens(20, 40), [tokens(1, LENGTH), tokens(1, LENGTH)]
    found = []
    for _ in range(count):
        prompt = common[: chance.choice([0, 0, 10, 20])] + tokens(1, 40)
        sampling = chance.choice([GREEDY, Sampling(0.8, seed=chance.randrange(99))])
        source = chance.choice(sources) if model.encoder is not None else None
        tokens_left = chance.randint(1, LENGTH - len(prompt))
        found.append(request(prompt, min(tokens_left, 25), sampling, source=source, logprobs=2))
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tokens_equal_those_of_generate(make_model, kind: dict[str, object]) -> None:
    model = make(make_model, **kind)
    requests = [replace(r, sampling=GREEDY) for r in random_requests(model, seed=1, count=12)]
    expected = []
    for each in requests:
        source_BS = None if each.source is None else torch.tensor([each.source])
        cache = model.new_cache(1, LENGTH, source_BS=source_BS)
        prompt_BT = torch.tensor([each.prompt])
        tokens = generate_batch(model, cache, prompt_BT, each.max_tokens, GREEDY, end_token=-1)
        expected.append([row[0] for row in tokens])
    found = answers(make_batch(model), requests, every=2)
    assert [answer.ids for answer in found] == expected


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_bit_depends_on_the_company(make_model, kind: dict[str, object]) -> None:
    """Log-probabilities are compared bit by bit: tokens alone would hide differences."""
    model = make(make_model, **kind)
    batch, single = make_batch(model, 5, prefill_chunk=64), make_batch(model, slots=1)

    def alone(each: GenerationRequest) -> list[Token]:
        single.slots[0].kept = []
        return answers(single, [each])[0].tokens

    for seed, every, prefill_chunk in ((1, 0, 1), (2, 5, 7), (3, 1, 64)):
        requests = random_requests(model, seed, count=9)
        batch.prefill_chunk = prefill_chunk
        together = answers(batch, requests, every)
        for each, answer in list(zip(requests, together, strict=True))[::3]:
            assert answer.tokens == alone(each), f"seed {seed}"


@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_depends_on_the_company_in_a_wide_model(make_model, threads: int) -> None:
    """From so many inputs on, MKL shares a sum among threads if there are few rows."""
    model = make_model(vocab_size=VOCAB, d_model=256, d_ff=2048, num_heads=4, max_seq_len=640)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch = make_batch(model, slots=12, prefill_chunk=64)
        chance = random.Random(threads)
        prompts = [[chance.randrange(VOCAB) for _ in range(n)] for n in (530, *range(3, 60, 4))]
        requests = [request(prompt, 12, logprobs=3) for prompt in prompts]
        together = answers(batch, requests, every=1)
        for i in (0, 1, 7):
            batch = make_batch(model, slots=1, prefill_chunk=64)
            assert answers(batch, [requests[i]])[0].tokens == together[i].tokens
    finally:
        torch.set_num_threads(before)


def test_a_conversation_reuses_its_earlier_turns_and_the_answers_are_the_same(make_model) -> None:
    model = make(make_model)
    batch = make_batch(model, slots=2)
    first = request([5, 6, 7] * 8, 10, logprobs=1)
    answer = answers(batch, [first])[0]
    second = request([*first.prompt, *answer.ids, 3, 4], 10, logprobs=1)
    other = request([1, 2, 3], 10)
    found = answers(batch, [other, second], every=30)[1]
    # The last token of the first answer was not computed: nothing came after it.
    assert found.cached_tokens == len(first.prompt) + len(answer.ids) - 1
    assert found.tokens == answers(make_batch(model), [second])[0].tokens


def test_the_last_token_of_a_repeated_prompt_is_computed_again(make_model) -> None:
    batch = make_batch(make(make_model))
    prompt = list(range(30))
    first, second = answers(batch, [request(prompt, 5), request(prompt, 5)], every=100)
    assert (first.cached_tokens, second.cached_tokens) == (0, 29)
    assert first.ids == second.ids


def test_a_source_that_differs_makes_a_prefix_useless(make_model) -> None:
    batch = make_batch(make(make_model, family="encoder_decoder"), slots=1)
    prompt = list(range(30))
    sources = [[1, 2, 3], [1, 2, 3], [1, 2]]
    found = answers(batch, [request(prompt, 2, source=s) for s in sources], every=100)
    assert [answer.cached_tokens for answer in found] == [0, 29, 0]


def test_slots_that_keep_nothing_useful_are_taken_oldest_first(make_model) -> None:
    batch = make_batch(make(make_model), slots=2)
    first, second, third = ([start] * 20 for start in (1, 2, 3))
    prompts = [first, second, first, third, first, second]
    found = answers(batch, [request(prompt, 2) for prompt in prompts], every=100)
    # The third prompt takes the second's slot, since the first's was used after it.
    assert [answer.cached_tokens for answer in found] == [0, 0, 19, 0, 19, 0]


def test_log_probabilities_are_those_of_the_whole_sequence(make_model) -> None:
    model = make(make_model)
    prompt = [4, 8, 15, 16, 23, 42] * 4
    answer = answers(make_batch(model), [request(prompt, 6, logprobs=3, prompt_logprobs=True)])[0]
    tokens = [*answer.prompt, *answer.tokens]
    ids = [token.id for token in tokens]
    assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + 6
    assert math.isnan(tokens[0].logprob) and not tokens[0].top
    logprobs_TV = model(torch.tensor([ids]))[0].log_softmax(-1).detach()
    for i, token in enumerate(tokens[1:]):
        best = logprobs_TV[i].topk(3)
        assert token.logprob == pytest.approx(float(logprobs_TV[i, token.id]), abs=1e-4)
        assert [t for t, _ in token.top] == best.indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert token.is_greedy == (token.id == best.indices[0])
    assert all(token.is_greedy for token in answer.tokens)


def test_a_prompt_is_scored_without_generating(make_model) -> None:
    batch = make_batch(make(make_model))
    requests = [request(list(range(length)), 0, prompt_logprobs=True) for length in (1, 20, 20)]
    found = answers(batch, requests, every=100)
    assert [len(answer.prompt) for answer in found] == [1, 20, 20]
    assert [answer.cached_tokens for answer in found] == [0, 0, 0], "all logits were needed"
    assert all(answer.ending == "length" and not answer.tokens for answer in found)


def test_a_long_prompt_does_not_hold_up_the_others(make_model) -> None:
    batch = make_batch(make(make_model), slots=3, prefill_chunk=8)
    short, long = request([1], 40), request([2] * 90, 2)
    found = answers(batch, [short, long, request([3, 4], 2)], every=3)
    assert [len(part.tokens) for part in found[0].parts] == [1] * 40, "a token in every step"
    batch = make_batch(make(make_model), slots=3, prefill_chunk=16)
    ended: list[int] = []
    for i, each in enumerate([long, request([3, 4], 1)]):
        batch.admit(Sequence(each, lambda part, i=i: ended.append(i) if part.ending else None))
    while batch.running:
        batch.step()
    assert ended == [1, 0], "the short prompt shares the steps with the long one"


def test_numbers_that_are_not_finite_end_only_their_own_request(make_model) -> None:
    model = make(make_model, tie_embeddings=False)
    with torch.no_grad():
        model.tokens.weight[7] = torch.inf
    batch = make_batch(model, slots=1)
    good = request([1, 2, 3], 5, logprobs=1)
    alone = answers(make_batch(model), [good])[0]
    bad, after = answers(batch, [request([1, 7, 3], 5), good], every=10)
    assert bad.ending == "error" and "not finite" in bad.error
    assert after.cached_tokens == 0 and after.tokens == alone.tokens, "the slot was cleared"
    batch = make_batch(model, slots=2)
    bad, beside = answers(batch, [request([1, 7, 3], 5), good])
    assert bad.ending == "error" and beside.tokens == alone.tokens


def test_the_cache_takes_exactly_the_bytes_that_it_says(make_model) -> None:
    model = make(make_model, family="encoder_decoder", num_kv_heads=2)
    room = Room(tokens=50, source=70)
    cache = SlotCache(3, room, model.config, model.decoder.positions, torch.empty(0))
    tensors = [t for layer in cache.layers for t in (*layer.own, *layer.source)]
    assert cache.bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert slots_that_fit(cache.bytes, room, model.config, torch.float32) == 3
    assert slots_that_fit(cache.bytes - 1, room, model.config, torch.float32) == 2


def test_rows_are_computed_in_pieces_of_neighbouring_slots() -> None:
    def bounds(*rows: tuple[int, int]) -> list[tuple[int, int]]:
        placed = [Row(0, slot, position) for slot, position in rows]
        return piece_bounds(
            placed,
            lambda row: whole_blocks(row.position + 1),
            lambda first, second: (first.position == 100) == (second.position == 100),
        )

    assert bounds((0, 5), (1, 9), (2, 3)) == [(0, 3)]
    assert bounds((0, 5), (2, 9), (3, 3)) == [(0, 1), (1, 3)], "a slot between is not read"
    assert bounds((0, 5), (1, 8), (1, 9), (2, 3)) == [(0, 1), (1, 3), (3, 4)]
    assert bounds((0, 5), (1, 900), (2, 5)) == [(0, 1), (1, 2), (2, 3)], "lengths differ too much"
    assert bounds((0, 99), (1, 100), (2, 100)) == [(0, 1), (1, 3)], "other sums"
    assert bounds((0, 98), (0, 99), (0, 100)) == [(0, 2), (2, 3)], "other sums of one slot"


def test_numbers_of_keys_whose_sums_have_another_order_are_not_read() -> None:
    products = Products(least=4, keys=(32, 64, 512))
    read = [products.to_read(tokens, stored=1024) for tokens in (1, 32, 33, 65, 512, 513, 600)]
    assert read == [32, 32, 64, 512, 512, 544, 1024]
    assert products.to_read(65, stored=96) == 96, "there are no more"
    assert not products.agree(64, 96) and products.agree(96, 96) and products.agree(544, 32)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_depends_on_how_many_keys_are_stored(make_model, threads: int) -> None:
    """A slot of 320 tokens ends between the numbers of keys that agree on some processors."""
    model = make_model(vocab_size=VOCAB, d_model=64, num_heads=2, max_seq_len=300)
    chance = random.Random(threads)
    prompts = [[chance.randrange(VOCAB) for _ in range(n)] for n in (270, 185, 20, 180)]
    requests = [request(prompt, 20, logprobs=3) for prompt in prompts]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = answers(make_batch(model, slots=4, prefill_chunk=48), requests, every=2)
        for each, answer in zip(requests, together, strict=True):
            alone = make_batch(model, slots=1, prefill_chunk=16)
            assert answers(alone, [each])[0].tokens == answer.tokens
    finally:
        torch.set_num_threads(before)


def test_room_follows_from_the_model() -> None:
    config = ModelConfig(num_layers=3, d_model=64, num_heads=4, num_kv_heads=2, max_seq_len=512)
    room = Room(tokens=100)
    assert room.bytes_per_slot(config, torch.float32) == 2 * 3 * 2 * 16 * 128 * 4
    assert room.bytes_per_slot(config, torch.bfloat16) == 2 * 3 * 2 * 16 * 128 * 2


def test_prompts_get_the_rows_that_twice_the_time_allows(make_model) -> None:
    batch = make_batch(make(make_model), slots=4, prefill_chunk=60)
    decoder = batch.decoder
    assert decoder.row_counts[-1] == 64
    # A fixed cost of 30 rows: twice the time of 4 rows is that of 38.
    decoder._seconds = {count: 30.0 + count for count in decoder.row_counts}
    most = max(count for count in decoder.row_counts if count <= 38)
    assert decoder.rows_within(2.0, 4) == most
    assert batch._prompt_budget(decoding=3, running=4) == most - 3
    assert batch._prompt_budget(decoding=0, running=4) == 60, "nobody waits for a token"
    decoder._seconds = {count: float(count) for count in decoder.row_counts}
    assert batch._prompt_budget(decoding=3, running=4) == 8, "prompts advance in every step"
