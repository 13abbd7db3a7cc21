"""The image that is measured: a deterministic stand-in for an installed operating system, and the
ranges of data of any raw image.

The stand-in is 4 GiB with 1 GiB of data, in runs of 64 KiB to 8 MiB like files on a disk. A part of
it reads like text (words of a fixed vocabulary), a part like programs (repeating records with
noise), a part like what is compressed already (noise): with zstd 3 in groups of 64 KiB it shrinks
by about 2.5. It follows from the seed alone."""

import itertools
import os
import random
import subprocess

MIB = 1 << 20
BLOCK = 4096
RUN_STEP = 64 << 10


def _text(rng, words, weights, size):
    out = bytearray()
    while len(out) < size:
        out += b" ".join(rng.choices(words, cum_weights=weights, k=4096)) + b"\n"
    return bytes(out[:size])


def _program(rng, size):
    """Records of 32 bytes out of a few hundred, each with four bytes of noise."""
    records = [rng.randbytes(28) for _ in range(400)]
    noise = rng.randbytes(size // 8)
    chosen = rng.choices(records, k=size // 32)
    return b"".join(r + noise[4 * i : 4 * i + 4] for i, r in enumerate(chosen))


def make(path, seed, data_bytes=1 << 30, size_bytes=4 << 30):
    """Writes the stand-in to `path` (sparse). Returns nothing; raises OSError."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(1, 5)).hex().encode() for _ in range(6000)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))
    temporary = path + ".part"
    gap_steps = (size_bytes - data_bytes) // RUN_STEP
    with open(temporary, "wb") as file:
        file.truncate(size_bytes)
        offset, left, runs_left = 0, data_bytes, data_bytes // (2 * MIB)
        while left > 0:
            run = min(left, rng.randint(1, 64) * RUN_STEP)
            kind = rng.random()
            if kind < 0.5:
                data = _text(rng, words, weights, run)
            elif kind < 0.9:
                data = _program(rng, run)
            else:
                data = rng.randbytes(run)
            file.seek(offset)
            file.write(data)
            left -= run
            runs_left = max(runs_left - 1, 1)
            gap = min(gap_steps, rng.randint(0, max(2 * gap_steps // runs_left, 1)))
            gap_steps -= gap
            offset += run + gap * RUN_STEP
            if offset + left > size_bytes:
                offset = size_bytes - left
    os.rename(temporary, path)


def to_raw(source, path):
    """Any image that qemu-img reads, as a sparse raw file."""
    subprocess.run(["qemu-img", "convert", "-O", "raw", source, path], check=True, timeout=1800)


def ranges(path):
    """[(offset, bytes)] of blocks that are not zero: holes are skipped, the rest is looked at."""
    found = []
    zero = bytes(BLOCK)
    with open(path, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            except OSError:
                break
            at -= at % BLOCK
            while at < end:
                chunk = os.pread(file.fileno(), min(MIB, end - at), at)
                for i in range(0, len(chunk), BLOCK):
                    if chunk[i : i + BLOCK] != zero[: len(chunk) - i]:
                        if found and found[-1][0] + found[-1][1] == at + i:
                            found[-1][1] += BLOCK
                        else:
                            found.append([at + i, BLOCK])
                at += len(chunk)
    return found
