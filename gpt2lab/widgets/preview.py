"""What a model will be trained on: the splits of a text, the length of its articles, and its first block."""

from gpt2lab.data.preview import Preview
from gpt2lab.widgets.base import Selection, Widget


class TextPreview(Widget):
    """The splits of a text as a table, its articles as a histogram, and its first block token by token.

    preview  `preview(lab, "sample", 256)`
    """

    module = "preview"

    def __init__(self, preview: Preview) -> None:
        super().__init__(preview, preview_data(preview), title=preview.title)

    def _checked(self, selected: Selection) -> Selection:
        return selected  # there is nothing here to select


def preview_data(preview: Preview, **others) -> dict:
    """The data of the view: the preview's record, and what the app adds."""
    return {**preview.record(), "end_token": preview.end_token, **others}
