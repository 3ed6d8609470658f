"""Triton's interpreter without three things it does again and again for nothing; what kernels compute stays the same."""

from dataclasses import replace
from functools import cache

import triton
import triton.language as tl
from triton.runtime import interpreter


def hurry() -> None:
    """From now on, in this process. Other versions of Triton than the one that was looked into take their time."""
    if triton.__version__.startswith("3.6."):
        _forget_overflows()
        interpreter.InterpretedFunction.__call__ = _call
        interpreter._get_np_dtype = _dtype


def _forget_overflows() -> None:
    """Each sum and product of integers is computed once more in 64 bits, for an assertion that only its debug mode makes."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)


def _call(function, *args, **kwargs):
    """A call inside a kernel. It puts interpreted operations in place of the language's, where that is not done already."""
    if any(tl.core.is_builtin(language.full) for language in _languages(function.fn)):
        interpreter._patch_lang(function.fn)
    try:
        return function.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


@cache
def _languages(function) -> list:
    """Under which names the function sees Triton's language."""
    return [value for value in function.__globals__.values() if value is tl or value is tl.core]


_slow_dtype, _dtypes = interpreter._get_np_dtype, {}


def _dtype(kind):
    """numpy's dtype for one of Triton's, which is looked up in a table that is built for the purpose."""
    if (found := _dtypes.get(kind.name)) is None:
        found = _dtypes[kind.name] = _slow_dtype(kind)
    return found
