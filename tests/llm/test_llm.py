"""The friendly class: text in, text out, whatever the form of the prompt, and usable after every kind of interruption."""

import json
import warnings

import pytest
import torch

import zamba_lm.llm
from tests.llm.tiny import CONFIG, POSITIONS, write_checkpoint
from zamba_lm import LLM, SamplingParams, ZambaError, load_model, load_tokenizer
from zamba_lm.model.generate import generate as oracle
from zamba_lm.ops import dispatch

PROMPTS = ["The sea was", "A good bread needs", "x", "Grüße, Welt! 你好 🦙 " * 6]
FEW = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, dtype="float32")


@pytest.fixture(autouse=True)
def idle(llm):
    yield
    assert not llm.engine.busy and not llm._writers, "something was left in the engine"


def test_text_is_that_of_the_models_greedy_tokens(llm):
    (done,) = llm.generate("The sea was", FEW)
    prompt_ids = llm.tokenizer.encode("The sea was")
    assert done.prompt_ids == tuple(prompt_ids) and prompt_ids[0] == llm.tokenizer.bos_id
    assert done.ids == tuple(oracle(llm.model, prompt_ids, 12)) and len(set(done.ids)) > 4
    assert done.text == llm.tokenizer.decode(done.ids, prompt_ids=prompt_ids)
    assert done.finish_reason == "length" and done.logprobs is None


def test_many_prompts_are_answered_in_order_and_as_alone(llm):
    many = llm.generate(PROMPTS, FEW)
    assert many == [llm.generate(prompt, FEW)[0] for prompt in PROMPTS]


def test_prompts_may_be_token_ids(llm):
    ids = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    expected = llm.generate(PROMPTS, FEW)
    assert llm.generate(ids, FEW) == expected
    assert llm.generate(ids[1], FEW) == llm.generate(tuple(ids[1]), FEW) == expected[1:2]
    assert llm.generate([PROMPTS[0], ids[1]], FEW) == expected[:2]
    assert llm.generate([], FEW) == []


def test_streamed_pieces_are_the_text(llm):
    for prompt, expected in zip(PROMPTS, llm.generate(PROMPTS, FEW)):
        stream = llm.stream(prompt, FEW)
        pieces = list(stream)
        assert "".join(pieces) == expected.text and all(pieces) and len(pieces) > 3
        assert stream.completion == expected and list(stream) == []


def test_chat_continues_the_rendered_conversation(llm):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three rivers."}]
    other = [{"role": "user", "content": "Hello"}]
    (done,) = llm.chat(talk, FEW)
    assert done == llm.generate(llm.tokenizer.encode_chat(talk), FEW)[0]
    assert llm.chat([talk, other], FEW) == [done, llm.chat(other, FEW)[0]]
    assert "".join(llm.stream_chat(talk, FEW)) == done.text


def test_a_model_without_a_chat_template_is_talked_to_with_a_warning(folder, tmp_path):
    load_model(folder).save(tmp_path)
    base = LLM(tmp_path, device="cpu")
    with pytest.warns(UserWarning, match="has no chat template, so it was probably not trained to chat"):
        base.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=1))


def test_a_message_without_content_is_refused(llm):
    with pytest.raises(ZambaError, match="content"):
        llm.chat([{"role": "user"}])


def across_tokens(llm, prompt):
    """A stop string that begins inside one token and ends inside a later one, and the text before it."""
    pieces = list(llm.stream(prompt, FEW))
    text = "".join(pieces)
    at, end = len("".join(pieces[:4])) - 1, len("".join(pieces[:6])) + 1
    stop = text[at:end]
    return stop, text[: text.index(stop)]


@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_a_stop_string_across_tokens_ends_the_text_before_it(llm, prompt):
    stop, before = across_tokens(llm, prompt)
    params = SamplingParams(max_tokens=50, stop=stop)
    done, other = llm.generate([prompt, prompt], params)
    assert done == other and done.text == before and done.finish_reason == "stop" and len(done.ids) < 12
    assert "".join(llm.stream(prompt, params)) == before


def test_stopping_one_prompt_leaves_the_others_alone(llm):
    stop, before = across_tokens(llm, PROMPTS[0])
    free = llm.generate(PROMPTS[1:3], FEW)
    stopped = llm.generate(PROMPTS[:3], SamplingParams(max_tokens=12, stop=[stop]))
    assert [c.text for c in stopped] == [before, *(c.text for c in free)]


def test_a_stop_string_that_never_comes_whole_is_given_back(llm):
    (expected,) = llm.generate(PROMPTS[0], FEW)
    (done,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=12, stop=expected.text[-2:] + "never"))
    assert done == expected


def test_an_end_token_is_counted_but_not_shown(folder, tmp_path, llm):
    (free,) = llm.generate(PROMPTS[0], FEW)
    end = free.ids[5]
    other = write_checkpoint(tmp_path, {"eos_token_id": [end]})
    (done,) = LLM(other, dtype="float32").generate(PROMPTS[0], FEW)
    cut = free.ids.index(end)
    assert done.ids == free.ids[: cut + 1] and done.finish_reason == "stop"
    assert done.text == llm.tokenizer.decode(free.ids[:cut], prompt_ids=free.prompt_ids)


def test_without_params_the_folders_generation_config_decides(tmp_path, llm):
    config = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "max_new_tokens": 7}
    other = LLM(write_checkpoint(tmp_path, config), dtype="float32")
    assert other.defaults == SamplingParams(temperature=0.9, top_p=0.8, max_tokens=7)
    assert len(other.generate("x")[0].ids) == 7
    assert llm.defaults == SamplingParams()


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"max_new_tokens": "many"}'])
def test_a_broken_generation_config_is_named(tmp_path, content):
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ZambaError, match="generation_config.json"):
        LLM(tmp_path, dtype="float32").generate("x")


