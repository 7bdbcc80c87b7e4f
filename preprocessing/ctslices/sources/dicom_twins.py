"""Series made from one acquisition (kernel twins): which belong together, and which one of them is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ctslices.sources.dicom_group import Stack
from ctslices.sources.dicom_words import sharpness

_SAME_POSITION_MM = 0.1


@dataclass(frozen=True, slots=True)
class Family:
    """The stacks of one acquisition: the one that is taken, those of other kernels, and plain copies of the taken."""

    taken: Stack
    other_kernels: tuple[Stack, ...]
    copies: tuple[Stack, ...]


def families(stacks: Sequence[Stack], kernel: str | None) -> list[Family]:
    """Stacks grouped by acquisition, in order of first appearance.

    Two stacks come from one acquisition when patient, study, frame of reference and the set of positions agree and
    the acquisition's own marks (irradiation event, acquisition number, time of the first plane) do not contradict. Of
    a family is taken: the one whose kernel is `kernel` (any case); else the smoothest known kernel, for at 64 pixels
    sharpness only adds noise; among equals the first name, then the most planes, then the first path.
    """
    groups: dict[tuple[str, str, str], list[list[Stack]]] = defaultdict(list)
    for stack in stacks:
        header = stack.planes[0].header
        candidates = groups[(header.patient, header.study, header.frame_of_reference)]
        family = next((family for family in candidates if _one_acquisition(family[0], stack)), None)
        if family is None:
            candidates.append([stack])
        else:
            family.append(stack)
    members = [family for candidates in groups.values() for family in candidates]
    return [_choose(family, kernel) for family in members]


def _one_acquisition(one: Stack, other: Stack) -> bool:
    a, b = one.planes[0].header, other.planes[0].header
    if a.series == b.series:
        return False
    if a.irradiation_event and b.irradiation_event and a.irradiation_event == b.irradiation_event:
        # Thick and thin reconstructions of one exposure show the same slices too.
        return _overlap(one, other)
    if a.irradiation_event and b.irradiation_event:
        return False
    if not a.frame_of_reference or not _same_positions(one, other):
        return False
    if a.acquisition_number != b.acquisition_number:
        return False
    return a.kernel != b.kernel or not a.acquisition_time or a.acquisition_time == b.acquisition_time


def _same_positions(one: Stack, other: Stack) -> bool:
    if len(one.positions_mm) != len(other.positions_mm):
        return False
    return all(abs(a - b) <= _SAME_POSITION_MM for a, b in zip(one.positions_mm, other.positions_mm, strict=True))


def _overlap(one: Stack, other: Stack) -> bool:
    low = max(one.positions_mm[0], other.positions_mm[0])
    high = min(one.positions_mm[-1], other.positions_mm[-1])
    shorter = min(stack.positions_mm[-1] - stack.positions_mm[0] for stack in (one, other))
    return high - low >= 0.5 * shorter


def _choose(family: Sequence[Stack], kernel: str | None) -> Family:
    def rank(stack: Stack) -> tuple[bool, float, str, int, str]:
        header = stack.planes[0].header
        asked = kernel is not None and _names(header.kernel, kernel)
        return not asked, sharpness(header.kernel), header.kernel, -len(stack.planes), header.path

    taken, *others = sorted(family, key=rank)
    chosen = taken.planes[0].header.kernel
    return Family(
        taken,
        tuple(stack for stack in others if stack.planes[0].header.kernel != chosen),
        tuple(stack for stack in others if stack.planes[0].header.kernel == chosen),
    )


def _names(raw: str, wanted: str) -> bool:
    return wanted.casefold() in {raw.casefold(), raw.partition("\\")[0].strip().casefold()}
