import hashlib

import torch

from fedscan.training.seeds import derived_generator, derived_seed


def test_the_hash_is_the_documented_one() -> None:
    wanted = int.from_bytes(hashlib.sha256(b'["noise",7,"a",3]').digest()[:8], "big") >> 1
    assert derived_seed("noise", 7, "a", 3) == wanted
    assert derived_seed("noise", 7, "a", 3) < 2**63


def test_each_list_of_parts_has_a_stream_of_its_own() -> None:
    parts = [("a", 1), ("a", "1"), ("a1",), ("a", 1, 0), ("a", 10), ("b", 1)]
    assert len({derived_seed(*p) for p in parts}) == len(parts)
    draws = {float(torch.rand(1, generator=derived_generator(*p), dtype=torch.float64)) for p in parts}
    assert len(draws) == len(parts)
    assert torch.equal(
        torch.rand(5, generator=derived_generator("a", 1)), torch.rand(5, generator=derived_generator("a", 1))
    )
