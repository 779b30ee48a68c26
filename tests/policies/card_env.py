"""A card game with a few playable cards in each step. Playing any other card is recorded as a foul."""

import functools

import gymnasium as gym
import numpy as np

CARDS = 6
NVEC = (3, 1, 4)  # cards of each suit


class CardEnv(gym.Env):
    """Observes which cards are playable and which one is asked for; pays 1 for it, and -1 and the end for a foul.

    Args:
        tells: "info" (PettingZoo's convention), "method" (MaskablePPO's), or "nothing": there are masks, but no word of
            them.
        nvec: a MultiDiscrete action, a card of each suit; None for a Discrete one.
        length: steps of an episode.
        truncates: episodes are truncated rather than terminated.
        faulty: masks to hand out instead from the third step on.
    """

    def __init__(self, tells="info", nvec=None, length=5, truncates=False, faulty=None):
        self.sizes = [CARDS] if nvec is None else list(nvec)
        if nvec is None:
            start = 2
            self.action_space = gym.spaces.Discrete(CARDS, start=start)
        else:
            start = np.arange(len(nvec)) - 1
            self.action_space = gym.spaces.MultiDiscrete(nvec, start=start)
        self.observation_space = gym.spaces.Box(0, 1, (2 * sum(self.sizes),), np.float32)
        self.start, self.length, self.truncates, self.faulty = start, length, truncates, faulty
        self.tells, self.taken, self.fouls, self.steps = tells, 0, 0, 0
        if tells == "method":
            self.action_masks = lambda: self._told()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        self._deal()
        return self._observation(), self._info()

    def step(self, action):
        assert self.action_space.contains(action)
        chosen = np.atleast_1d(action) - self.start
        offsets = np.cumsum(self.sizes) - self.sizes
        foul = not self.mask[offsets + chosen].all()
        right = bool(self.asked[offsets + chosen].all())
        self.fouls += foul
        self.taken += 1
        self.steps += 1
        over = self.taken == self.length
        self._deal()
        if foul or over:
            self.mask[:] = False  # nothing is playable in what comes after the end
        ends = over and self.truncates and not foul
        return self._observation(), float(right) - float(foul), foul or (over and not ends), ends, self._info()

    def _deal(self):
        self.mask, self.asked = np.zeros((2, sum(self.sizes)), bool)
        for offset, size in zip(np.cumsum(self.sizes) - self.sizes, self.sizes, strict=True):
            playable = offset + self.np_random.permutation(size)[: self.np_random.integers(1, max(2, size // 2 + 1))]
            self.mask[playable] = True
            self.asked[playable[0]] = True

    def _told(self):
        faulty = self.faulty is not None and self.steps >= 3
        return self.faulty if faulty else self.mask.copy()

    def _info(self):
        info = {"fouls": self.fouls}
        return {**info, "action_mask": self._told().astype(np.int8)} if self.tells == "info" else info

    def _observation(self):
        return np.concatenate([self.mask, self.asked]).astype(np.float32)


class Over(CardEnv):
    """A game that does not know what is legal once it is over."""

    def __init__(self):
        super().__init__(tells="method")
        self.action_masks = self._legal

    def _legal(self):
        if not self.mask.any():
            raise RuntimeError("the game is over")
        return self.mask


def cards(**arguments):
    """A function that makes the game."""
    return functools.partial(CardEnv, **arguments)
