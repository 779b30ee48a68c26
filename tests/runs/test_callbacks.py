"""The public callbacks write the same records as the command line."""

import csv
import math
import shutil

import gymnasium as gym
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lnlstm import (
    PPO,
    Callback,
    CheckpointCallback,
    CSVLogger,
    EvalCallback,
    ProgressBar,
    RunDirectory,
    TensorBoardLogger,
    UserError,
    evaluate,
    load_policy,
)
from rl_lnlstm.commands import main
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.policies import MlpLnLstmPolicy

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
    for callback in (RunDirectory(tmp_path / "run"), run_dir):  # of a second run
        with pytest.raises(UserError, match="already holds"):
            trainer().learn(40, callback=callback)
    assert len(rows(tmp_path / "run" / "metrics.csv")) == ppo.iteration


@pytest.mark.parametrize("has_best", [True, False])
def test_the_policy_of_an_earlier_end_is_withdrawn_when_training_goes_on(tmp_path, has_best):
    ppo, run_dir = trainer(), RunDirectory(tmp_path / "run")
    ppo.learn(64, callback=run_dir)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "best", ignore_errors=True)
    if has_best:
        ppo.policy.save(tmp_path / "run" / "checkpoints" / "best")
    (tmp_path / "run" / "results.json").write_text("{}")
    names = []

    def no_better(metrics):
        metrics["rollout/ep_rew_mean"] = math.nan

    def look(_):
        names.append({path.name for path in (tmp_path / "run").iterdir()})
        load_policy(tmp_path / "run")

    ppo.learn(64, callback=[no_better, run_dir, look])
    assert all(not found & {"policy", "results.json"} for found in names)
    assert {path.name for path in (tmp_path / "run").iterdir()} == names[0] | {"policy"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("episode,return,cut\n0,1.0,False\n", "expected a column 'time/iterations', got"),
        ('{"a": 1}', "expected a column 'time/iterations', got"),
        ("x" * 200_000 + "\n1\n", "expected a column 'time/iterations', got"),
        ("time/iterations,a\n1,2\n2,many\n3,4\n", "line 3 of .* cannot be read"),
        ("time/iterations,a\n1,2\n2,many\n", "line 3 of .* cannot be read"),
    ],
    ids=["another table", "no line", "a long line", "text inside", "text at the end"],
)
def test_a_file_that_holds_something_else_is_left_alone(content, message, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        CSVLogger(path)
    assert path.read_text() == content


@pytest.mark.parametrize("callback", [ProgressBar, [CSVLogger, CheckpointCallback]], ids=["one", "several"])
def test_a_class_in_place_of_a_callback_is_named(callback):
    with pytest.raises(UserError, match=r"is a class: pass an object, \w+\(...\)"):
        trainer().learn(32, callback=callback)


class Shaped(MlpLnLstmPolicy):
    def __init__(self, *arguments, shape=None, **options):
        super().__init__(*arguments, **options)


def test_a_policy_that_cannot_be_saved_is_named_before_training(tmp_path):
    env = gym.make("CartPole-v1")
    ppo = PPO(Shaped(env.observation_space, env.action_space, shape=max, units=4), env, num_steps=16, jit_compile=False)
    for callback in (RunDirectory(tmp_path / "run"), EvalCallback("CartPole-v1", best_path=tmp_path / "best")):
        with pytest.raises(UserError, match="Shaped cannot be saved with shape="):
            ppo.learn(16, callback=callback)
    assert ppo.iteration == 0
    assert not list(tmp_path.iterdir())


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


def test_checkpoints_of_another_run_are_not_mixed_with_new_ones(tmp_path):
    ppo = trainer()
    ppo.learn(32 * 4, callback=CheckpointCallback(tmp_path / "all", interval=1, keep=2))
    before = sorted((tmp_path / "all").rglob("*"))
    with pytest.raises(UserError, match=rf"checkpoints up to iteration {ppo.iteration}, but this trainer is at 0"):
        trainer().learn(32, callback=CheckpointCallback(tmp_path / "all"))
    assert sorted((tmp_path / "all").rglob("*")) == before
    ppo.learn(32, callback=CheckpointCallback(tmp_path / "all", interval=1, keep=2))
    assert (tmp_path / "all" / f"{ppo.iteration:08d}").is_dir()


def test_a_checkpoint_replaces_only_a_checkpoint(tmp_path):
    ppo = trainer()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="notes holds something else than a checkpoint"):
        ppo.save_checkpoint(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        ppo.save_checkpoint(tmp_path / "empty")
    ppo.load_checkpoint(tmp_path / "empty")


def test_all_callbacks_end_if_one_of_them_raises(tmp_path):
    class Careless(Callback):
        def on_training_end(self):
            raise ZeroDivisionError("a bug of mine")

    ppo = trainer()
    with pytest.raises(ZeroDivisionError):
        ppo.learn(32, callback=[Careless(), CheckpointCallback(tmp_path / "all"), Careless()])
    assert (tmp_path / "all" / f"{ppo.iteration:08d}").is_dir()


def test_false_of_numpy_stops_too():
    ppo = trainer()
    ppo.learn(32 * 9, callback=lambda metrics: np.float64(ppo.iteration) < 2)
    assert ppo.iteration == 2


def test_a_run_directory_of_a_later_call_of_learn(tmp_path, recwarn):
    ppo, run_dir = trainer(), RunDirectory(tmp_path / "run")
    ppo.learn(64)
    before = ppo.iteration
    ppo.learn(64, callback=run_dir)
    ppo.learn(64, callback=run_dir)
    assert len(rows(tmp_path / "run" / "metrics.csv")) == ppo.iteration - before
    assert not [str(warning.message) for warning in recwarn if "rows" in str(warning.message)]


def test_a_best_policy_that_cannot_be_saved_does_not_end_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    evaluation = EvalCallback("CartPole-v1", interval=1, n_eval_episodes=1, best_path=tmp_path / "file" / "best")
    with pytest.warns(RunWarning, match="cannot be written"):
        trainer().learn(32, callback=evaluation)
    assert evaluation.best_mean == -np.inf, "it is tried again"


def test_there_is_a_checkpoint_of_the_last_iteration_if_another_callback_stops(tmp_path):
    ppo = trainer()
    ppo.learn(32 * 9, callback=[CheckpointCallback(tmp_path, interval=100), lambda _: ppo.iteration < 2])
    assert [path.name for path in tmp_path.iterdir()] == [f"{ppo.iteration:08d}"]


def test_numbers_of_callbacks_are_checked(tmp_path):
    with pytest.raises(UserError, match="interval must be an integer of at least 1, got 0"):
        EvalCallback("CartPole-v1", interval=0)
    with pytest.raises(UserError, match="keep must be an integer of at least 1, got 0"):
        CheckpointCallback(tmp_path, keep=0)
    with pytest.raises(UserError, match="interval must be an integer of at least 1 or None, got 0"):
        CheckpointCallback(tmp_path, interval=0)


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
