"""Pretraining: from tokenized pairs to the weights of the best epoch.

Contract: `loop.train` is a generator of events that knows neither Ray, MLflow nor where a
checkpoint goes; `run` builds what it needs from configuration, follows its events and keeps its
checkpoints. Nothing random is stateful: every draw is a function of (seed, step, rank), so a run
that was killed ends with the weights of one that was not. `aga.cluster` starts this in many
processes; here is what each of them does.

    settings.py     the settings of the loop
    recipe.py       what a run is made of, and its name
    batches.py      whether there is a batch for every step and worker
    optimizer.py    AdamW, which parameters decay, the learning-rate schedule
    seeds.py        seeds that depend on where a run is
    loop.py         the training loop
    accumulation.py a batch in micro-batches, and yet its own loss and gradient
    step_metrics.py a step's numbers, equal in all processes; a loss that is not finite
    validation.py   retrieval recall and loss on the validation split
    events.py       what the loop tells about itself, and its clock
    history.py      the best epoch, and whether a run is done
    checkpoint.py   atomic, checksummed checkpoints; the newest good one
    saving.py       writes them in a thread
    stopping.py     SIGTERM, and the file that asks a run to end
    waiting.py      a heartbeat while no step is done
    run.py          assemble a run; begin or resume it in this process
    overfit.py      whether a run can learn a few pairs by heart
    export.py       a finished run's best epoch as a bundle, its numbers as files

May import everything below it (`bundle`, `model`, `data`, `objectives`, ...); neither Ray nor
MLflow.
"""
