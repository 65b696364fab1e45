"""A raw folder to prepared studies, streamed in parts over processes: every row used or rejected.

`prepare` is the whole; `examine` is one row, `chunks` many, `parts` what is kept of them on disk,
`ledger` and `tally` what is remembered across parts, `assemble` the shards. Imports anything of
`aga.data` but the loader and its transforms.
"""
