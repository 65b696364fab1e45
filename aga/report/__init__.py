"""The page for the eye: `reports/report.html`, one self-contained file.

It is made of what the stages wrote (JSON in `metrics/`, CSV in `plots/`) and, where images may be
shown, of the encoder run on a few test pairs. It loads nothing: styles are inline, pictures are
data URIs, and a content security policy forbids the rest.

    page       inputs, sections, the rendered file; needs jinja2
    examples   retrievals and group heat maps of test pairs
    figures    training curves; needs matplotlib

This module holds the configuration only, so that reading `params.yaml` needs neither library. May
import everything below `aga.params`.
"""

from __future__ import annotations

from pydantic import Field

from aga.config import Config


class ReportPageConfig(Config):
    """Settings of the page.

    Attributes:
        pairs: Test pairs shown with their retrievals and heat maps.
        show_images: Whether images and report texts are on the page, if the source declares that
            they may be shown. Otherwise the page holds numbers only.
    """

    pairs: int = Field(ge=0)
    show_images: bool
