"""What a test sees of a page: its elements, its pictures, and what it would ask the network for."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {"meta", "img", "rect", "image"}


class Page(HTMLParser):
    """Elements of a page in order, as (tag, attributes, text inside); every one must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def picture(uri):
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", uri).groups()
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True)))).astype(int)


def assert_stands_alone(text):
    """No script, no handler, no address but pictures inside and parts of the page itself."""
    page = Page(text)
    for tag, attributes, _ in page.found:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:image/", "#"))
    assert "@import" not in text and set(re.findall(r"url\(.", text)) <= {"url(#"}
    for uri in re.findall(r"data:image/\w+;base64,[\w+/=]+", text):
        assert picture(uri).ndim == 3
    return page
