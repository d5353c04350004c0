"""Make litdata's copy of the samples, in a process of its own: `python litdata_optimize.py FOLDER COUNT NBYTES`."""

import functools
import random
import sys


def sample(payloads: list[bytes], i: int) -> dict[str, object]:
    return {"bin": payloads[i % len(payloads)], "cls": i % 1000}


if __name__ == "__main__":
    import litdata

    folder, count, nbytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(0)
    payloads = [rng.randbytes(nbytes) for _ in range(200)]
    litdata.optimize(
        functools.partial(sample, payloads), list(range(count)), output_dir=folder, num_workers=1, chunk_bytes="64MB"
    )
