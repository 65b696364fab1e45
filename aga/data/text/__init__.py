"""One raw report to clean text and sentences, each character traced back to where it stood.

Knows no image, source or tokenizer. Imports: `aga.config`, `aga.errors`, `aga.data.schema`.
"""
