"""What one DICOM file says of its images: identity, geometry and rescale of each frame, classic or multi-frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from ctslices.one_form import identity_of
from ctslices.series import StoredPixels
from ctslices.sources import dicom_tags as tags
from ctslices.sources.dicom_file import Parsed
from ctslices.sources.dicom_values import (
    decimal,
    decimals,
    floating,
    integer,
    integer_string,
    malformed,
    national_text,
    text,
    texts,
)

Elements = Mapping[int, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame's own values; None where the file does not say, or says it in a form that cannot be trusted."""

    index: int
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    image_type: tuple[str, ...]
    malformed: bool
    """An element that may be absent, but decides where it is there, cannot be read."""
    stack: tuple[str, ...]
    """What tells stacks at the same places apart: acquisition number, temporal position, stack identifier."""


@dataclass(frozen=True, slots=True)
class Header:
    """One file's values. Identifiers (all strings but the kernel's) stay inside the reader."""

    path: str
    sop_instance: str
    series: str
    study: str
    frame_of_reference: str
    patient: str
    modality: str
    sop_class: str
    manufacturer: str
    kernel: str
    kvp: float | None
    thickness_mm: float | None
    acquisition_number: str
    acquisition_time: str
    irradiation_event: str
    instance_number: int
    burned_in: bool
    synthetic: bool
    frames: tuple[Frame, ...]
    stored: StoredPixels | None = None


def header_of(path: str, parsed: Parsed) -> Header:
    """The header of one file, `stored` left open.

    :raises: any of `dicom_file.PARSE_ERRORS` where nested sequences are damaged.
    """
    elements = parsed.elements
    shared = _first_item(parsed.dataset, tags.SHARED_GROUPS)
    per_frame = _items(parsed.dataset, tags.PER_FRAME_GROUPS)
    layers: list[Elements] = [_flat(shared)] if per_frame else [elements]
    announced = tags.NUMBER_OF_FRAMES in elements
    count = integer_string(elements, tags.NUMBER_OF_FRAMES) if announced else 1
    if per_frame:
        frames = tuple(_frame(index, [_flat(item), *layers], elements) for index, item in enumerate(per_frame))
        # A header that announces another number of frames than it describes has no geometry for the others.
        frames = frames if len(frames) == count else ()
    else:
        frames = (_frame(0, layers, elements),) if count == 1 else ()
    first = [_flat(per_frame[0]), *layers, elements] if per_frame else layers
    return Header(
        path=path,
        sop_instance=text(elements, tags.SOP_INSTANCE),
        series=text(elements, tags.SERIES),
        study=text(elements, tags.STUDY),
        frame_of_reference=text(elements, tags.FRAME_OF_REFERENCE),
        patient=identity_of(national_text(elements, tags.PATIENT_ID)),
        modality=text(elements, tags.MODALITY),
        sop_class=text(elements, tags.SOP_CLASS),
        manufacturer=text(elements, tags.MANUFACTURER),
        kernel=text(_having(first, tags.KERNEL), tags.KERNEL),
        kvp=_number(_having(first, tags.KVP), tags.KVP),
        thickness_mm=_number(_having(first, tags.SLICE_THICKNESS), tags.SLICE_THICKNESS),
        acquisition_number=text(elements, tags.ACQUISITION_NUMBER),
        acquisition_time=text(elements, tags.ACQUISITION_TIME),
        irradiation_event=text(elements, tags.IRRADIATION_EVENT),
        instance_number=integer_string(elements, tags.INSTANCE_NUMBER) or 0,
        burned_in=text(elements, tags.BURNED_IN).upper() == "YES",
        synthetic=text(elements, tags.SYNTHETIC_DATA).upper() == "YES",
        frames=frames,
    )


_DECISIVE = (
    tags.IMAGE_TYPE,
    tags.FRAME_TYPE,
    tags.BURNED_IN,
    tags.SYNTHETIC_DATA,
    tags.NUMBER_OF_FRAMES,
    tags.HIGH_BIT,
    tags.PIXEL_PADDING,
    tags.PIXEL_PADDING_LIMIT,
    tags.RESCALE_TYPE,
)


def _frame(index: int, layers: list[Elements], top: Elements) -> Frame:
    """A frame's values: in multi-frame files its own functional groups before the shared ones (PS3.3 C.7.6.16)."""

    def numbers(tag: int, count: int) -> tuple[float, ...] | None:
        return decimals(_having(layers, tag), tag, count)

    return Frame(
        index=index,
        position_mm=numbers(tags.POSITION, 3),
        orientation=numbers(tags.ORIENTATION, 6),
        spacing_mm=numbers(tags.PIXEL_SPACING, 2),
        slope=decimal(_having(layers, tags.RESCALE_SLOPE), tags.RESCALE_SLOPE),
        intercept=decimal(_having(layers, tags.RESCALE_INTERCEPT), tags.RESCALE_INTERCEPT),
        rescale_type=text(_having(layers, tags.RESCALE_TYPE), tags.RESCALE_TYPE),
        image_type=(*texts(top, tags.IMAGE_TYPE), *texts(_having(layers, tags.FRAME_TYPE), tags.FRAME_TYPE)),
        malformed=any(malformed(layer, tag) for layer in (*layers, top) for tag in _DECISIVE),
        stack=(
            text(top, tags.ACQUISITION_NUMBER),
            text(top, tags.TEMPORAL_POSITION),
            text(layers[0], tags.FRAME_STACK_ID),
            str(integer(layers[0], tags.FRAME_TEMPORAL_INDEX) or ""),
            str(integer(layers[0], tags.FRAME_ACQUISITION_NUMBER) or ""),
        ),
    )


def _number(elements: Elements, tag: int) -> float | None:
    """A number that is a decimal string in classic files and binary in functional groups."""
    number = decimal(elements, tag)
    return floating(elements, tag) if number is None else number


def _having(layers: Iterable[Elements], tag: int) -> Elements:
    return next((layer for layer in layers if tag in layer), {})


def _items(dataset: Dataset, tag: int) -> list[Dataset]:
    if tag not in dataset:
        return []
    value = dataset[tag].value
    return list(value) if value else []


def _first_item(dataset: Dataset, tag: int) -> Dataset | None:
    items = _items(dataset, tag)
    return items[0] if items else None


_GROUPS = (
    tags.POSITION_SEQUENCE,
    tags.ORIENTATION_SEQUENCE,
    tags.PIXEL_MEASURES_SEQUENCE,
    tags.TRANSFORMATION_SEQUENCE,
    tags.RECONSTRUCTION_SEQUENCE,
    tags.XRAY_DETAILS_SEQUENCE,
    tags.FRAME_TYPE_SEQUENCE,
    tags.FRAME_CONTENT_SEQUENCE,
)


def _flat(groups: Dataset | None) -> dict[int, Any]:
    """The elements of the functional groups that matter, without the nesting."""
    elements: dict[int, Any] = {}
    if groups is not None:
        for tag in _GROUPS:
            item = _first_item(groups, tag)
            if item is not None:
                elements.update(item.items())
    return elements
