"""Encoders: pixels and tokens to features, before any projection.

`image.ImageEncoder` wraps timm (ViT and CNN families), `text.TextEncoder` wraps transformers.
Contract: an encoder returns its local features, one vector per patch or token, and one global
vector; nothing is projected or normalised; weights come from local safetensors files, read
strictly. `weights` is the strict reading. The folder may import `aga.tensors`, `aga.errors` and
`aga.config`, and knows nothing of data, objectives or training.
"""
