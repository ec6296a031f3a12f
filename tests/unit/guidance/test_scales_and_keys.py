"""Scales as numbers and as tensors, and what is said of keys that a method does not have."""

from __future__ import annotations

import pytest
import torch

from oseg_video.guidance.flat import guidance_from_flat, guidance_from_nested
from oseg_video.guidance.scales import same_scale
from oseg_video.settings import SettingError


def test_a_scale_that_grows_is_the_same_as_a_number_where_every_entry_is() -> None:
    flat, growing = torch.full((3,), 2.0), torch.tensor([1.0, 2.0, 3.0])
    assert same_scale(flat, 2.0) and same_scale(2.0, flat) and same_scale(flat, flat.clone())
    assert not same_scale(flat, 3.0)  # what was read of the same tensor before is another question's answer
    assert not same_scale(growing, 2.0) and not same_scale(growing, flat)
    assert same_scale(2.0, 2.0) and not same_scale(2.0, 3.0)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("no_such", "no_such has no effect with guidance oseg; no method has it"),
        ("tau", "tau has no effect with guidance oseg; it belongs to nag"),
    ],
)
def test_a_flat_key_of_no_use_is_refused_with_those_whose_it_is(key: str, said: str) -> None:
    with pytest.raises(SettingError, match=f"^{said}"):
        guidance_from_flat("oseg", {"blocks": [1], key: 1.0})


def test_a_misspelt_nested_setting_is_refused_with_the_nearest_one() -> None:
    nested = {"method": "oseg", "blocks": [1], "blur_sgima": 1.0}
    with pytest.raises(
        SettingError, match="guidance oseg has no setting 'blur_sgima'; did you mean 'blur_sigma'"
    ):
        guidance_from_nested(nested)


def test_a_text_guidance_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        SettingError, match=r"^text must be one of apg, cfg, cfg-zero(, [a-z0-9-]+)*, got 'nope'"
    ):
        guidance_from_flat("oseg", {"blocks": [1], "text": "nope"})
