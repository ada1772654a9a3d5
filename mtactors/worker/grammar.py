"""Grammars of the rows that have one, and the ids that each allows next.

Lives on rank 0. What a row allows is a function of its grammar and its output so far, so a row that
resumes needs nothing but its tokens. A grammar is compiled once, in a thread, while the prompt is
computed; the vocabulary is read when the first grammar comes, or before by `warm`. Knows nothing of
plans, tensors or how a token is chosen among those that are allowed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mtactors.tokenizers.files import load_backend
from mtactors.tokenizers.settings import add_tokens, named_tokens
from mtactors.tokenizers.token_bytes import TokenBytes
from mtactors.worker.rows import Int32s, Rows, id_bits

if TYPE_CHECKING:  # most workers never meet a grammar, and all start faster without this
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)

_KNOWN = 64  # compiled grammars that are kept
_PARALLEL_FROM = 16  # rows; waking threads up costs more than a few masks


class Vocabulary:
    """The bytes of each id, in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(
        self, directory: Path, vocab_rows: int, sampleable: int, stop_ids: Iterable[int]
    ) -> None:
        """Read the tokenizer of a directory.

        Args:
            vocab_rows: width of the logits. Ids from `sampleable` on stand for nothing.
            stop_ids: the model's; the tokenizer's own end-of-sequence id is added.

        Raises:
            ModelError: no tokenizer files, or ones that cannot be read.
        """
        backend, config = load_backend(directory)
        named = named_tokens(config)
        add_tokens(backend, config, named)
        self._backend = backend
        table = TokenBytes(backend)
        self.tokens = [table[token] for token in range(sampleable)]
        self.tokens += [b""] * (vocab_rows - sampleable)
        eos = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
        ends = {*stop_ids} if eos is None else {*stop_ids, eos}
        self.ends = sorted(token for token in ends if 0 <= token < sampleable)
        added = backend.get_added_tokens_decoder()
        special = {token for token, entry in added.items() if entry.special}
        self.special_token_ids = sorted(
            token for token in special.union(self.ends) if token < vocab_rows
        )
        self.eos_token_id = self.ends[0]

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a text."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def build(self) -> LLTokenizer:
        """Return the tokenizer for matchers: a trie over all tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(self), eos_token=self.ends)


class _Follower:
    """A row's place in its grammar."""

    __slots__ = ("_compiled", "_consumed", "_matcher", "_reported", "name")

    def __init__(self, name: str, compiled: Future[LLMatcher]) -> None:
        self.name = name
        self._compiled = compiled
        self._matcher: LLMatcher | None = None
        self._consumed = 0
        self._reported = False

    def at(self, output: Int32s) -> LLMatcher:
        """Return the matcher after a row's output; output only grows."""
        matcher = self._matcher
        if matcher is None:
            matcher = self._matcher = self._compiled.result().deep_copy()
        if self._consumed < len(output):
            if not matcher.is_stopped():
                matcher.consume_tokens(output[self._consumed :].tolist())
            self._consumed = len(output)
        return matcher

    def report(self) -> None:
        """Log, once, why this row cannot follow its grammar any further."""
        matcher = self._matcher
        if matcher is None or self._reported or not matcher.is_error():
            return
        self._reported = True
        reason = matcher.get_error().strip().splitlines()[0]
        logger.warning("request %s ends early, its grammar cannot go on: %s", self.name, reason)


class Grammars:
    """The grammars of all slots.

    Args:
        load: reads the vocabulary.
        threads: that may compute masks.
    """

    def __init__(self, load: Callable[[], Vocabulary], threads: int = 1) -> None:
        self._load = load
        self._threads = threads
        self._rows: dict[int, _Follower] = {}
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, "grammar")
        self._warming: Future[LLTokenizer] | None = None

    def warm(self) -> None:
        """Begin to read what the first grammar would have to wait for. May be repeated.

        What goes wrong is told to the first grammar.
        """
        if self._warming is None:
            self._warming = self._compiler.submit(lambda: self._tokenizer)

    def start(self, slot: int, name: str, grammar: str) -> None:
        """Take over the grammar of a row that starts in a slot; empty for none.

        Args:
            name: the request's id, for the log.
        """
        if not grammar:
            self._rows.pop(slot, None)
            return
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiler.submit(self._compile, grammar)
            self._compiled[grammar] = compiled
            if len(self._compiled) > _KNOWN:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        self._rows[slot] = _Follower(name, compiled)

    def fill(self, mask: Int32s, places: Sequence[tuple[int, int]], rows: Rows) -> None:
        """Write what rows allow next; a row whose grammar has ended allows the end ids alone.

        Args:
            mask: (R, words) as in SamplingBatch; only the rows of `places` are written.
            places: (row of the mask, slot), each of a row with a grammar.
        """
        from llguidance import numpy as bitmasks

        followers = [self._rows[slot] for _, slot in places]
        matchers = [
            (follower.at(rows.output(slot)), row)
            for follower, (row, slot) in zip(followers, places, strict=True)
        ]
        if len(matchers) < _PARALLEL_FROM or self._threads < 2:
            for matcher, row in matchers:
                bitmasks.fill_next_token_bitmask(matcher, mask, row)
        else:
            bitmasks.fill_next_token_bitmask_par(self._executor, matchers, mask)
        for follower, (matcher, row) in zip(followers, matchers, strict=True):
            if matcher.is_stopped() or not mask[row].any():
                follower.report()
                mask[row] = self._ends

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._load()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return self._vocabulary.build()

    @cached_property
    def _ends(self) -> Int32s:
        return id_bits(self._vocabulary.ends, -(-len(self._vocabulary.tokens) // 32))

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(num_threads=self._threads)

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        return LLMatcher(self._tokenizer, grammar, log_level=0)
