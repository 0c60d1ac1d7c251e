import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "pipelines" / "measure"), str(ROOT / "tools")]  # pictures.py, html_pages.py
