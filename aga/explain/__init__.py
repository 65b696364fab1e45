"""Which patches a word chose, and which words a patch chose, at their places in image and report.

The maps are the groups after the gates (docs/method.md, step 10): what the objective aligned, not a
gradient or an attention read afterwards. An objective without groups shows its attention, or the
cosine of tokens and patches, and `Explanation.method` says so.

    maps       `explain`: the maps of some pairs, offsets in the report, boxes in the original image
    pictures   PNG: a heat map, or a sheet of both maps
    page       JSON, and a self-contained HTML page to point at; the page needs jinja2
    files      the three as files, private where the data may not be shown

Images and report texts leave `data/` here: callers ask `StudyDataset.info.may_be_shown` before.
May import `aga.places` and what lies below it.
"""

from aga.explain.maps import METHODS, Explanation, Thresholds, explain
from aga.explain.page import explanation_json, explanation_page, explanation_pages
from aga.explain.pictures import heat_map_png, image_png, sheet_png
from aga.places import Word, image_config

__all__ = [
    "METHODS",
    "Explanation",
    "Thresholds",
    "Word",
    "explain",
    "explanation_json",
    "explanation_page",
    "explanation_pages",
    "heat_map_png",
    "image_config",
    "image_png",
    "sheet_png",
]
