"""One image file to 8 bits, fitted to a square: DICOM, what Pillow reads, and perceptual hashes.

Knows no source, report or split. Imports: `aga.errors`, `aga.config`, `aga.data.workers`; pydicom
and codecs only where a file needs them.
"""
