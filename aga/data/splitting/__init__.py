"""Which rows may not be separated, which split each belongs to, and what of one leaks into another.

Imports: `aga.data.pixels` for hashes, `aga.data.sources` for lists of identifiers, and the reading
of studies; nothing of `aga.data.preparing`.
"""
