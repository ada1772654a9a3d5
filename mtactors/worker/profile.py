"""What one step takes of a device's memory at most: runs the largest and looks.

The largest step reads one block of zeros under every position and writes none, so it needs no KV
cache. Knows nothing of how much is left for one.
"""

from __future__ import annotations

import torch

from mtactors.kernels import AttentionBatch
from mtactors.models.decoder import Decoder
from mtactors.wire.messages import Configure
from mtactors.worker.device import Device
from mtactors.worker.kv_cache import KvShape, allocate

# Beside the logits themselves: a copy to work on and an order of the ids, per row and id.
_SAMPLING_BYTES = 12


def measure_step(decoder: Decoder, device: Device, configure: Configure) -> int:
    """Return the bytes that a step takes at most. Every rank must call it: they compute together.

    Raises:
        MemoryError: not even this fits beside the weights.
    """
    spec = decoder.spec
    shape = KvShape(spec.num_layers, decoder.kv_heads, spec.head_dim, decoder.dtype)
    cache = allocate(1, configure.block_size, shape, device)
    tokens, longest = configure.max_num_batched_tokens, configure.max_model_len
    lengths = [longest] * (tokens // longest)
    lengths += [tokens % longest] if tokens % longest else []
    batch = _batch(lengths, configure.block_size, decoder.device)
    positions = torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])
    rows = min(configure.max_num_seqs, tokens)

    @torch.inference_mode()
    def work() -> None:
        ids = torch.zeros(tokens, dtype=torch.int32, device=decoder.device)
        wanted = torch.arange(rows, device=decoder.device)
        at = positions.to(decoder.device)
        hidden = decoder.forward(ids, at, batch, cache.layers, None, wanted)
        decoder.logits(hidden)

    try:
        peak = device.peak_of(work)
    except RuntimeError as error:
        # Whether a device's torch uses torch's own class for it is not known of all of them.
        if "out of memory" not in str(error).lower():
            raise
        raise MemoryError(
            f"no memory for a step of {tokens} tokens beside the weights: lower "
            "--max-num-batched-tokens"
        ) from error
    assert peak is not None, "a device that counts"
    return peak + rows * spec.vocab_rows * _SAMPLING_BYTES


def _batch(lengths: list[int], block_size: int, device: torch.device) -> AttentionBatch:
    """Return whole prompts whose every block is block 0, and whose keys nobody stores."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    tables = torch.zeros(len(lengths), -(-max(lengths) // block_size), dtype=torch.int32)
    return AttentionBatch(
        query_start=ends.to(device),
        seq_lens=torch.tensor(lengths, dtype=torch.int32).to(device),
        block_tables=tables.to(device),
        slot_mapping=torch.full((sum(lengths),), -1, dtype=torch.int64).to(device),
    )
