"""The same images as one `.beton`, which the FFCV library (1.0, arXiv 2306.12517) trains from.

Fields: ``image``, an `RGBImageField` of which every sample is a JPEG, and ``label``, an `IntField` with -1 for none;
all of FFCV's image decoders read them. FFCV's own `DatasetWriter` decodes and encodes every image anew, and waits
forever when one of its workers dies of a full disk. Here upright JPEGs are copied as they are; types and layout are
FFCV's: header, fields, a row of metadata per sample, pages of data, and a table of where each sample's data lies.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...cores import cores
from ...errors import UserError
from ..images.decode import DecodeError
from ..sources import open_source
from .plan import ShardOptions, make_plan, survey, without_duplicates

_PAGE = 8 << 20  # bytes, as FFCV's writer; more where an image needs it
_AHEAD = 256  # images that threads prepare at a time


def write_beton(
    source: str | os.PathLike,
    out: str | os.PathLike,
    options: ShardOptions,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
) -> str:
    """Writes the images of `source` to the file `out`, in the order that shards have; returns a line that says so.

    `workers`: threads that read, check and encode. Raises `UserError`; then there is no file.
    """
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type
    except ImportError as fault:
        raise UserError(f"--format ffcv: needs the FFCV library ({fault}); pip install 'headrace[ffcv]'") from None
    out, source = Path(out).expanduser(), open_source(source)
    if out.exists():
        raise UserError(f"{out}: exists; choose another name, or delete it first")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it first")
    sizes = survey(source, options).sizes
    kept = without_duplicates(source, sizes) if options.drop_duplicates else np.arange(len(source))
    order = make_plan(sizes, kept, bool(source.classes), options).order

    def prepare(index: int):
        try:
            return options.encoding.apply(source.read(index))
        except (OSError, DecodeError) as fault:
            return getattr(fault, "strerror", None) or str(fault)

    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    described = np.zeros(len(fields), FieldDescType)
    for number, (name, kind) in enumerate(zip(fields, (2, 1), strict=True)):  # FFCV's numbers of the two types
        described[number]["type_id"] = kind
        described[number]["name"][: len(name)] = np.frombuffer(name.encode("utf-8", "surrogateescape"), np.uint8)
    rows = np.zeros(len(order), get_metadata_type(list(fields.values())))
    table = np.zeros(len(order), ALLOC_TABLE_TYPE)
    page = max(_PAGE, 1 << int(sizes.max()).bit_length())
    end = -(-(HeaderType.itemsize + described.nbytes + rows.nbytes) // page) * page
    bad, samples = [], 0
    partial = out.with_name(f".{out.name}.part")
    try:
        with open(partial, "wb") as file, ThreadPoolExecutor(workers or cores()) as threads:
            for start in range(0, len(order), _AHEAD):
                ids = order[start : start + _AHEAD].tolist()
                for index, prepared in zip(ids, threads.map(prepare, ids), strict=True):
                    if isinstance(prepared, str):
                        bad.append(f"  {source.key(index)}: {prepared}")
                        continue
                    data, height, width = prepared
                    if len(data) > page:
                        raise UserError(f"{source.key(index)}: its JPEG has more than {page:,} bytes; give --max-side")
                    if end % page + len(data) > page:  # FFCV loads whole pages, so no sample may cross into the next
                        end += -end % page
                    file.seek(end)
                    file.write(data)
                    rows[samples] = ((0, width, height, end), source.label(index))  # 0: the mode "jpg"
                    table[samples] = (samples, end, len(data))
                    samples, end = samples + 1, end + len(data)
            if bad and not (skip_bad and samples):
                shown = "\n".join(bad[:10])
                raise UserError(f"{source.name}: {len(bad):,} files are no readable images:\n{shown}\nsee --skip-bad")
            end += -end % page
            header = np.zeros(1, HeaderType)
            header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, len(fields), page
            header["num_samples"], header["alloc_table_ptr"] = samples, end
            file.seek(0)
            file.write(header.tobytes() + described.tobytes() + rows[:samples].tobytes())
            file.seek(end)
            file.write(table[:samples].tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as fault:
        reason = fault.strerror or fault
        raise UserError(f"{out}: cannot be written ({reason}); free space, or choose another disk") from None
    finally:
        partial.unlink(missing_ok=True)
    left_out = f"; {len(bad):,} bad images left out" if bad else ""
    left_out += f"; {len(source) - len(order):,} duplicates left out" if len(order) < len(source) else ""
    return f"{out}: {samples:,} images, {end / 1e6:,.0f} MB{left_out}"
