"""fedscan.privacy.noise and gaussian: distribution, secrecy, forks, and what no seed may reach."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
import torch
from monai.utils import set_determinism
from numpy.typing import NDArray
from scipy import stats

from fedscan.privacy import noise as noise_module
from fedscan.privacy.gaussian import gaussian, to_uniform
from fedscan.privacy.noise import DrawsAhead, NoiseSource, ReproducibleNoise, SecureNoise, _KeyedWords

MANY = 500_000


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["secure", "ahead", "reproducible"])
def values(request: pytest.FixtureRequest) -> NDArray[np.float64]:
    """Half a million normal values. Keys are new in each run: by the bounds below one run in 100,000 fails."""
    if request.param == "reproducible":
        return ReproducibleNoise(5).normal(MANY).numpy()
    source = SecureNoise()
    if request.param == "ahead":
        source.prefetch(MANY)
    return source.normal(MANY).numpy()


def test_reproducible_noise_is_normal_at_the_issues_level() -> None:
    """Fixed, so that p > 0.01 is one fact and not a lottery; of the same code as the secure noise."""
    values = ReproducibleNoise(5).normal(MANY).numpy()
    assert stats.kstest(values, "norm").pvalue > 0.01


def test_values_are_standard_normal(values: NDArray[np.float64]) -> None:
    assert values.shape == (MANY,)
    assert values.dtype == np.float64
    assert stats.kstest(values, "norm").pvalue > 1e-6
    assert abs(values.mean()) < 5.0 / math.sqrt(MANY)
    assert abs(values.std() - 1.0) < 5.0 / math.sqrt(2 * MANY)
    assert abs(stats.kurtosis(values)) < 5.0 * math.sqrt(24 / MANY)


def test_tails_are_those_of_a_normal(values: NDArray[np.float64]) -> None:
    """Counts beyond 1 to 4 standard deviations, on either side, within six standard deviations of a binomial."""
    for beyond in (1.0, 2.0, 3.0, 4.0):
        wanted = MANY * stats.norm.sf(beyond)
        for side in (values, -values):
            assert abs(int((side > beyond).sum()) - wanted) < 6.0 * math.sqrt(wanted)


def test_four_million_have_a_standard_deviation_within_two_thousandths() -> None:
    assert abs(float(SecureNoise().normal(4_000_000).std()) - 1.0) < 0.002


def test_neighbours_are_independent(values: NDArray[np.float64]) -> None:
    """Cosines and sines of one pair lie half a block apart: so is every lag in use looked at, with squares too."""
    for lag in (1, 2, 3, 4095, 4096, 4097, 8192):
        for one, other in ((values, values), (values**2 - 1, values**2 - 1)):
            correlation = (one[:-lag] * other[lag:]).mean() / (one.std() * other.std())
            assert abs(correlation) < 6.0 / math.sqrt(MANY)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8191, 8192, 8193, 20_001])
def test_any_number_of_values(n: int) -> None:
    for source in (SecureNoise(), ReproducibleNoise(0)):
        assert source.normal(n).shape == (n,)
        assert source.uniform(n).shape == (n,)
        assert bool(source.normal(n).isfinite().all())


def test_box_muller_of_four_against_plain_python() -> None:
    """The words of one block, put through the textbook's formula one by one."""
    words = np.random.default_rng(1).integers(0, 2**64, (2, 4, 5), dtype=np.uint64)

    def fill(out: NDArray[np.uint64]) -> None:
        out[:] = words

    def uniform(word: np.uint64) -> float:
        return ((int(word) >> 12) + 0.5) / 2**52

    wanted = []
    for turn in (math.cos, math.sin):
        for k in range(5):
            pairs = [(uniform(words[0, j, k]), uniform(words[1, j, k])) for j in range(4)]
            wanted.append(sum(math.sqrt(-2.0 * math.log(u)) * turn(2.0 * math.pi * v) for u, v in pairs) / 2.0)
    assert np.allclose(gaussian(fill, 10).numpy(), wanted, rtol=0, atol=1e-12)


def test_uniforms_never_reach_zero_or_one() -> None:
    ends = to_uniform(np.array([0, 2**64 - 1, 2**63], dtype=np.uint64))
    assert ends.tolist() == [2.0**-53, 1.0 - 2.0**-53, 0.5 + 2.0**-53]

    def fill(words: NDArray[np.uint64]) -> None:
        words[:] = 0

    assert bool(gaussian(fill, 10).isfinite().all())


def test_uniforms_are_uniform() -> None:
    assert stats.kstest(SecureNoise().uniform(MANY), "uniform").pvalue > 1e-6


