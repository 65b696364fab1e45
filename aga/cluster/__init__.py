"""A training on the machines of a Ray cluster, or on this one with a Ray of its own.

Contract: before any worker starts, every setting, node and folder is checked; the workers do what
`aga.training` does in one process, and keep its checkpoints; the same call again goes on with a run
that was cut off. No weight depends on this package: an edit of it begins no new run.

    config.py       how many workers, what each needs, where they save
    job.py          a run as its workers must know it
    resuming.py     whether a run may, must or must not be there already
    preflight.py    checks of numbers and folders, before anything is started
    node.py         what each node must see and have
    survey.py       asks every node, with Ray
    distributed.py  pretraining from its checks to the exported bundle
    worker.py       what runs in each worker
    elastic.py      workers that become fewer and more
    trainer.py      Ray's trainer, with elastic workers and an end at Ctrl-C
    listening.py    SIGTERM in a worker
    failures.py     which worker's failure is the cause, and how it is told
    pages.py        the pages of groups that a run shows in MLflow
    search.py       many trainings: Ray Tune over gates and losses

Ray is optional: only `elastic`, `trainer` and `listening` import it at their top, and are
themselves imported where workers start. May import everything below it.
"""
