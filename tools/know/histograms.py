"""How many images have which value of a column, as a drawing in the page's own colours."""

from __future__ import annotations

from html import escape

import numpy as np

_BARS = 40
_WIDTH, _HEIGHT = 320, 96  # of the drawing's own units; it is as wide as its place
HISTOGRAM_STYLE = """
.histograms { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: 1rem 1.5rem;
  margin-top: .6rem; }
.histograms svg { display: block; width: 100%; height: auto; border-bottom: 1px solid var(--line); }
.histograms rect { fill: var(--series-0); }
.histograms .ends { display: flex; justify-content: space-between; color: var(--soft);
  font-variant-numeric: tabular-nums; }
"""


def histogram(name: str, about: str, values: np.ndarray) -> str:
    """A figure; values that are not finite are left out, and the last hundredth at each end is in the outermost bars.
    Empty without values."""
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        return ""
    low, high = np.quantile(known, [0.01, 0.99])
    if low == high:
        low, high = known.min(), known.max()
    spread = high - low or 1.0
    counts = np.bincount(np.clip((known - low) / spread * _BARS, 0, _BARS - 1).astype(int), minlength=_BARS)
    step = _WIDTH / _BARS
    bars = "".join(
        f'<rect x="{k * step + 0.5:.1f}" y="{_HEIGHT * (1 - n / counts.max()):.1f}" width="{step - 1:.1f}" '
        f'height="{_HEIGHT * n / counts.max():.1f}"/>'
        for k, n in enumerate(counts.tolist())
        if n
    )
    ends = f"<span>{short(low)}</span><span>median {short(np.median(known))}</span><span>{short(high)}</span>"
    caption = f"<figcaption><strong>{escape(name)}</strong> {escape(about)}</figcaption>"
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(name)}">{bars}</svg>'
    return f'<figure>{drawing}<div class="ends">{ends}</div>{caption}</figure>'


def short(value: float) -> str:
    """Three digits, or all of a whole number from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
