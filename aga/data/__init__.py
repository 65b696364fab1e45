"""Raw folders in, row-aligned image and token shards out.

The order of reading: `schema` (the records and Arrow schemas), `sources` (one file per raw layout),
`reports` and `images` (one row's text and pixels), `splits` and `ledger` (what rows must agree on),
`shards` and `files` (writing), `prepare` (all of these together), `studies` (reading the result).

Contract: everything after `prepare` sees only `schema.MANIFEST` and `schema.IMAGES`, never a
source. Imports: `aga.errors`, `aga.config`, `aga.tensors`, `aga.pairs`; no model, no training, no
Ray, MLflow or DVC.
"""
