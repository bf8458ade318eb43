"""The engine's thread: who is served, in which order, and how requests end."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from orchestrator.errors import StageError, UserError
from orchestrator.infer.generation import FullError, Generated, GenerationRequest
from orchestrator.infer.generation_engine import EngineLimits, GenerationEngine
from orchestrator.infer.sequence import Sequence
from orchestrator.model.generate import GREEDY, Sampling, generate
from orchestrator.model.transformer import Transformer
from tests.unit.generation import Answer, request

SECONDS = 60.0
Make = Callable[..., GenerationEngine]


class Waiting(Answer):
    """An answer whose end can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.ended = threading.Event(), threading.Event()
        self.when = 0.0

    def __call__(self, part: Generated) -> None:
        super().__call__(part)
        self.began.set()
        if part.ending is not None:
            self.when = time.monotonic()
            self.ended.set()


@pytest.fixture
def model(make_model) -> Transformer:
    return make_model(vocab_size=50, max_seq_len=64, tie_embeddings=False)


@pytest.fixture
def make_engine(model: Transformer) -> Iterator[Make]:
    engines = []

    def make(slots: int = 2, **limits: int) -> GenerationEngine:
        engines.append(GenerationEngine(model, EngineLimits(slots, **limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def submit(engine: GenerationEngine, each: GenerationRequest) -> tuple[Sequence, Waiting]:
    answer = Waiting()
    return engine.submit(each, answer), answer


def ended(answer: Waiting) -> Waiting:
    assert answer.ended.wait(SECONDS)
    return answer


class Blocked:
    """A listener that holds up the engine's thread until it is let go."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self, _: Generated) -> None:
        self.entered.set()
        assert self.release.wait(SECONDS)


def test_requests_of_many_threads_get_their_own_tokens(
    model: Transformer, make_engine: Make
) -> None:
    requests = [
        request([i, 3, 1, 4][: 1 + i % 4], 20, GREEDY if i % 2 else Sampling(0.9, seed=i))
        for i in range(24)
    ]
    expected = [list(generate(model, r.prompt, 20, r.sampling, end_token=-1)) for r in requests]
    engine = make_engine(slots=5, prefill_chunk=3)
    answers: list[Waiting] = [Waiting() for _ in requests]

    def ask(part: int) -> None:
        for i in range(part, len(requests), 4):
            engine.submit(requests[i], answers[i])

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ended(answer).ids for answer in answers] == expected
    assert {answer.ending for answer in answers} == {"length"}
    assert engine.running == engine.waiting == 0 and engine.cache_usage == 0


def test_a_request_ends_before_its_end_token(make_engine: Make) -> None:
    engine = make_engine()
    ids = ended(submit(engine, request([3, 1], 20))[1]).ids
    end = ids[7]
    answer = ended(submit(engine, request([3, 1], 20, end_token=end))[1])
    assert answer.ids == ids[: ids.index(end)] and answer.ending == "stop"


def test_cancelling_ends_a_running_request_and_one_that_waits(make_engine: Make) -> None:
    engine, blocked, running = make_engine(slots=1), Blocked(), Waiting()

    def both(part: Generated) -> None:
        running(part)
        blocked(part)

    handle = engine.submit(request([1], 60), both)
    assert blocked.entered.wait(SECONDS)
    waiting = submit(engine, request([2], 5))
    for each in (handle, waiting[0]):
        each.cancel()
    blocked.release.set()
    assert ended(running).ending == ended(waiting[1]).ending == "cancelled"
    assert len(running.ids) == 1 and not waiting[1].ids
    handle.cancel()  # does nothing any more
    assert ended(submit(engine, request([4], 3))[1]).ending == "length", "the slot is free again"


def test_deadlines_end_requests_that_run_and_that_wait(make_engine: Make) -> None:
    engine, blocked = make_engine(slots=1), Blocked()
    soon = time.monotonic() + 0.2
    running = Waiting()

    def both(part: Generated) -> None:
        running(part)
        blocked(part)

    engine.submit(request([1], 60, deadline=soon), both)
    assert blocked.entered.wait(SECONDS)
    waiting = submit(engine, request([2], 5, deadline=soon))[1]
    time.sleep(max(soon - time.monotonic(), 0))
    blocked.release.set()
    assert ended(running).ending == ended(waiting).ending == "deadline"
    assert len(running.ids) == 1 and not waiting.ids


def test_the_queue_is_bounded_and_says_when_to_come_again(make_engine: Make) -> None:
    engine, blocked = make_engine(slots=1, max_waiting=2), Blocked()
    engine.submit(request([1], 5), blocked)
    assert blocked.entered.wait(SECONDS)
    answers = [submit(engine, request([2], 2))[1] for _ in range(2)]
    with pytest.raises(FullError, match="2 requests wait already") as refused:
        submit(engine, request([2], 2))
    assert 1.0 <= refused.value.retry_after <= 60.0
    blocked.release.set()
    assert {ended(answer).ending for answer in answers} == {"length"}


def test_a_client_with_many_requests_does_not_hold_up_another(make_engine: Make) -> None:
    engine, blocked = make_engine(slots=1), Blocked()
    engine.submit(request([1], 3), blocked)
    assert blocked.entered.wait(SECONDS)
    many = [submit(engine, request([2], 3, client="many"))[1] for _ in range(6)]
    one = submit(engine, request([3], 3, client="one"))[1]
    blocked.release.set()
    ends = [ended(answer).when for answer in many]
    assert sum(end < ended(one).when for end in ends) == 1
    assert ends == sorted(ends)


def test_a_failing_step_ends_its_requests_and_the_engine_lives(
    model: Transformer, make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    attention = type(model.decoder.blocks[0].attention)
    forward, is_broken = attention.forward, threading.Event()

    def fail(self, x_BTD, *rest):
        if is_broken.is_set():
            raise RuntimeError("no memory\nleft")
        return forward(self, x_BTD, *rest)

    monkeypatch.setattr(attention, "forward", fail)
    is_broken.set()
    answer = ended(submit(engine, request([1], 5))[1])
    assert answer.ending == "error" and "no memory left" in answer.error
    is_broken.clear()
    assert ended(submit(engine, request([1], 5))[1]).ending == "length"


def test_a_listener_that_fails_loses_its_own_request_only(make_engine: Make) -> None:
    engine, broken = make_engine(), threading.Event()

    def fail(_: Generated) -> None:
        broken.set()
        raise ValueError("a broken listener")

    engine.submit(request([1], 60), fail)
    assert broken.wait(SECONDS)
    assert ended(submit(engine, request([2], 5))[1]).ending == "length"


def test_closing_ends_all_requests(make_engine: Make) -> None:
    engine, blocked = make_engine(slots=1), Blocked()
    running = Waiting()

    def both(part: Generated) -> None:
        running(part)
        blocked(part)

    engine.submit(request([1], 60), both)
    assert blocked.entered.wait(SECONDS)
    waiting = submit(engine, request([2], 5))[1]
    closing = threading.Thread(target=engine.close)
    closing.start()
    blocked.release.set()
    closing.join(SECONDS)
    assert ended(running).ending == ended(waiting).ending == "cancelled"
    with pytest.raises(StageError, match="closed"):
        submit(engine, request([1], 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request([], 1), "prompt: must have at least one token"),
        (request([1] * 60, 5), "60 tokens .* 5 do not fit the context of 64"),
        (request([1, 50], 1), "prompt: token 50 is not in the vocabulary: 0 to 49"),
        (request([-1], 1), "prompt: token -1"),
        (request([1], -1), "max_tokens = -1"),
        (request([1], 1, logprobs=-2), "logprobs = -2"),
        (request([1], 1, source=[1]), "family = decoder takes no source"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    make_engine: Make, wrong: GenerationRequest, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_engine().submit(wrong, Waiting())


def test_sources_are_checked(make_model) -> None:
    model = make_model(family="encoder_decoder")
    engine = GenerationEngine(model, EngineLimits(1, source_capacity=5))
    try:
        with pytest.raises(UserError, match="source: it has 6 tokens, not 1 to 5"):
            engine.submit(request([1], 1, source=[1] * 6), Waiting())
        with pytest.raises(UserError, match="source: token 11 is not in the vocabulary"):
            engine.submit(request([1], 1, source=[11]), Waiting())
        with pytest.raises(UserError, match="encoder_decoder needs source"):
            engine.submit(request([1], 1), Waiting())
    finally:
        engine.close()


def test_an_encoder_and_limits_of_zero_are_refused(make_model) -> None:
    with pytest.raises(UserError, match="slots = 0: must be at least 1"):
        EngineLimits(0)
    with pytest.raises(UserError, match=r"model\.family = encoder"):
        GenerationEngine(make_model(family="encoder"), EngineLimits(1))


def test_bf16_computes_near_the_same(make_model) -> None:
    model = make_model(vocab_size=50, max_seq_len=64)
    prompt = [3, 1, 4, 1, 5]
    scores = []
    for precision in ("fp32", "bf16"):
        engine = GenerationEngine(
            make_model(vocab_size=50, max_seq_len=64), EngineLimits(1), precision
        )
        each = request(prompt, 0, prompt_logprobs=True)
        answer = ended(submit(engine, each)[1])
        scores.append(torch.tensor([token.logprob for token in answer.prompt[1:]]))
        engine.close()
    exact_TV = model(torch.tensor([prompt]))[0].log_softmax(-1).detach()
    torch.testing.assert_close(scores[0], exact_TV[range(4), prompt[1:]], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores[1], scores[0], atol=0.3, rtol=0)
