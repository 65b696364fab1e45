"""The tokenizer made or opened, every report tokenized once, and the result read back.

Contract: row `i` of the tokens belongs to row `i` of the studies. Imports: `aga.data.text` and the
reading of studies; the libraries of tokenizers only where one is made or opened.
"""
