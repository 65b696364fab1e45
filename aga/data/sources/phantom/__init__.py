"""Chest-radiograph-like image-report pairs in which the truth of every word is known.

Reading order: `facts` (what a study says), `anatomy` (the chest), `lesions` (each finding),
`drawing` (the picture and its boxes), `phrases` and `reports` (the words and their spans),
`generator` (raw files on disk), `reader` (the source). A phantom trains and tests the whole line
without a patient's data; it is no model of disease, and nothing measured on it says anything about
patients.

Contract: `generate` writes a raw folder, `Phantom` reads it like any other source. Equal config and
seed give equal bytes, whatever the number of processes. Sides are the patient's: left is on the
image's right. May import `aga.errors`, `aga.config`, and from `aga.data` the schema, `files`,
`progress` and the helpers of `sources`; nothing that needs torch.
"""

from __future__ import annotations

from aga.data.sources.phantom.generator import PhantomConfig, generate
from aga.data.sources.phantom.reader import Phantom

__all__ = ["Phantom", "PhantomConfig", "generate"]
