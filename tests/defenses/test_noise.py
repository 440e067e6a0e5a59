"""Noise is a function of (seed, stream, image id, draw) and of nothing else."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from certiqa.defenses import STREAMS, fill_noise, noise_key
from certiqa.errors import UserError


def documented_key(seed, stream, image_id, draw):
    digest = hashlib.blake2b(f"{seed}|{stream}|{draw}|{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") // 2


def test_keys_are_the_documented_hash():
    for arguments in ((0, "certify", "I01_01_01.png", 0), (7, "score", "a|b/ü.png", 999), (-1, "attack", "", 3)):
        assert noise_key(*arguments) == documented_key(*arguments)
    # golden values (b2sum -l 64): a certificate computed years ago can be computed again
    assert noise_key(0, "certify", "photo.png", 0) == 3147257859282453080
    assert noise_key(1, "score", "photo.png", 41) == 2849950547879550111


def test_every_argument_changes_the_key():
    names = ["a", "b", "1|a", "2|a", "a|1"]
    keys = {
        noise_key(seed, stream, name, draw)
        for seed in (0, 1, 11)
        for stream in STREAMS
        for name in names
        for draw in (0, 1, 2, 11)
    }
    assert len(keys) == 3 * len(STREAMS) * len(names) * 4
    assert all(0 <= key < 2**63 for key in keys)
    assert {"train", "validate", "certify", "score", "attack"} == set(STREAMS)


def test_what_makes_no_key_is_refused():
    with pytest.raises(UserError, match=r"no noise stream 'test'.*certify"):
        noise_key(0, "test", "a", 0)
    for seed in (1.0, 1.5, "1", None):
        with pytest.raises(UserError, match=f"seed={seed!r} must be a whole number"):
            noise_key(seed, "score", "a", 0)
    with pytest.raises(UserError, match=r"image id '\\ud800\.png' holds a lone surrogate"):
        noise_key(0, "score", "\ud800.png", 0)


def test_a_seed_counts_by_its_value_and_bytes_of_a_file_name_by_themselves():
    assert noise_key(np.int64(7), "score", "a", 0) == noise_key(7, "score", "a", 0)
    assert noise_key(True, "score", "a", 0) == noise_key(1, "score", "a", 0)
    names = ["caf\udce9.png", "caf\udce8.png", "caf\u00e9.png"]  # the first two: file names in Latin-1
    assert len({noise_key(0, "score", name, 0) for name in names}) == 3


def test_a_cpu_generator_keeps_32_bits_of_a_key_so_streams_share_a_draw_by_chance_alone():
    key = noise_key(0, "score", "a", 0)
    noise = fill_noise(torch.empty(3, 3, 4, 4), [key, key + 2**32, key + 1])
    assert torch.equal(noise[0], noise[1])
    assert not torch.isclose(noise[0], noise[2]).all()
    # as the head of noise.py says: low bits as of a random choice, m n / 2^32 common ones on average
    kept = {
        stream: [noise_key(0, stream, f"{image}.png", draw) % 2**32 for image in range(10) for draw in range(1000)]
        for stream in ("certify", "attack")
    }
    common = len({*kept["certify"]} & {*kept["attack"]})
    assert stats.poisson.sf(common - 1, 10_000**2 / 2**32) > 1e-4
    for keys in kept.values():
        assert stats.kstest(np.array(keys) / 2**32, "uniform").pvalue > 1e-4


def test_noise_does_not_depend_on_the_batch_or_its_order():
    keys = [noise_key(0, "score", name, draw) for name in "ab" for draw in range(3)]
    together = fill_noise(torch.empty(6, 3, 5, 7), keys)
    assert len({tuple(row.flatten().tolist()) for row in together}) == 6
    order = [4, 0, 5, 2, 1, 3]
    assert torch.equal(fill_noise(torch.empty(6, 3, 5, 7), [keys[i] for i in order]), together[order])
    for i, key in enumerate(keys):
        assert torch.equal(fill_noise(torch.empty(1, 3, 5, 7), [key]), together[i : i + 1])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = fill_noise(torch.empty(1, 3, 4, 4), [5])
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(fill_noise(torch.empty(1, 3, 4, 4), [5]), first)


def test_one_key_per_row():
    with pytest.raises(ValueError, match="shorter"):
        fill_noise(torch.empty(2, 3, 4, 4), [1])


def test_noise_is_standard_normal_within_and_across_draws():
    keys = [noise_key(0, "certify", "image", draw) for draw in range(300)]
    noise = fill_noise(torch.empty(300, 3, 8, 8), keys).double().flatten(1).numpy()
    for sample in (noise.ravel(), noise[:, 0], noise[:, -1], noise[0]):
        assert stats.kstest(sample, "norm").pvalue > 1e-4
    assert abs(noise.mean()) < 4 / noise.size**0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.size) ** 0.5
    # draws with neighbouring numbers are uncorrelated
    assert abs((noise[1:] * noise[:-1]).mean()) < 4 / noise.size**0.5
