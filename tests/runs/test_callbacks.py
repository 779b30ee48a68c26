"""The public callbacks write the same records as the command line."""

import csv

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lnlstm import (
    PPO,
    CheckpointCallback,
    CSVLogger,
    EvalCallback,
    RunDirectory,
    TensorBoardLogger,
    UserError,
    evaluate,
    load_policy,
)
from rl_lnlstm.commands import main

TINY = {
    **{"num_envs": 2, "num_steps": 16, "num_minibatches": 1, "units": 4, "jit_compile": False, "seed": 0},
    **{"shared_lstm": True, "head_layers": ()},  # fewer weights, so that tracing takes less time
}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trainer():
    return PPO("auto", "CartPole-v1", **TINY)


def test_a_run_directory_from_python_is_one_for_the_commands(tmp_path, capsys):
    ppo, run_dir = trainer(), RunDirectory(tmp_path / "run")
    ppo.learn(100, callback=run_dir)
    count = len(rows(tmp_path / "run" / "metrics.csv"))
    assert count == ppo.iteration
    ppo.learn(60, callback=run_dir)
    assert len(rows(tmp_path / "run" / "metrics.csv")) == ppo.iteration > count, "it goes on"
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert "over 2 episodes" in capsys.readouterr().out
    assert (tmp_path / "run" / "learning_curve.png").is_file()
    for kept, live in zip(load_policy(tmp_path / "run").get_weights(), ppo.policy.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, live)
    with pytest.raises(UserError, match="already holds"):
        trainer().learn(40, callback=RunDirectory(tmp_path / "run"))


def test_an_evaluation_is_only_in_the_iteration_that_evaluated(tmp_path):
    evaluation = EvalCallback("CartPole-v1", interval=3, n_eval_episodes=2, seed=5, best_path=tmp_path / "best")
    loggers = CSVLogger(tmp_path / "metrics.csv"), TensorBoardLogger(tmp_path / "tensorboard")
    ppo = trainer()
    ppo.learn(32 * 7, callback=[evaluation, *loggers])
    cells = [row["eval/mean_reward"] for row in rows(tmp_path / "metrics.csv")]
    evaluated = [number for number, cell in enumerate(cells, 1) if cell]
    assert evaluated == [number for number in range(1, ppo.iteration + 1) if number % 3 == 0]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("eval/mean_reward")
    np.testing.assert_allclose([event.value for event in events], [float(cells[i - 1]) for i in evaluated])
    best = evaluate(load_policy(tmp_path / "best"), "CartPole-v1", 2, seed=5)
    assert best.mean == evaluation.best_mean == max(float(cells[i - 1]) for i in evaluated)


def test_evaluating_does_not_change_training():
    plain, evaluated = trainer(), trainer()
    plain.learn(160)
    evaluated.learn(160, callback=EvalCallback("CartPole-v1", interval=2, n_eval_episodes=2))
    for one, other in zip(plain.policy.get_weights(), evaluated.policy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_checkpoints_are_written_and_the_newest_kept(tmp_path):
    ppo = trainer()
    ppo.learn(32 * 6, callback=CheckpointCallback(tmp_path, interval=1, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{ppo.iteration + i:08d}" for i in (-1, 0)]
    resumed = trainer()
    resumed.load_checkpoint(tmp_path / f"{ppo.iteration:08d}")
    assert resumed.num_timesteps == ppo.num_timesteps


def test_there_is_a_checkpoint_of_the_last_iteration_if_another_callback_stops(tmp_path):
    ppo = trainer()
    ppo.learn(32 * 9, callback=[CheckpointCallback(tmp_path, interval=100), lambda _: ppo.iteration < 2])
    assert [path.name for path in tmp_path.iterdir()] == [f"{ppo.iteration:08d}"]


def test_numbers_of_callbacks_are_checked(tmp_path):
    with pytest.raises(UserError, match="interval must be an integer of at least 1, got 0"):
        EvalCallback("CartPole-v1", interval=0)
    with pytest.raises(UserError, match="keep must be an integer of at least 1, got 0"):
        CheckpointCallback(tmp_path, keep=0)


def test_a_name_with_a_comma_is_read_again(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger({"time/iterations": 1, 'rollout/a, "b"': 1.5})
    logger.close()
    assert CSVLogger(tmp_path / "metrics.csv", iteration=1).rows == [{"time/iterations": 1, 'rollout/a, "b"': 1.5}]


def test_a_later_column_keeps_the_rows_before(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger({"time/iterations": 1, "a": 1.5})
    logger({"time/iterations": 2, "a": 2.5, "b": 7.0})
    logger({"time/iterations": 3, "b": 8.0})
    logger.close()
    assert [(row["a"], row["b"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("1.5", ""),
        ("2.5", "7.0"),
        ("", "8.0"),
    ]
    again = CSVLogger(tmp_path / "metrics.csv", iteration=2)
    assert again.rows == [{"time/iterations": 1, "a": 1.5}, {"time/iterations": 2, "a": 2.5, "b": 7.0}]
    again({"time/iterations": 3, "c": 1.0})
    again.close()
    assert rows(tmp_path / "metrics.csv")[-1] == {"time/iterations": "3", "a": "", "b": "", "c": "1.0"}
