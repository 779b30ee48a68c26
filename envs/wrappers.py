"""Wrappers by name, as on the command line, and the layers that the wrappers of an environment form."""

import ast
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym

from rl_lnlstm.errors import UserError

Wrapper = Callable[[gym.Env], gym.Env]
FORM = "a name of gymnasium.wrappers or module:Name, with literal arguments in parentheses if it needs any"


def wrapper_from_name(text: str) -> Wrapper:
    """The wrapper that `text` names, such as "TimeLimit(100)" or "minigrid.wrappers:ImgObsWrapper".

    Raises:
        UserError: there is no wrapper of that name, or its arguments are not literals.
    """
    qualified, parenthesis, rest = text.partition("(")
    module_name, _, name = qualified.strip().rpartition(":")
    args, kwargs = _arguments(parenthesis + rest, text) if parenthesis else ([], {})
    try:
        module = importlib.import_module(module_name or "gymnasium.wrappers")
        wrapper = getattr(module, name, None)  # which may import another module
    except Exception as error:
        raise UserError(f"wrapper {text!r} cannot be imported, {type(error).__name__}: {error}") from error
    if not callable(wrapper):
        raise UserError(f"wrapper {text!r}: {module.__name__} has no {name!r}; expected {FORM}")
    return functools.partial(_wrap, wrapper, text, args, kwargs)


def _wrap(wrapper: Any, text: str, args: list[Any], kwargs: dict[str, Any], env: gym.Env) -> gym.Env:
    try:
        return wrapper(env, *args, **kwargs)
    except Exception as error:
        raise UserError(f"wrapper {text!r} cannot wrap {env}, {type(error).__name__}: {error}") from error


def _arguments(parentheses: str, text: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        call = ast.parse(f"wrapper{parentheses}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("no call of a name")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("** is no literal")
        args = [ast.literal_eval(argument) for argument in call.args]
        return args, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(f"wrapper {text!r}: {error}; expected {FORM}") from error


def layers(env: Any, wrapper: type = gym.Wrapper) -> Iterator[Any]:
    """The wrappers of an environment, the outermost first, and then the environment itself.

    Args:
        env: the environment, or a vector environment.
        wrapper: the class of wrappers; `VectorWrapper` for those of a vector environment.
    """
    while isinstance(env, wrapper):
        yield env
        env = env.env  # type: ignore[attr-defined]
    yield env
