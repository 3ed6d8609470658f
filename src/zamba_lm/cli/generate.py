"""``zamba-lm generate``: continue a text. The text alone goes to standard output."""

import sys
from dataclasses import replace
from typing import Annotated

import typer

from zamba_lm.cli import options as o
from zamba_lm.cli import terminal
from zamba_lm.errors import ZambaError


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; from standard input if left out.")] = None,
    model: o.Model = "zamba2-pebble",
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    backend: o.Backend = "auto",
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask the prompt as a question, through the chat template.")] = False,
    override: o.Override = None,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="One model over the GPUs of `torchrun --nproc-per-node N -m zamba_lm`.")
    ] = False,
) -> None:
    """Continue a text.

    The text alone goes to standard output, everything else to standard error. Settings not given are those of the model's
    generation_config.json; without one, the most likely token is taken each time, 256 times at most.

    \b
    Examples:
      zamba-lm generate "The old lighthouse keeper" --max-tokens 40
      zamba-lm generate --temperature 0.8 --top-p 0.95 --seed 7 "Once upon a time"
      zamba-lm generate --chat --model Zyphra/Zamba2-2.7B-Instruct "Name a river."
      cat story.txt | zamba-lm generate > continued.txt
    """
    if parallel:
        terminal.first_rank_only()
    text = _prompt(prompt)
    how = {"device": device, "dtype": dtype, "backend": backend, "parallel": parallel}
    llm = load(model, revision=revision, overrides=o.overrides(override), **how)
    params = settings(
        llm,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or None,
    )
    clock = terminal.Clock()
    stream = llm.stream_chat([{"role": "user", "content": text}], params) if chat else llm.stream(text, params)
    terminal.write(stream)
    print(flush=True)
    done = stream.completion
    terminal.say(f"[{clock.rate(len(done.ids))}, {'max-tokens reached' if done.finish_reason == 'length' else 'finished'}]")
    if parallel:
        from zamba_lm.parallel import leave

        leave()


def load(name: str, **how):
    """The model, in memory."""
    with terminal.busy(f"loading {name} ..."):
        from zamba_lm.llm import LLM

        llm = LLM(name, **how)
        assert llm.engine  # loads it
    return llm


def settings(llm, **given):
    """The model's defaults with what was given on the command line. Raises ZambaError for values out of range."""
    return replace(llm.defaults, **{name: value for name, value in given.items() if value is not None})


def _prompt(argument: str | None) -> str:
    if argument is None and sys.stdin.isatty():
        raise ZambaError('there is no prompt: give it as an argument, as in zamba-lm generate "Once upon a time", or pipe it in')
    text = terminal.piped_text() if argument is None else terminal.checked(argument, "the prompt")
    if not text:
        raise ZambaError("the prompt is empty: give a text to continue, as an argument or on standard input")
    return text
