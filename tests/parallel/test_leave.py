"""Parting from the other ranks: no captured graph is left, since NCCL would wait for those that exchange."""

from tests.engine import tiny as chat
from tests.parallel.threads import together
from tests.parallel.worker import PARAMS, tokens
from zamba_lm.engine.runner import Runner
from zamba_lm.parallel import leave, tensor_parallel


def test_runners_of_a_split_model_forget_their_graphs():
    made = []

    def runner(model, pool):
        made.append(Runner(model, pool, capture=False))
        return made[-1]

    whole = chat.model()
    tokens(whole, PARAMS, runner)
    together(1, lambda ranks: tokens(tensor_parallel(whole, ranks=ranks), PARAMS, runner))
    alone, split = made
    assert alone._graphs and split._graphs
    leave()
    assert alone._graphs and not split._graphs and not split._trays
