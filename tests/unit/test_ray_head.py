"""The ports of clusters for tests: nobody gets one twice."""

import random

import pytest

from tests.ray_head import free_ports


def test_no_port_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(0)
    monkeypatch.setattr(random, "randrange", lambda start, stop: start + dice.randrange(60))
    first, second = free_ports(10), free_ports(10)
    assert len({*first, *second}) == 20
