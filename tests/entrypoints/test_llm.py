from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mtactors.entrypoints.inputs import Prompt
from mtactors.entrypoints.llm import LLM
from mtactors.errors import ConfigError, EngineDeadError, MtactorsError, RequestError
from mtactors.sampling_params import SamplingParams

pytestmark = [pytest.mark.needs_torch, pytest.mark.xdist_group("llm")]

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = ["What is the capital", "The quick brown fox", "0 1 2 3", "lazy dog"]


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert all(output.finished for output in outputs)
    alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in PROMPTS]
    assert [one.outputs[0].token_ids for one in alone] == [
        output.outputs[0].token_ids for output in outputs
    ]


def test_token_ids_and_text_give_the_same(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    forms: Any = [{"prompt_token_ids": ids}, {"prompt": PROMPTS[0]}, PROMPTS[0], ids]
    texts = {out.outputs[0].text for out in llm.generate(forms, GREEDY, use_tqdm=False)}
    assert len(texts) == 1
    assert llm.generate(ids, GREEDY, use_tqdm=False)[0].prompt_token_ids == ids


def test_one_params_per_prompt(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 2, 3, 4)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3, 4]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_without_params_the_models_own_hold(tiny_model: Path, tmp_path: Path) -> None:
    defaults = {"temperature": 0.0, "max_new_tokens": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults))
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "disable_log_stats": True}
    with LLM(str(tiny_model), generation_config=str(tmp_path), **options) as made:
        assert made.get_default_sampling_params() == SamplingParams(temperature=0.0, max_tokens=3)
        outputs = made.generate(PROMPTS, use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 3, 3, 3]
        messages = [{"role": "user", "content": PROMPTS[0]}]
        (answer,) = made.chat(messages, use_tqdm=False)
        assert len(answer.outputs[0].token_ids) == 3
        (long,) = made.generate(PROMPTS[0], SamplingParams(ignore_eos=True), use_tqdm=False)
        assert len(long.outputs[0].token_ids) == 16


def test_without_params_and_a_models_own_the_usual_hold(llm: LLM) -> None:
    assert llm.get_default_sampling_params() == SamplingParams()


def test_a_wrong_number_of_params_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 sampling_params for 4 prompts"):
        llm.generate(PROMPTS, [GREEDY, GREEDY], use_tqdm=False)


@pytest.mark.parametrize("prompt", [3, {"text": "x"}, ["a", 3], [["x"]], {"prompt_token_ids": "a"}])
def test_what_is_not_a_prompt_is_refused(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError):
        llm.generate(prompt, GREEDY, use_tqdm=False)


def test_an_over_long_prompt_names_the_limit_and_disturbs_nothing(llm: LLM) -> None:
    prompts: list[Prompt] = [PROMPTS[0], [5] * 600]
    with pytest.raises(RequestError, match="512"):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    assert llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].finished


def test_n_choices_have_their_own_randomness_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, n=3, seed=7, max_tokens=8, ignore_eos=True)
    first, second = (llm.generate("the lazy", params, use_tqdm=False)[0] for _ in range(2))
    ids = [tuple(choice.token_ids) for choice in first.outputs]
    assert [choice.index for choice in first.outputs] == [0, 1, 2]
    assert len(set(ids)) == 3
    assert ids == [tuple(choice.token_ids) for choice in second.outputs]


def test_logprobs_hold_the_sampled_token_and_the_likeliest(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1)
    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]
    choice = output.outputs[0]
    assert choice.logprobs is not None
    assert len(choice.logprobs) == len(choice.token_ids)
    for token, position in zip(choice.token_ids, choice.logprobs, strict=True):
        assert position[token].rank == 1
        assert len(position) == 2
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    total = sum(
        position[token].logprob
        for token, position in zip(choice.token_ids, choice.logprobs, strict=True)
    )
    assert choice.cumulative_logprob == pytest.approx(total)


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(messages, GREEDY, use_tqdm=False)[0]
    assert output.prompt is not None
    assert output.prompt.startswith("<|im_start|>user\n")
    both = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert [out.outputs[0].token_ids for out in both] == [output.outputs[0].token_ids] * 2


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "wizard", "content": 3}]])
def test_broken_messages_are_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError):
        llm.chat(messages, GREEDY, use_tqdm=False)


def test_a_progress_bar_counts_prompts(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, GREEDY)
    assert "4/4" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"quantization": "awq"}, "quantization"),
        ({"block_size": 48}, "block_size"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    tiny_model: Path, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        LLM(str(tiny_model), device="cpu", **options)


def test_an_unknown_model_is_one_line() -> None:
    with pytest.raises(MtactorsError) as caught:
        LLM("/no/such/model", device="cpu")
    assert "/no/such/model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shutdown_leaves_no_process_and_later_calls_say_so(tiny_model: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = LLM(str(tiny_model), dtype="float32", device="cpu", disable_log_stats=True)
    assert {child.pid for child in psutil.Process().children(recursive=True)} > before
    made.shutdown()
    made.shutdown()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    with pytest.raises(EngineDeadError):
        made.generate("x", GREEDY, use_tqdm=False)


def test_a_script_without_a_main_guard_works_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mtactors import LLM, SamplingParams\n"
        f"llm = LLM(model={str(tiny_model)!r}, device='cpu', dtype='float32')\n"
        "out = llm.generate(['the lazy'], SamplingParams(temperature=0, max_tokens=3))\n"
        "print('tokens', len(out[0].outputs[0].token_ids))\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "tokens 3" in run.stdout
