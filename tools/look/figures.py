"""How figures are written, whatever stands in them and wherever they go."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is opened
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from ...errors import UserError
from ...places import write_file

_TICK = "$\\mathdefault{"  # how matplotlib's own labels begin


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Writes a PNG, its folder too, and closes the figure. Raises `UserError` where it cannot be written."""
    plain_text(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=dpi, format=path.suffix.removeprefix(".") or None)
        write_file(path, buffer.getvalue())
    except OSError as fault:
        raise UserError(f"{path}: cannot be written ({fault.strerror or fault}); give another file") from None
    finally:
        plt.close(figure)


def plain_text(figure: Figure) -> None:
    """Names of files are not formulas, though they hold dollars, and need not be text at all."""
    for text in figure.findobj(Text):
        if not text.get_text().startswith(_TICK):
            text.set_parse_math(False)
            text.set_text(text.get_text().encode("utf-8", "replace").decode())
