"""Pretraining: from tokenized pairs to the weights of the best epoch.

Contract: `loop.train` is a generator of events that knows neither Ray, MLflow nor where a
checkpoint goes; `run` builds what it needs from configuration, follows its events and keeps its
checkpoints; `distributed` does that in the workers of a Ray cluster. Nothing random is stateful:
every draw is a function of (seed, step, rank), so a run that was killed ends with the weights of
one that was not.

    optimizer.py    AdamW, which parameters decay, the learning-rate schedule
    checkpoint.py   atomic, checksummed checkpoints; the newest good one
    events.py       what the loop tells about itself, and its clock
    settings.py     the settings of the loop
    loop.py         the training loop
    accumulation.py a batch in micro-batches, and yet its own loss and gradient
    history.py      the best epoch, and whether a run is done
    seeds.py        seeds that depend on where a run is
    validation.py   retrieval recall and loss on the validation split
    run.py          assemble a run; begin or resume it in this process
    export.py       a finished run's best epoch as a bundle, its numbers as files
    preflight.py    what is checked before anything is started
    node.py         what each node of a cluster must see and have
    survey.py       asks every node, with Ray
    failures.py     which worker's failure is the cause, and how it is told
    waiting.py      a heartbeat while no step is done
    job.py          a run as its workers must know it
    distributed.py  the same run under Ray Train

May import everything below it (`bundle`, `model`, `data`, `objectives`, ...) except `evaluation`,
`registry` and `explain`. Only `distributed`, `search` and
`survey` import Ray, inside their functions.
"""
