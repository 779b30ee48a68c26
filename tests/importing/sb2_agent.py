"""Agents in the format of Stable-Baselines 2, and what they compute. Shares no code with the package.

The file is a zip, not compressed, of three entries:

- `parameters`: `numpy.savez` of all arrays by their TensorFlow names,
- `parameter_list`: JSON, these names in the order in which the network was built,
- `data`: JSON. What JSON cannot hold is an object with `":type:"`, `":serialized:"` (a pickle in base64) and its
  attributes, those that JSON cannot hold as text.

The network of `LstmPolicy` with `layer_norm=True`, after the features of the observation (one-hot for categories,
images divided by 255):

    x     = act(... act(features @ pi_fc0/w + pi_fc0/b) ...)     or relu convolutions c1, c2, c3 and relu fc1
    c, h  = c * (1 - done), h * (1 - done)                       done: an episode ended before this step
    gates = LN(x @ wx) * gx + bx + LN(h @ wh) * gh + bh + b
    i, f, o, u = split(gates, 4)
    c     = sigmoid(f) * c + sigmoid(i) * tanh(u)
    h     = sigmoid(o) * tanh(LN(c) * gc + bc)
    logits = h @ pi/w + pi/b,   value = h @ vf/w + vf/b,   state = [c, h]
"""

import base64
import io
import json
import pickle
import sys
import types
import zipfile
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

CONVOLUTIONS = {"c1": (8, 4, 32), "c2": (4, 2, 64), "c3": (3, 1, 64)}  # kernel size, stride, filters
ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


class Sb2Agent(NamedTuple):
    parameters: dict[str, np.ndarray]
    observation_space: gym.Space
    action_space: gym.Space
    before: list[str]  # the dense layers before the LSTM
    actor: list[str]  # those after it
    critic: list[str]
    activation: str


class Computed(NamedTuple):
    logits: np.ndarray  # [time, batch, outputs]
    values: np.ndarray  # [time, batch]
    states: np.ndarray  # [time, batch, 2 * units], c and h


def width(space):
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape))


def random_agent(
    observation_space, action_space, units=16, layers=(64, 64), net_arch=None, activation="tanh", image=False, seed=0
):
    """Random weights, biases and gains. `net_arch` is, for example, `[8, "lstm", 9, {"pi": [5], "vf": [6]}]`."""
    rng = np.random.default_rng(seed)
    found = {}

    def dense(name, inputs, outputs):
        found[f"model/{name}/w:0"] = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        found[f"model/{name}/b:0"] = rng.normal(size=outputs) * 0.3
        return outputs

    def lstm(inputs):
        shapes = {"wx": (inputs, 4 * units), "wh": (units, 4 * units), "b": (4 * units,)}
        shapes |= {"gx": (4 * units,), "bx": (4 * units,), "gh": (4 * units,), "bh": (4 * units,)}
        for name, shape in {**shapes, "gc": (units,), "bc": (units,)}.items():
            value = rng.normal(size=shape) / np.sqrt(shape[0]) if len(shape) == 2 else rng.normal(size=shape) * 0.3
            found[f"model/lstm1/{name}:0"] = value + 1 if name.startswith("g") else value
        return units

    last, names = width(observation_space), {"before": [], "actor": [], "critic": []}
    if image:
        channels, size = observation_space.shape[-1], np.array(observation_space.shape[:2])
        for name, (kernel, stride, filters) in CONVOLUTIONS.items():
            shape = (kernel, kernel, channels, filters)
            found[f"model/{name}/w:0"] = rng.normal(size=shape) / np.sqrt(np.prod(shape[:3]))
            found[f"model/{name}/b:0"] = rng.normal(size=(1, filters, 1, 1)) * 0.3
            channels, size = filters, (size - kernel) // stride + 1
        last = dense("fc1", int(size.prod()) * channels, 512)
        lstm(last)
    elif net_arch is None:
        for i, wide in enumerate(layers):
            names["before"].append(f"pi_fc{i}")
            last = dense(f"pi_fc{i}", last, wide)
        lstm(last)
    pi = vf = units
    for i, entry in enumerate(net_arch or ()):
        if entry == "lstm":
            last = lstm(last)
        elif isinstance(entry, int):
            name, after = f"shared_fc{i}", "model/lstm1/wx:0" in found
            last = dense(name, last, entry)
            for branch in ("actor", "critic") if after else ("before",):
                names[branch].append(name)
    if net_arch is not None:
        pi = vf = last
        branches = net_arch[-1] if isinstance(net_arch[-1], dict) else {}
        for i, wide in enumerate(branches.get("pi", ())):
            names["actor"].append(f"pi_fc{i}")
            pi = dense(f"pi_fc{i}", pi, wide)
        for i, wide in enumerate(branches.get("vf", ())):
            names["critic"].append(f"vf_fc{i}")
            vf = dense(f"vf_fc{i}", vf, wide)
    dense("vf", vf, 1)
    outputs = dense("pi", pi, width(action_space))
    if isinstance(action_space, gym.spaces.Box):
        found["model/pi/logstd:0"] = rng.normal(size=(1, outputs)) * 0.3
    dense("q", vf, outputs)
    floats = {name: value.astype(np.float32) for name, value in found.items()}
    return Sb2Agent(floats, observation_space, action_space, *names.values(), activation)


