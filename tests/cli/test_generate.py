"""``generate``: the text alone on standard output, one line and an exit code for what goes wrong."""

import os
import signal
import subprocess
import sys

import pytest

from tests.llm.tiny import POSITIONS
from zamba_lm import LLM, SamplingParams


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder)


def text_of(llm, prompt, **params):
    return llm.generate(prompt, SamplingParams(**params))[0].text


def test_as_a_process_the_text_alone_is_on_standard_output(process, folder, llm):
    result = process("generate", "--model", folder, "--max-tokens", 12, "The sea was")
    assert result.returncode == 0
    assert result.stdout.decode() == text_of(llm, "The sea was", max_tokens=12) + "\n"
    assert result.stderr.startswith(b"[12 tokens, ") and result.stderr.count(b"\n") == 1


def test_a_prompt_from_standard_input_is_the_same_prompt(run, folder, llm):
    expected = text_of(llm, "Grüße 🦙", max_tokens=8) + "\n"
    for stdin in ("Grüße 🦙", "Grüße 🦙\n", "Grüße 🦙\r\n"):
        result = run("generate", "--model", folder, "--max-tokens", 8, stdin=stdin.encode())
        assert (result.code, result.out) == (0, expected)


def test_every_option_reaches_the_sampler(run, folder, llm):
    options = {
        "max_tokens": 9,
        "temperature": 0.9,
        "top_k": 200,
        "top_p": 0.95,
        "min_p": 0.001,
        "repetition_penalty": 1.2,
        "seed": 7,
    }
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert run("generate", "--model", folder, "x", *flags).out == text_of(llm, "x", **options) + "\n"


def test_stop_texts_may_be_repeated(run, folder, llm):
    text = text_of(llm, "x", max_tokens=12)
    result = run("generate", "--model", folder, "x", "--max-tokens", 12, "--stop", "never there", "--stop", text[9:11])
    assert result.out == text[: text.index(text[9:11])] + "\n" and "finished" in result.err


def test_chat_applies_the_template(run, folder, llm):
    expected = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=6))[0].text
    assert run("generate", "--model", folder, "--chat", "Hello", "--max-tokens", 6).out == expected + "\n"


def test_without_options_the_generation_config_decides(run, folder, tmp_path):
    for file in os.listdir(folder):
        os.symlink(os.path.join(folder, file), tmp_path / file)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 5}')
    assert run("generate", "--model", tmp_path, "x").err.startswith("[5 tokens")


def test_overrides_change_the_config(run, folder):
    result = run("generate", "--model", folder, "x", "--max-tokens", 5, "--override", "max_positions=4")
    assert result.code == 0 and result.err.startswith("warning: ") and "exceed the 4 " in result.err


def test_a_prompt_beyond_the_trained_length_is_a_warning(run, folder):
    result = run("generate", "--model", folder, "--max-tokens", 2, stdin=b"word " * POSITIONS)
    warning, figures = result.err.splitlines()
    assert result.code == 0 and warning.startswith("warning: ") and str(POSITIONS) in warning and figures.startswith("[2 tokens")


BAD = [
    ([""], b"", "the prompt is empty"),
    ([], b"", "the prompt is empty"),
    ([], b"\n", "the prompt is empty"),
    ([], b"abc\xff\xfe", "standard input is not UTF-8: byte 0xff at offset 3"),
    (["a\udcff"], b"", "the prompt is not UTF-8: byte 0xff at offset 1"),
    (["x", "--temperature", "-0.5"], b"", "temperature is -0.5, expected a number of at least 0"),
    (["x", "--top-p", "0"], b"", "top_p is 0.0, expected"),
    (["x", "--max-tokens", "0"], b"", "max_tokens is 0, expected"),
    (["x", "--seed", "-1"], b"", "seed is -1, expected"),
    (["x", "--stop", ""], b"", "stop is "),
    (["x", "--override", "max_positions"], b"", "--override 'max_positions': expected KEY=VALUE"),
    (["x", "--override", "max_position=8"], b"", "max_positions"),
    (["x", "--dtype", "bf17"], b"", "'bf17'"),
    (["x", "--device", "cuda:99"], b"", "cuda:99"),
    (["x", "--revision", "iter2500"], b"", "iter2500"),
]


@pytest.mark.parametrize(("args", "stdin", "message"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_input_is_one_line_and_exit_code_1(run, folder, args, stdin, message):
    result = run("generate", "--model", folder, *args, stdin=stdin)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and message in result.err


@pytest.mark.parametrize("name", ["zamba3-huge", "./nowhere", "Zyphra/", "no such model", "nobody/nothing"])
def test_an_unknown_model_is_one_line_and_exit_code_1(run, name):
    result = run("generate", "--model", name, "x")
    assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1


def test_a_missing_weight_file_is_one_line_and_exit_code_1(run, folder, tmp_path):
    for file in os.listdir(folder):
        if not file.endswith(".safetensors"):
            os.symlink(os.path.join(folder, file), tmp_path / file)
    result = run("generate", "--model", tmp_path, "x")
    assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_traceback(folder):
    command = [sys.executable, "-m", "zamba_lm", "generate", "--model", folder, "x", "--max-tokens", "3000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait(60) == 1 and "Traceback" not in error and "Broken" not in error


def test_ctrl_c_ends_with_exit_code_130_and_no_traceback(folder):
    command = [sys.executable, "-m", "zamba_lm", "generate", "--model", folder, "x", "--max-tokens", "100000"]
    command += ["--override", "max_positions=200000"]  # no warning
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout.read(1)  # it writes by now
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_line_and_exit_code_1(folder):
    command = [sys.executable, "-m", "zamba_lm", "generate", "--model", folder, "x", "--max-tokens", "2"]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (1, b"error: No space left on device\n")
