"""One script per claim; each writes its rows to `results/` and, with `--check`, fails where the claim
does not hold. Run from the project's folder: `python -m benchmarks.<name>`.
"""
