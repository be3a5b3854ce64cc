"""Seeds derived from a seed and a purpose."""

import itertools

import pytest

from tools.runtime.seeds import derived_seed


def test_seeds_differ_between_seeds_and_purposes():
    purposes = [(), ("noise",), ("noise", 0), ("noise", 1), ("noise", "1"), ("noise", 1, 1), ("noise", 11), ("order",)]
    seeds = [derived_seed(seed, *purpose) for seed, purpose in itertools.product(range(50), purposes)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_a_derived_seed_is_the_same_in_every_process_and_version():
    assert derived_seed(0, "noise", 3) == derived_seed(0, "noise", 3) == 3767753541995857652


def test_a_purpose_that_is_not_plain_data_is_an_error():
    with pytest.raises(TypeError):
        derived_seed(0, object())
