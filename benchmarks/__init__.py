"""One script per claim: `python -m benchmarks.<name>` from the project's folder.

Each writes its rows to `results/` and, with `--check`, fails where the claim does not hold.
"""
