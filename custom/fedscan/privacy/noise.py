"""Where patient draws and noise come from: `SecureNoise`, secret and never twice the same; another for demos."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn, Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

from fedscan.privacy.gaussian import gaussian, to_uniform

KEY_BYTES, NONCE_BYTES = 32, 16
BYTES_PER_KEY = 2**30
"""After so many a new key is asked for: what was drawn before cannot be computed from what memory holds."""


class NoiseSource(Protocol):
    """Independent values, none handed out twice."""

    @property
    def reproducible(self) -> bool:
        """Whether somebody could draw the same values again: then they protect nobody."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """float64 [n] in (0, 1), both ends excluded."""

    def normal(self, n: int) -> Tensor:
        """float64 [n] on the CPU, standard normal."""


@runtime_checkable
class DrawsAhead(Protocol):
    """A source that can make values while something else runs."""

    def prefetch(self, n: int) -> None:
        """Starts making the next `normal(n)`."""


class SecureNoise:
    """ChaCha20 (RFC 8439) keyed by the operating system; a forked child has keys of its own.

    No seed reaches it: neither the plan's, nor torch's, nor MONAI's. It cannot be copied or pickled: a copy would draw
    the same again. About 30 ms for a million normal values on one core; `prefetch` hides that in a second thread.
    Threads may share one. Residual risk: whoever reads this process's memory reads the noise.
    """

    reproducible = False
    _ahead: tuple[int, Future[Tensor]] | None

    def __init__(self) -> None:
        self._renew()
        _sources.add(self)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """float64 [n] in (0, 1), both ends excluded."""
        words = np.empty(n, dtype=np.uint64)
        self._words.fill(words)
        return to_uniform(words)

    def normal(self, n: int) -> Tensor:
        """float64 [n] on the CPU, standard normal; those made ahead if there are n of them."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == n:
            return ahead[1].result()
        return gaussian(self._words.fill, n)

    def prefetch(self, n: int) -> None:
        """Starts making the next `normal(n)` in a second thread; nothing if that is under way already."""
        with self._lock:
            if self._ahead is None or self._ahead[0] != n:
                self._ahead = (n, self._thread.submit(gaussian, self._words.fill, n))

    def _renew(self) -> None:
        """Also after a fork: another process must not hand out the values that were made ahead, and has no thread."""
        self._words = _SecretWords()
        self._lock = threading.Lock()
        self._ahead = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")

    def __reduce__(self) -> NoReturn:
        raise TypeError("secure noise cannot be copied or pickled, it would repeat: make a new SecureNoise()")


class ReproducibleNoise:
    """For demos and tests: the same values for the same seed, so that anybody who has it can take the noise off."""

    reproducible = True

    def __init__(self, seed: int) -> None:
        key = hashlib.sha256(f"fedscan reproducible noise {seed}".encode()).digest()
        self._words = _KeyedWords(key, bytes(NONCE_BYTES))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """float64 [n] in (0, 1), both ends excluded."""
        words = np.empty(n, dtype=np.uint64)
        self._words.fill(words)
        return to_uniform(words)

    def normal(self, n: int) -> Tensor:
        """float64 [n] on the CPU, standard normal."""
        return gaussian(self._words.fill, n)


class _KeyedWords:
    """The keystream of one key."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrites `words` (contiguous) with the next of the stream."""
        if words.size:
            self._cipher.update_into(bytes(words.nbytes), words.data.cast("B"))


class _SecretWords:
    """Keystreams of secret keys, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new_key()

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrites `words` (contiguous). Threads may call it at once."""
        with self._lock:
            if self._left <= 0:
                self._new_key()
            self._left -= words.nbytes
            self._stream.fill(words)

    def _new_key(self) -> None:
        self._stream = _KeyedWords(secrets.token_bytes(KEY_BYTES), secrets.token_bytes(NONCE_BYTES))
        self._left = BYTES_PER_KEY


_sources: WeakSet[SecureNoise] = WeakSet()


def _renew_all() -> None:
    for source in list(_sources):
        source._renew()


os.register_at_fork(after_in_child=_renew_all)
