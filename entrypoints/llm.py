"""`LLM`: offline generation in Python, under vLLM's name and signatures."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from mtactors.engine_args import EngineArgs
from mtactors.entrypoints.engine_thread import EngineThread, PhaseCallback
from mtactors.entrypoints.inputs import (
    Message,
    Prompt,
    check_structures,
    encode_prompt,
    split_prompts,
)
from mtactors.errors import RequestError
from mtactors.outputs import RequestOutput
from mtactors.sampling_params import SamplingParams

EncodedPrompt = tuple[str | None, list[int]]


class LLM:
    """A model that answers lists of prompts.

    Args:
        model: directory, .gguf file, hub name, or None for the demo model.
        kwargs: the other fields of `EngineArgs`.

    Raises:
        MtactorsError: an argument is refused or the engine cannot start.
    """

    def __init__(self, model: str | None = None, **kwargs: Any) -> None:
        self._start(EngineArgs.from_kwargs(model=model, **kwargs), None)

    @classmethod
    def from_engine_args(cls, args: EngineArgs, on_phase: PhaseCallback | None = None) -> LLM:
        """Start an engine from its arguments; `on_phase` hears (phase, seconds)."""
        llm = cls.__new__(cls)
        llm._start(args, on_phase)
        return llm

    def _start(self, args: EngineArgs, on_phase: PhaseCallback | None) -> None:
        self._thread = EngineThread(args, on_phase)
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts and return their outputs in the order given.

        Args:
            prompts: strings, `{"prompt_token_ids": [...]}`, or lists of token ids.
            sampling_params: one for all, or one per prompt; None: the model's own, as
                `get_default_sampling_params` returns them.
            use_tqdm: show a progress bar.

        Raises:
            RequestError: a prompt or parameter does not fit; no prompt has been run then.
        """
        tokenizer = self._thread.engine.tokenizer
        encoded = [encode_prompt(tokenizer, prompt) for prompt in split_prompts(prompts)]
        return self._run(encoded, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template."""
        if not messages:
            raise RequestError("messages must not be empty", "messages")
        one = isinstance(messages[0], dict)
        conversations: Any = [messages] if one else messages
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "template": chat_template,
            "template_kwargs": chat_template_kwargs,
        }
        tokenizer = self._thread.engine.tokenizer
        encoded: list[EncodedPrompt] = [
            (
                tokenizer.render_chat(list(conversation), **options),
                tokenizer.encode_chat(list(conversation), **options),
            )
            for conversation in conversations
        ]
        return self._run(encoded, sampling_params, use_tqdm)

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what holds where none are given: the model's own, as `generation_config` says."""
        defaults = self._thread.engine.config.model.sampling_defaults
        return SamplingParams(**defaults)  # type: ignore[arg-type]  # checked when they were read

    def get_tokenizer(self) -> Any:
        """Return the Hugging Face tokenizer."""
        return self._thread.engine.tokenizer.hf

    def shutdown(self) -> None:
        """Stop the engine and its workers; idempotent."""
        self._thread.shutdown()

    def __enter__(self) -> LLM:
        """Return self; the workers stop at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shut down."""
        self.shutdown()

    def _run(
        self,
        encoded: list[EncodedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if params is None:
            params = self.get_default_sampling_params()
        per_prompt = _params_per_prompt(params, len(encoded))
        check_structures(per_prompt)
        with tqdm(total=len(encoded), desc="prompts", disable=not use_tqdm) as bar:
            return self._thread.wait(self._gather(encoded, per_prompt, bar))

    async def _gather(
        self, encoded: list[EncodedPrompt], params: list[SamplingParams], bar: tqdm[Any]
    ) -> list[RequestOutput]:
        """Submit all, then await all; runs on the engine's loop."""
        streams = []
        try:
            for (text, ids), choice in zip(encoded, params, strict=True):
                request_id = f"llm-{next(self._numbers)}"
                streams.append(self._thread.engine.submit(request_id, ids, choice, prompt=text))

            async def last(index: int) -> RequestOutput:
                async for output in streams[index]:
                    final = output
                bar.update()
                return final

            return await asyncio.gather(*(last(index) for index in range(len(streams))))
        finally:
            for stream in streams:
                await stream.aclose()


def _params_per_prompt(
    params: SamplingParams | Sequence[SamplingParams], count: int
) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise RequestError(
            f"{len(params)} sampling_params for {count} prompts; give one, or one per prompt",
            "sampling_params",
        )
    return list(params)
