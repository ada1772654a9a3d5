"""The native module (kernels/binding/module.cpp); only mtactors.kernels calls it.

Addresses are `Tensor.data_ptr()`, 0 where there is nothing; strides count elements; dtypes are
0 float32, 1 bfloat16, 2 float16. kernels/abi.h has the meaning of each argument. Operations return
0 or a code that `Backend.error` puts into words.
"""

from collections.abc import Sequence

def abi_version() -> int:
    """Return the version of kernels/abi.h that this module was compiled with."""

def isa_builds() -> list[tuple[str, str, bool]]:
    """Return (name, compiled for, runs on this CPU) of each hot build, slowest first."""

def threads() -> int:
    """Return how many threads work on a kernel."""

def set_threads(count: int, pin: bool = False) -> None:
    """Use `count` threads; with `pin`, bind the caller and the others to a CPU each."""

class Backend:
    """The kernels of one build for the CPU, or of one device library.

    `attention` and `sample` return (code, bytes of scratch that they take): where fewer were handed
    in, nothing was computed and the code is 0.
    """

    @staticmethod
    def isa(name: str) -> Backend:
        """Return a build's kernels; ValueError where it does not run."""

    @staticmethod
    def library(path: str) -> Backend:
        """Open a library, for good; RuntimeError with the reason where it cannot be used."""

    @property
    def kind(self) -> str:
        """Return "cpu", or "musa", "nvidia" or "emulated" as the library calls itself."""

    @property
    def operations(self) -> list[str]:
        """Return the operations that it has, by their names here."""

    def error(self, code: int) -> str:
        """Return a code in words."""

    def facts(self, device: int) -> tuple[int, int, int, int]:
        """Return arch, warp size, bytes of shared memory a block, multiprocessors."""

    def linear(
        self,
        x: int,
        x_stride: int,
        weight: PackedMatrix,
        bias: int,
        out: int,
        out_stride: int,
        tokens: int,
        out_dtype: int,
        /,
    ) -> None: ...
    def likeliest(
        self,
        x: int,
        x_stride: int,
        weight: PackedMatrix,
        ids: int,
        tokens: int,
        sampleable: int,
        /,
    ) -> None: ...
    def embedding(
        self,
        ids: int,
        weight: int,
        out: int,
        tokens: int,
        n: int,
        k: int,
        first_row: int,
        dtype: int,
        stream: int,
        /,
    ) -> int: ...
    def rms_norm(
        self,
        x: int,
        x_outer: int,
        x_inner: int,
        residual: int,
        total: int,
        weight: int,
        out: int,
        outer: int,
        inner: int,
        hidden: int,
        dtype: int,
        eps: float,
        cast_first: bool,
        stream: int,
        /,
    ) -> int: ...
    def rope(
        self,
        q: int,
        q_token: int,
        q_head: int,
        k: int,
        k_token: int,
        k_head: int,
        rows: int,
        cos_sin: int,
        q_scale: int,
        tokens: int,
        q_heads: int,
        k_heads: int,
        head_dim: int,
        rotary_dim: int,
        interleaved: bool,
        dtype: int,
        stream: int,
        /,
    ) -> int: ...
    def kv_write(
        self,
        k: int,
        k_token: int,
        k_head: int,
        v: int,
        v_token: int,
        v_head: int,
        k_cache: int,
        v_cache: int,
        slots: int,
        tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: int,
        stream: int,
        /,
    ) -> int: ...
    def attention(
        self,
        q: int,
        q_token: int,
        q_head: int,
        k_cache: int,
        v_cache: int,
        query_start: int,
        seq_lens: int,
        block_tables: int,
        block_tables_stride: int,
        alibi_slopes: int,
        out: int,
        sequences: int,
        tokens: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        window: int,
        dtype: int,
        scale: float,
        workspace: int,
        workspace_bytes: int,
        stream: int,
        /,
    ) -> tuple[int, int]: ...
    def silu_and_mul(
        self,
        gate_up: int,
        stride: int,
        out: int,
        tokens: int,
        f: int,
        dtype: int,
        stream: int,
        /,
    ) -> int: ...
    def copy_blocks(
        self,
        caches: Sequence[int],
        copies: int,
        num_copies: int,
        block_bytes: int,
        token_bytes: int,
        stream: int,
        /,
    ) -> int: ...
    def sample(
        self,
        logits: int,
        stride: int,
        arrays: Sequence[int],
        mask_stride: int,
        ids: int,
        rows: int,
        vocab: int,
        sampleable: int,
        workspace: int,
        workspace_bytes: int,
        stream: int,
        /,
    ) -> tuple[int, int]: ...
    def logprobs(
        self,
        logits: int,
        stride: int,
        ids: int,
        logprob: int,
        rank: int,
        top_ids: int,
        top_logprobs: int,
        rows: int,
        top_n: int,
        sampleable: int,
        stream: int,
        /,
    ) -> int: ...

class PackedMatrix:
    """A weight in the layout of the kernels, with its memory."""

    def __init__(
        self, backend: Backend, source: int, stride: int, n: int, k: int, dtype: int
    ) -> None: ...
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def dtype(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def held(self) -> int:
        """Return how it is held, as `Held` in cpu/ops.h numbers the ways."""
    @property
    def nbytes(self) -> int: ...

class SharedGroup:
    """This rank's end of a shared mapping; all ranks make the same calls in the same order."""

    def __init__(self, path: str, rank: int, size: int, capacity: int) -> None: ...
    @staticmethod
    def file_bytes(size: int, capacity: int) -> int: ...
    def reduce_sum(
        self,
        backend: Backend,
        partial: int,
        out: int,
        rows: int,
        n: int,
        dtype: int,
        seconds: float,
    ) -> None: ...
    def gather(self, source: int, num_bytes: int, out: int, seconds: float) -> None: ...

class Decoder:
    """A whole forward pass; borrows weights, norms and caches."""

    def __init__(
        self,
        backend: Backend,
        embedding: PackedMatrix,
        final_norm: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        first_row: int,
        eps: float,
        cast_first: bool,
        scale: float,
        alibi_slopes: int,
        group: SharedGroup | None,
    ) -> None: ...
    def add_layer(
        self, matrices: Sequence[PackedMatrix], vectors: Sequence[int], window: int
    ) -> None: ...
    def forward(
        self,
        ids: int,
        tokens: int,
        rope_rows: int,
        cos_sin: int,
        q_scale: int,
        rotary_dim: int,
        interleaved: bool,
        query_start: int,
        seq_lens: int,
        block_tables: int,
        block_tables_stride: int,
        sequences: int,
        slots: int,
        hidden_rows: int,
        num_hidden_rows: int,
        hidden: int,
        /,
    ) -> None: ...
