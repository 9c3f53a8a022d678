"""Who goes when the next decode step does not fit in memory: see `admission` for SGLang's rules."""

from __future__ import annotations

import numpy as np

from simulator.engine.admission import Waiting
from simulator.engine.state import Replica


def make_room(engine: Replica) -> None:
    """Retract until the next decode step fits; the last request always fits, or the router had refused it."""
    batch, memory = engine.batch, engine.memory
    if memory.used(batch.size) <= memory.capacity:
        memory.decode_step()
        return
    while memory.used(batch.size) > memory.capacity and batch.size > 1:
        retract(engine)
    wanted = engine.recorder.output_length[batch.request[: batch.size]]
    generated = int((wanted - batch.remaining[: batch.size]).sum())
    memory.retracted(batch.size, generated, generated + int(memory.may_ask(batch).sum()))
    engine.reopen()


def retract(engine: Replica) -> None:
    """The request with the fewest generated tokens, of those the longest prompt, waits again with all it has."""
    batch, recorder = engine.batch, engine.recorder
    requests, remaining = batch.request[: batch.size], batch.remaining[: batch.size]
    generated = recorder.output_length[requests] - remaining
    prompt = recorder.input_length[requests]
    index = int(np.lexsort((-prompt, generated))[0])
    request, context, left = int(requests[index]), int(prompt[index] + generated[index]), int(remaining[index])
    engine.memory.drop(request, context)
    if left:
        recorder.left(request, engine.decode_steps - int(batch.joined[index]))
        recorder.retracted(request)
        engine.gaps.retracted(request, int(batch.slot[index]))
        waiting = Waiting(request, context, int(generated[index]), left)
        if engine.model.settings.prefill_elsewhere_s is None:
            engine.queue.append(waiting)
        else:
            engine.queue.appendleft(waiting)  # its KV waits on the host, and nobody new enters before it
    else:
        engine.leaving.forget(int(batch.slot[index]))
    batch.remove(index)
