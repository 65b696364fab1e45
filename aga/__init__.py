"""AGA: image-report representation learning by adaptive grouped alignment (arXiv 2507.23402).

The library reads top to bottom in this order: `data` turns raw folders into row-aligned image and
token shards, `encoders` and `model` embed a batch of pairs, `objectives` score the embeddings,
`training` fits them, `bundle` ships the result, `evaluation` measures it. `params` composes every
configuration. Importing `aga` imports nothing else: Ray, MLflow and DVC stay optional.
"""

import os

# Hospitals' machines have no internet and want no telemetry. And on a machine that others use too,
# threads that wait for each other by spinning take the cores from the threads they wait for.
# Set before any dependency is imported; a value that the user set stays.
for _switch, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_switch, _value)

__version__ = "0.1.0"
