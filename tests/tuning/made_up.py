"""Trials that never ran, for tests of what is made of them."""

import dataclasses

from rl_lnlstm.config import make_config
from rl_lnlstm.tuning.records import Report, Scores, Trial

BASE = make_config(env_id="Mine-v0", num_steps=64)


def trial(number, score=None, state="completed", frames=1000, evaluation=None, reason="", **options):
    reports = [] if score is None else [Report(frames // 2, score / 2), Report(frames, score)]
    return Trial(number, {**dataclasses.asdict(BASE), **options}, state, reason, Scores(reports, evaluation))
