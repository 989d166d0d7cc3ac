from dataclasses import dataclass

import numpy as np
import pytest
import torch

from gpt2lab.app.cache import BoundedCache, bytes_of


@dataclass(frozen=True)
class Result:
    tensor: torch.Tensor
    words: tuple
    other: object = None


def test_bytes_are_those_of_every_tensor_and_array_and_shared_memory_counts_once():
    tensor, array = torch.zeros(1000), np.zeros(1000)
    assert bytes_of(tensor) == 4000
    assert bytes_of(array) == 8000
    assert bytes_of(Result(tensor, ("moon",))) == pytest.approx(4000, abs=400)
    views = Result(tensor[:10], (tensor[5:], array[:3]), {"again": [array, tensor]})
    assert bytes_of(views) == pytest.approx(12_000, abs=1000)
    assert bytes_of((views, views)) == pytest.approx(12_000, abs=1000)


def test_model_counts_its_weights_tied_ones_once(tiny_lab):
    tied = tiny_lab.model.num_parameters() * 4
    assert tied <= bytes_of(tiny_lab.model) <= tied + 100_000  # buffers too


def test_result_that_refers_to_itself_is_counted():
    circle = [torch.zeros(10)]
    circle.append(circle)
    assert bytes_of(circle) >= 40


def test_least_recently_used_values_make_room():
    cache = BoundedCache(100, len)
    for key in "abc":
        cache.put(key, "x" * 30)
    assert cache.get("a") == "x" * 30
    cache.put("d", "y" * 40)  # b was used least recently
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert cache.n_bytes == 100
    cache.put("a", "z")
    assert (cache.get("a"), cache.n_bytes) == ("z", 71)


def test_value_past_the_limit_is_kept_alone():
    cache = BoundedCache(100, len)
    cache.put("a", "x" * 30)
    cache.put("b", "x" * 500)
    assert (cache.get("a"), len(cache.get("b"))) == (None, 500)
    cache.put("c", "x")
    assert (cache.get("b"), cache.get("c")) == (None, "x")
