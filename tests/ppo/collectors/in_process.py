"""A transport whose workers run in this process. Everything goes through pickle, and arrives read-only, as with Ray."""

import pickle

from rl_lnlstm.ppo.collectors.crew import WorkerLost
from rl_lnlstm.ppo.collectors.worker import Worker


def sent(value):
    """A copy whose arrays are read-only."""
    buffers = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(content, buffers=[bytes(buffer) for buffer in buffers])


class InProcess:
    """See `Transport`.

    Args:
        faults: what happens to a worker in one of its calls of `collect`, by (first environment, number of the call):
            "dies before", "dies after" (the rollout is lost, but the environments have gone on) or "freezes".
    """

    def __init__(self, faults=None):
        self.faults, self.calls, self.alive, self.started, self.closed = dict(faults or {}), {}, [], 0, False
        self.badly_placed = None

    def share(self, value):
        return Shared(value)

    def start(self, share):
        self.started += 1
        worker = Running(Worker(share), share.first)
        self.alive.append(worker)
        return worker

    def submit(self, worker, arguments):
        return Call(worker, [part.value if isinstance(part, Shared) else part for part in arguments])

    def ready(self, futures, seconds):
        return [future for future in futures if self.run(future)]

    def run(self, call):
        """Runs a call if it has not run yet. Returns whether it has a result; a call that froze has none."""
        if call.ended is None:
            fault, number = None, self.calls.get(call.worker.first, 0)
            if call.arguments[0] == "collect":
                self.calls[call.worker.first] = number + 1
                fault = self.faults.pop((call.worker.first, number), None)
            if fault == "freezes":
                call.ended = False
            elif fault == "dies before":
                call.ended = WorkerLost("was lost (a test)")
            else:
                answer = call.worker.worker.call(*sent(call.arguments))
                call.ended = WorkerLost("was lost (a test)") if fault else sent(answer)
        return call.ended is not False

    def result(self, call):
        assert call.worker in self.alive
        if isinstance(call.ended, WorkerLost):
            raise call.ended
        return call.ended

    def misplaced(self, worker):
        bad = worker.first == self.badly_placed
        self.badly_placed = None if bad else self.badly_placed
        return bad

    def stranded(self, worker):
        return False

    def kill(self, worker):
        self.alive.remove(worker)

    def close(self):
        self.alive, self.closed = [], True


class Shared:
    def __init__(self, value):
        self.value = value


class Running:
    def __init__(self, worker, first):
        self.worker, self.first = worker, first


class Call:
    def __init__(self, worker, arguments):
        self.worker, self.arguments, self.ended = worker, arguments, None
