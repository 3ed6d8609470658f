"""Model, tokenizer and engine behind one friendly class: text in, text out."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path

from zamba_lm.engine.defaults import from_generation_config
from zamba_lm.engine.engine import Engine, completion
from zamba_lm.engine.request import Completion, Event, Request, SamplingParams
from zamba_lm.errors import ZambaError
from zamba_lm.hub import EMBEDDED, resolve
from zamba_lm.model.load import as_device, load_model
from zamba_lm.model.ready import ready
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.dispatch import use, without
from zamba_lm.parallel import load_parallel
from zamba_lm.text.chat import IM_START
from zamba_lm.text.stop import StopStrings
from zamba_lm.text.stream import Detokenizer
from zamba_lm.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, str]]


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model: a folder, a hub name, or the embedded one's name."""
    return Tokenizer.load(resolve(name_or_path, revision))


class LLM:
    """A model to write and talk with.

    ``name`` is a folder, a hub name or ``"zamba2-pebble"``; it is found at once and loaded when first needed. ``device``,
    ``dtype`` and ``overrides`` are those of ``load_model``. ``backend`` "triton" or "reference" says how ops are computed, in
    the whole process, and raises where that cannot be; "auto" takes the fastest that runs here. At most ``max_batch`` prompts
    run at a time. Where a call gets no params, the model's generation_config.json decides (``defaults``). One thread at a time;
    several streams may be open at once. ``parallel`` splits the model over the processes that torchrun started, each of which
    makes the same calls (docs/parallel.md).
    """

    def __init__(
        self,
        name: str | Path = EMBEDDED,
        *,
        revision=None,
        device="auto",
        dtype="auto",
        overrides=None,
        backend: str = "auto",
        parallel: bool = False,
        max_batch: int = 32,
    ):
        self.folder = resolve(name, revision)
        self._how = {"device": device, "dtype": dtype, "overrides": overrides}
        self._backend, self._parallel, self._max_batch = backend, parallel, max_batch
        self._writers: dict[int, _Writer] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    @cached_property
    def model(self) -> Zamba:
        device = as_device(self._how["device"])
        use(self._backend, device)
        if device.type == "cuda":
            _warn_of_fallbacks(device)
        if self._parallel:
            return load_parallel(self.folder, **self._how)
        return ready(load_model(self.folder, **self._how))

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, max_batch=self._max_batch, eos_ids=self.tokenizer.eos_ids)

    @cached_property
    def defaults(self) -> SamplingParams:
        """What the folder's generation_config.json asks for."""
        file = self.folder / "generation_config.json"
        try:
            return from_generation_config(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})
        except (ValueError, AttributeError) as error:
            raise error if isinstance(error, ZambaError) else ZambaError(f"{file} is no JSON object ({error})") from error

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, *, progress: bool = False
    ) -> list[Completion]:
        """Continue one prompt or many, each a text or a list of token ids; one completion a prompt, in order.

        ``progress`` shows a bar on standard error. Raises ZambaError for a prompt without tokens, or with an id that is none.
        """
        return self._complete([self._ids(prompt) for prompt in _each(prompts)], params, progress)

    def chat(
        self, messages: Messages | Sequence[Messages], params: SamplingParams | None = None, *, progress: bool = False
    ) -> list[Completion]:
        """Answer one conversation or many, each a list of ``{"role": ..., "content": ...}``; one completion each, in order."""
        one = not messages or isinstance(messages[0], Mapping)
        conversations = [messages] if one else messages
        return self._complete([self._chat_ids(each) for each in conversations], params, progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> "TextStream":
        """The continuation of one prompt, piece by piece as it is written."""
        return TextStream(self, self._start(self._ids(prompt), params or self.defaults))

    def stream_chat(self, messages: Messages, params: SamplingParams | None = None) -> "TextStream":
        """The answer to one conversation, piece by piece as it is written."""
        return TextStream(self, self._start(self._chat_ids(messages), params or self.defaults))

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _chat_ids(self, messages: Messages) -> list[int]:
        ids = self.tokenizer.encode_chat(messages)
        if self.tokenizer.chat_template is None and IM_START not in self.tokenizer.special:
            warnings.warn(f"{self.folder.name} has no chat template, so it was probably not trained to chat", stacklevel=3)
        return ids

    def _complete(self, prompts: list[list[int]], params: SamplingParams | None, progress: bool) -> list[Completion]:
        writers: list[_Writer] = []
        try:
            for ids in prompts:
                writers.append(self._start(ids, params or self.defaults))
            with _bar(len(writers), progress) as show:
                for number, writer in enumerate(writers, 1):
                    while not writer.done:
                        self._step()
                    show(number)
        finally:
            for writer in writers:
                self._drop(writer)
        return [writer.completion for writer in writers]

    def _start(self, ids: list[int], params: SamplingParams) -> "_Writer":
        """Queue a prompt."""
        request_id = self.engine.add(ids, params)
        self._warn_if_long(len(ids), params.max_tokens)
        writer = self._writers[request_id] = _Writer(self.tokenizer, Request(request_id, tuple(ids), params))
        return writer

    def _step(self) -> None:
        """Move everything that runs on by one token, whoever waits for it."""
        for event in self.engine.step():
            writer = self._writers[event.request_id]
            writer.push(event)
            if event.error is not None:
                raise ZambaError(event.error)
            if writer.done and event.finish_reason is None:
                self.engine.cancel(event.request_id)  # a stop string ended it, which the engine cannot see

    def _drop(self, writer: "_Writer") -> None:
        """Nobody waits for this one any longer."""
        if self._writers.pop(writer.request.id, None) and not writer.done:
            self.engine.cancel(writer.request.id)

    def _warn_if_long(self, n: int, max_tokens: int) -> None:
        positions = self.model.config.max_positions
        if n + max_tokens > positions:
            message = f"{n} prompt tokens and up to {max_tokens} new ones exceed the {positions} the model was trained for"
            warnings.warn(f"{message}; it goes on, but may write worse", stacklevel=4)


class TextStream(Iterator[str]):
    """Pieces of text that are never empty. ``completion`` sums up what has been written so far; ``close`` ends it early.

    An exception on the way, Ctrl-C included, closes the stream; what was written stays in ``completion``.
    """

    def __init__(self, llm: LLM, writer: "_Writer"):
        self._llm, self._writer = llm, writer

    def __next__(self) -> str:
        try:
            while not (text := self._writer.take()) and not self._writer.done and not self._closed:
                self._llm._step()
        except BaseException:
            self.close()
            raise
        if not text:
            self.close()
            raise StopIteration
        return text

    @property
    def completion(self) -> Completion:
        return self._writer.completion

    @property
    def _closed(self) -> bool:
        return self._writer.request.id not in self._llm._writers

    def close(self) -> None:
        self._llm._drop(self._writer)

    __del__ = close


class _Writer:
    """Turns the tokens of one request into text, up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, request: Request):
        self.request = request
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids)
        self._stops = StopStrings(request.params.stop)
        self._events: list[Event] = []
        self._text, self._taken = [], 0

    @property
    def done(self) -> bool:
        return self._stops.stopped or bool(self._events and self._events[-1].finish_reason)

    @property
    def completion(self) -> Completion:
        """What there is so far; ``finish_reason`` is None until it is done."""
        summed = completion(self.request, self._events)
        return replace(summed, text="".join(self._text), finish_reason="stop" if self._stops.stopped else summed.finish_reason)

    def push(self, event: Event) -> None:
        self._events.append(event)
        silent = event.token is None or event.finish_reason == "stop"  # an end token is no text
        text = "" if silent else self._detokenizer.push(event.token)
        if event.finish_reason is None:
            self._text.append(self._stops.push(text))
        else:
            self._text.append(self._stops.push(text + self._detokenizer.flush()) + self._stops.flush())

    def take(self) -> str:
        """The text written since the last time."""
        text = "".join(self._text[self._taken :])
        self._taken = len(self._text)
        return text


def _warn_of_fallbacks(device) -> None:
    """One line when a GPU has to do without our kernels."""
    ops, reason = without("triton", device)
    if ops:
        warnings.warn(f"{', '.join(ops)} run as plain torch, which is slow: {reason}", stacklevel=4)


def _each(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt as a list of one."""
    one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral))
    return [prompts] if one else prompts


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; the function that moves it."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda done: bar.update(task, completed=done)
