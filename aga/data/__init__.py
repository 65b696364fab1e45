"""Raw folders in, row-aligned image and token shards out.

The order of reading: `schema` (the records and Arrow schemas), `sources` (one file per raw layout),
`text` and `pixels` (one row's report and image), `splitting` (who may not be separated, and leaks),
`preparing` (all of these together), `studies` (reading the result), `tokenizing`, `loader` (batches
for training). `shards`, `files`, `workers`, `cluster` and `progress` serve them all.

Contract: everything after `prepare` sees only `schema.MANIFEST` and `schema.IMAGES`, never a
source. Imports: `aga.errors`, `aga.config`, `aga.tensors`, `aga.pairs`; no model, no training, no
Ray, MLflow or DVC.
"""