def test_low_bits_are_not_those_of_a_single_box_muller_value() -> None:
    """What the guard is for: single draws leave gaps near zero that sums of four fill (Mironov 2012, in short).

    The words have 12 random bits, which makes visible what 52 bits hide: of how many values one draw can be at all.
    """

    def coarse(words: NDArray[np.uint64]) -> None:
        ReproducibleNoise(1)._words.fill(words)
        words &= np.uint64(0xFC00_0000_0000_0000)

    single = {
        math.sqrt(-2 * math.log((u + 0.5) / 64)) * math.cos(2 * math.pi * (v + 0.5) / 64)
        for u in range(64)
        for v in range(64)
    }
    assert len(set(gaussian(coarse, 8192).tolist())) > 1.9 * len(single)


def test_the_keystream_is_chacha20() -> None:
    """Key and nonce of zeros: RFC 8439, appendix A.1, test vector 1."""
    words = np.empty(3, dtype=np.uint64)
    _KeyedWords(bytes(32), bytes(16)).fill(words)
    assert words.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1a"


@pytest.mark.parametrize("seeds", ["torch", "monai", "numpy"])
def test_no_seed_reaches_the_noise(seeds: str) -> None:
    """The attack: fix every seed that a job or a library can fix, and subtract the noise."""

    def seeded() -> tuple[list[float], list[float]]:
        if seeds == "torch":
            torch.manual_seed(0)
        elif seeds == "monai":
            set_determinism(0)
        else:
            np.random.seed(0)  # noqa: NPY002  # the global generator is what an attacker can reach
        source = SecureNoise()
        return source.normal(64).tolist(), source.uniform(64).tolist()

    try:
        normal, uniform = seeded()
        again, uniform_again = seeded()
    finally:
        set_determinism(None)
    assert not set(normal) & set(again)
    assert not set(uniform) & set(uniform_again)


def test_the_noise_leaves_the_seeded_streams_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    SecureNoise().normal(100)
    assert torch.equal(torch.rand(4), wanted)


def test_no_value_comes_twice_from_one_source_ahead_or_not() -> None:
    source = SecureNoise()
    seen: list[float] = []
    for n in (50, 50, 60, 50):
        source.prefetch(50)
        source.prefetch(50)
        seen += source.normal(n).tolist() + source.normal(n).tolist() + source.uniform(n).tolist()
    assert len(set(seen)) == len(seen) == 3 * 210


def test_threads_share_a_source_without_a_value_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_module, "BYTES_PER_KEY", 4096)
    source, seen = SecureNoise(), []

    def draw() -> None:
        for _ in range(20):
            source.prefetch(101)
            seen.extend(source.normal(101).tolist() + source.uniform(7).tolist())

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == len(seen) == 4 * 20 * 108


def test_keys_are_changed_and_what_follows_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(noise_module.secrets, "token_bytes", lambda n: asked.append(n) or os.urandom(n))
    monkeypatch.setattr(noise_module, "BYTES_PER_KEY", 800)
    source = SecureNoise()
    seen = [value for _ in range(10) for value in source.uniform(50).tolist()]
    assert asked.count(noise_module.KEY_BYTES) == 5
    assert len(set(seen)) == 500


def _in_a_fork(source: SecureNoise) -> list[float]:
    """What the child of a fork draws: 8 normal values and 8 uniform ones."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for its parent's thread would wait for ever
        code = 1
        try:
            values = np.concatenate([source.normal(8).numpy(), source.uniform(8)])
            source.prefetch(4)
            source.normal(4)
            os.write(into, values.tobytes())
            code = 0
        finally:
            os._exit(code)
    os.close(into)
    _, status = os.waitpid(child, 0)
    data = os.read(out, 4096)
    os.close(out)
    assert status == 0
    return list(np.frombuffer(data, dtype=np.float64))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_forked_child_draws_other_values_than_its_parent(ahead: bool) -> None:
    """Without new keys a forked worker repeats its parent's noise, or hands out what was made ahead in it."""
    source = SecureNoise()
    source.uniform(1)
    if ahead:
        source.prefetch(8)
        time.sleep(0.05)
    children = _in_a_fork(source) + _in_a_fork(source)
    own = source.normal(8).tolist() + source.uniform(8).tolist()
    assert len(set(children + own)) == 48


def test_secure_noise_cannot_be_copied() -> None:
    source = SecureNoise()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(source)


def test_reproducible_noise_says_what_it_is() -> None:
    one, same, other = ReproducibleNoise(1), ReproducibleNoise(1), ReproducibleNoise(2)
    assert one.reproducible
    assert not SecureNoise().reproducible
    wanted = (one.uniform(5).tolist(), one.normal(5).tolist(), one.normal(5).tolist())
    assert (same.uniform(5).tolist(), same.normal(5).tolist(), same.normal(5).tolist()) == wanted
    assert wanted[1] != wanted[2]
    assert other.uniform(5).tolist() != wanted[0]


def test_sources_have_the_form_that_the_mechanism_asks_for() -> None:
    sources: list[NoiseSource] = [SecureNoise(), ReproducibleNoise(0)]
    assert [isinstance(source, DrawsAhead) for source in sources] == [True, False]
