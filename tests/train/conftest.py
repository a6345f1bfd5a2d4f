"""Short packed rows, of which a test makes its batch."""

import numpy as np
import pytest

ROWS, LENGTH, VOCAB = 8, 16, 32


@pytest.fixture
def packed() -> tuple[dict[str, np.ndarray], list[tuple[int, int, int]]]:
    """Texts of 3 to 7 tokens, two or three a row, and padding behind them; and where each stands: row, start, end."""
    rng = np.random.default_rng(0)
    batch = {name: np.zeros((ROWS, LENGTH), np.int32) for name in ("tokens", "segments", "positions")}
    texts = []
    for row in range(ROWS):
        start = 0
        for segment in range(1, 4):
            end = start + int(rng.integers(3, 8))
            if end > LENGTH:
                break
            batch["tokens"][row, start:end] = rng.integers(0, VOCAB, end - start)
            batch["segments"][row, start:end] = segment
            batch["positions"][row, start:end] = np.arange(end - start)
            texts.append((row, start, end))
            start = end
    return batch, texts
