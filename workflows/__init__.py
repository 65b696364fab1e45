"""The stages of the line, a thin script each: load params, call the library, write metrics.

`dvc.yaml` runs them in order; Ray Jobs can start them too. They say which, never values: values are
in `params.yaml`. Importing a workflow runs nothing.
"""