def test_seeds_repeat_in_any_batch(llm):
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=3)
    (alone,) = llm.generate(PROMPTS[1], params)
    assert llm.generate(PROMPTS, params)[1] == alone
    assert llm.generate(PROMPTS[1], SamplingParams(max_tokens=10, temperature=1.0, seed=4))[0].ids != alone.ids


def test_logprobs_come_with_every_token(llm):
    (done,) = llm.generate("x", SamplingParams(max_tokens=5, logprobs=2))
    assert [p.token for p in done.logprobs] == list(done.ids)
    assert all(p.top[0] == (p.token, p.logprob) and len(p.top) == 2 for p in done.logprobs), "greedy tokens are the likeliest"


def test_streams_may_run_side_by_side_and_beside_generate(llm):
    expected = [c.text for c in llm.generate(PROMPTS, FEW)]
    first, second = llm.stream(PROMPTS[0], FEW), llm.stream(PROMPTS[1], FEW)
    texts = [next(first), next(second), next(second)]
    assert [c.text for c in llm.generate(PROMPTS[2:], FEW)] == expected[2:]
    assert texts[0] + "".join(first) == expected[0]
    assert "".join(texts[1:]) + "".join(second) == expected[1]


def test_a_stream_left_early_frees_its_slot(llm):
    for _ in llm.stream(PROMPTS[0], FEW):
        break  # and forgotten
    assert not llm.engine.busy
    stream = llm.stream(PROMPTS[0], FEW)
    first = next(stream)
    stream.close()
    assert list(stream) == [] and stream.completion.text.startswith(first) and stream.completion.finish_reason is None


def interrupt_after(llm, monkeypatch, steps):
    step, left = llm.engine.step, iter(range(steps))

    def interrupted():
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)


def test_ctrl_c_in_generate_leaves_the_engine_usable(llm, monkeypatch):
    expected = llm.generate(PROMPTS, FEW)
    with monkeypatch.context() as patch:
        interrupt_after(llm, patch, 5)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, FEW)
    assert not llm.engine.busy and llm.generate(PROMPTS, FEW) == expected


def test_ctrl_c_in_a_stream_keeps_what_was_written(llm, monkeypatch):
    (expected,) = llm.generate(PROMPTS[0], FEW)
    stream, text = llm.stream(PROMPTS[0], FEW), ""
    with monkeypatch.context() as patch:
        interrupt_after(llm, patch, 5)
        with pytest.raises(KeyboardInterrupt):
            for piece in stream:
                text += piece
    assert (
        text and stream.completion.text == text and expected.text.startswith(text) and stream.completion.ids == expected.ids[:5]
    )
    assert list(stream) == [] and llm.generate(PROMPTS[0], FEW) == [expected]


def test_a_prompt_that_cannot_be_read_drops_those_queued_with_it(llm):
    with pytest.raises(ZambaError, match="token id 32000 at position 1"):
        llm.generate([[1, 2], [1, 32000]], FEW)
    with pytest.raises(ZambaError, match="no tokens"):
        llm.generate([[1, 2], []], FEW)


def test_beyond_the_trained_length_one_warning_and_an_answer(llm):
    ids = [1] * (POSITIONS + 20)
    with pytest.warns(UserWarning, match=f"^{len(ids)} prompt tokens .* {POSITIONS} ") as caught:
        (done,) = llm.generate(ids, SamplingParams(max_tokens=2))
    assert len(caught) == 1 and len(done.ids) == 2 and "\n" not in str(caught[0].message)
    with pytest.warns(UserWarning, match="up to 300 new ones"):
        llm.stream("x", SamplingParams(max_tokens=POSITIONS)).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.generate([1] * (POSITIONS - 2), SamplingParams(max_tokens=2))


def test_progress_goes_to_standard_error(llm, capsys):
    llm.generate(PROMPTS[:2], FEW, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "100%" in shown.err
    llm.generate(PROMPTS[:2], FEW)
    assert capsys.readouterr() == ("", "")


def test_the_name_is_looked_up_at_once_and_the_weights_are_loaded_when_needed(folder, tmp_path):
    lazy = LLM(folder)
    assert not {"model", "tokenizer", "engine"} & set(vars(lazy))
    with pytest.raises(ZambaError, match="nowhere"):
        LLM(tmp_path / "nowhere")


def test_overrides_and_dtype_reach_the_model(folder):
    model = LLM(folder, dtype="bfloat16", overrides={"max_positions": 9}).model
    assert str(model.dtype) == "torch.bfloat16" and model.config.max_positions == 9 and CONFIG.max_positions != 9


def test_load_tokenizer_is_the_llms(folder, llm):
    assert load_tokenizer(folder).encode("Hello") == llm.tokenizer.encode("Hello")
    assert load_tokenizer(str(folder)).special == llm.tokenizer.special


def test_eos_of_the_config_ends_answers(llm):
    assert json.loads((llm.folder / "config.json").read_text())["eos_token_id"] == 2
    assert llm.engine.eos_ids == {2}


def test_a_gpu_without_kernels_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.warns(UserWarning, match="attention, .*linear, .* run as plain torch, which is slow: compute capability 7.0"):
        zamba_lm.llm._warn_of_fallbacks(torch.device("cuda"))


def test_a_backend_that_cannot_be_raises_and_forces_nothing():
    with pytest.raises(ZambaError, match="cannot run as triton on cpu: Triton kernels need a GPU"):
        _ = LLM(device="cpu", backend="triton").model
    with pytest.raises(ZambaError, match="unknown backend 'fast', expected one of auto, triton, reference"):
        _ = LLM(device="cpu", backend="fast").model
    assert all(why != "forced" for _, _, why in dispatch.table("cpu"))