def computed(agent, observations, dones, moments=None):
    """What the agent computes in float64, from a state of zeros.

    Args:
        agent: the agent.
        observations: [time, batch, *shape].
        dones: [time, batch], 1 where an episode ended before this step.
        moments: mean and variance of a `VecNormalize` with its defaults.
    """
    weights = {name[6:-2]: value.astype(np.float64) for name, value in agent.parameters.items()}
    time, batch = dones.shape
    flat = observations.reshape(time * batch, *observations.shape[2:])
    x = features(agent.observation_space, flat)
    if moments is not None:
        mean, variance = moments
        x = np.clip((x - mean.ravel()) / np.sqrt(variance.ravel() + 1e-8), -10, 10)
    if "c1/w" in weights:
        x = flat.astype(np.float64) / (255 if flat.dtype == np.uint8 else 1)
        for name, (_, stride, _) in CONVOLUTIONS.items():
            x = np.maximum(convolved(x, weights[f"{name}/w"], stride) + weights[f"{name}/b"].ravel(), 0)
        x = np.maximum(x.reshape(len(x), -1) @ weights["fc1/w"] + weights["fc1/b"], 0)
    x = branch(agent, weights, agent.before, x).reshape(time, batch, -1)
    w = {name: weights[f"lstm1/{name}"] for name in ("wx", "wh", "b", "gx", "bx", "gh", "bh", "gc", "bc")}
    c, h = np.zeros((2, batch, len(w["gc"])))
    outputs, states = [], []
    for t in range(time):
        keep = 1 - dones[t][:, np.newaxis]
        c, h = c * keep, h * keep
        gates = normed(x[t] @ w["wx"]) * w["gx"] + w["bx"] + normed(h @ w["wh"]) * w["gh"] + w["bh"] + w["b"]
        i, f, o, u = np.split(gates, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
        h = sigmoid(o) * np.tanh(normed(c) * w["gc"] + w["bc"])
        outputs.append(h)
        states.append(np.concatenate([c, h], -1))
    hs = np.stack(outputs)
    logits = branch(agent, weights, agent.actor, hs) @ weights["pi/w"] + weights["pi/b"]
    values = branch(agent, weights, agent.critic, hs) @ weights["vf/w"] + weights["vf/b"]
    return Computed(logits, values[..., 0], np.stack(states))


def features(space, values):
    if isinstance(space, gym.spaces.Discrete):
        return np.eye(space.n)[values]
    if isinstance(space, gym.spaces.MultiDiscrete):
        return np.concatenate([np.eye(n)[values[:, i]] for i, n in enumerate(space.nvec)], -1)
    return values.reshape(len(values), -1).astype(np.float64)


def branch(agent, weights, names, x):
    for name in names:
        x = ACTIVATIONS[agent.activation](x @ weights[f"{name}/w"] + weights[f"{name}/b"])
    return x


def convolved(images, kernel, stride):
    windows = np.lib.stride_tricks.sliding_window_view(images, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijcf->nhwf", windows, kernel, optimize=True)


def normed(v):
    return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


# -------------------------------------------------------------------------------------------------------- the files


class Opened:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def described(space, opened):
    """A space as it stands in `data`: with a pickle, which here leaves a file if it is opened."""
    kind = type(space).__name__
    shown = {"shape": list(space.shape), "dtype": str(space.dtype)}
    if kind == "Box":
        shown |= {"low": str(space.low), "high": str(space.high), "bounded_below": str(np.isfinite(space.low))}
    elif kind == "MultiDiscrete":
        shown = {"nvec": str(space.nvec), "shape": None, "dtype": "int64"}
    else:
        shown |= {"n": int(np.prod(space.n))}
    pickled = base64.b64encode(pickle.dumps(Opened(opened))).decode()
    head = {":type:": f"<class 'gym.spaces.{kind.lower()}.{kind}'>", ":serialized:": pickled}
    return {**head, **shown, "np_random": "RandomState(MT19937)"}


def data_of(agent, opened):
    function = f"<function {agent.activation} at 0x7f1c5c3a9d08>"
    pickled = {":serialized:": base64.b64encode(pickle.dumps(Opened(opened))).decode()}
    return {
        "gamma": 0.99,
        "n_steps": 128,
        "policy": {":type:": "<class 'abc.ABCMeta'>", **pickled, "__module__": "stable_baselines.common.policies"},
        "learning_rate": {":type:": "<class 'function'>", **pickled},
        "observation_space": described(agent.observation_space, opened),
        "action_space": described(agent.action_space, opened),
        "policy_kwargs": {}
        if agent.activation == "tanh"
        else {":type:": "<class 'dict'>", **pickled, "act_fun": function},
        "n_envs": 4,
    }


def packed(parameters):
    buffer = io.BytesIO()
    np.savez(buffer, **parameters)
    return buffer.getvalue()


def write_zip(path, agent, data=None, names=None, parameters=None, compression=zipfile.ZIP_STORED):
    """Writes an agent. What is given takes the place of its own `data`, `parameter_list` and bytes of `parameters`."""
    opened = path.with_name("opened")
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("data", json.dumps(data_of(agent, opened) if data is None else data, indent=4))
        archive.writestr("parameters", packed(agent.parameters) if parameters is None else parameters)
        archive.writestr("parameter_list", json.dumps(list(agent.parameters) if names is None else names))
    return path


def pickled_instances(build, *classes: str, protocol: int = 4) -> bytes:
    """Pickles what `build` makes of classes with these full names, which exist only while it runs."""
    made: dict[str, Any] = {}
    modules = {}
    for full in classes:
        module, name = full.rsplit(".", 1)
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            inner = ".".join(parts[:end])
            if inner not in sys.modules:
                modules[inner] = sys.modules[inner] = types.ModuleType(inner)
        made[name] = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    try:
        return pickle.dumps(build(types.SimpleNamespace(**made)), protocol)
    finally:
        for name in modules:
            del sys.modules[name]


def with_state(kind, **state):
    instance = kind()
    instance.__dict__.update(state)
    return instance


RMS = "stable_baselines.common.running_mean_std.RunningMeanStd"
VEC = "stable_baselines.common.vec_env.vec_normalize.VecNormalize"


def vecnormalize(mean, variance, count=1234.5, protocol=4, **changes):
    """The bytes that `VecNormalize.save` writes."""

    def build(kinds):
        def moments(mean, variance):
            return with_state(kinds.RunningMeanStd, mean=mean, var=variance, count=count)

        box = with_state(
            kinds.Box,
            low=np.full(mean.shape, -np.inf, np.float32),
            high=np.full(mean.shape, np.inf, np.float32),
            shape=mean.shape,
            dtype=np.dtype("float32"),
            np_random=np.random.RandomState(0),
        )
        state = {
            "num_envs": 4,
            "observation_space": box,
            "action_space": with_state(kinds.Discrete, n=2, shape=(), dtype=np.dtype("int64"), np_random=None),
            "obs_rms": moments(mean, variance),
            "ret_rms": moments(np.float64(0.5), np.float64(2.0)),
            "clip_obs": 10.0,
            "clip_reward": 10.0,
            "gamma": 0.99,
            "epsilon": 1e-8,
            "training": True,
            "norm_obs": True,
            "norm_reward": True,
            "old_obs": np.zeros((4, *mean.shape), np.float32),
            "old_rews": np.zeros(4),
        }
        return with_state(kinds.VecNormalize, **{**state, **changes})

    return pickled_instances(build, RMS, VEC, "gym.spaces.box.Box", "gym.spaces.discrete.Discrete", protocol=protocol)
