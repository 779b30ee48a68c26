"""Sample Factory 2's PPO with an LSTM, for `peers.py`, in its serial and synchronous mode.

The actor and critic share the two layers of 64 after the LSTM, because there is no option for layers of each. The LSTM
has a layer of 64 in front of it, because there is none for no layer.
"""

from __future__ import annotations

import tempfile
from typing import Any

from peer_run import Clock, Task, main, make_env


def env_of(*_: Any, **__: Any) -> Any:
    return make_env()


def run(task: Task) -> dict[str, Any]:
    import torch
    from sample_factory.algo.runners.runner import AlgoObserver
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import make_runner
    from sample_factory.utils.utils import log

    log.setLevel("ERROR")
    register_env("CartPole", env_of)
    frames = task.num_envs * task.num_steps
    clock = Clock(task)

    class Observer(AlgoObserver):
        def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
            if not runner.stopped and not clock.iterated():
                result.update(clock.result())
                runner._stop_training()

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "env": "CartPole",
            "train_dir": folder,
            "experiment": "run",
            "device": "cpu",
            "seed": task.seed,
            "serial_mode": True,
            "async_rl": False,
            "num_workers": 1,
            "worker_num_splits": 1,
            "num_envs_per_worker": task.num_envs,
            "rollout": task.num_steps,
            "recurrence": task.sequence_length,
            "batch_size": frames // task.num_minibatches,
            "num_batches_per_epoch": task.num_minibatches,
            "num_epochs": task.update_epochs,
            "shuffle_minibatches": True,
            "rnn_type": "lstm",
            "rnn_size": task.units,
            "encoder_mlp_layers": 64,
            "nonlinearity": "tanh",
            "normalize_input": False,
            "normalize_returns": False,
            "learning_rate": 1e-3,
            "save_every_sec": 10**6,
            "save_best_every_sec": 10**6,
            "experiment_summaries_interval": 10**6,
            "log_to_file": False,
            "set_workers_cpu_affinity": False,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()] + ["--decoder_mlp_layers", "64", "64"]
        parser, _ = parse_sf_args(arguments)
        _, runner = make_runner(parse_full_cfg(parser, arguments))
        runner.register_observer(Observer())
        runner.init()
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        runner.run()
    return result


if __name__ == "__main__":
    main(run)
