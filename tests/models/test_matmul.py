"""Float32 products by the quicker library: as exact as before, for the time of a block, and never at their cost."""

import pytest
import torch

from pluralign.models import matmul
from pluralign.models.matmul import quick_matmul

SETTINGS = torch.backends.mkldnn.matmul


def test_products_are_float32_inside_and_the_setting_is_the_callers_own_outside() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(301, 417, generator=generator), torch.randn(417, 129, generator=generator)
    exact = left.double() @ right.double()
    before = SETTINGS.fp32_precision
    with quick_matmul():
        inside = left @ right
        batched = torch.bmm(left[None], right[None])[0]
    assert SETTINGS.fp32_precision == before
    for product in (inside, batched):
        assert (product - exact).abs().max() < 1e-5 * exact.abs().max()


def test_an_error_inside_leaves_the_setting_as_it_was() -> None:
    before = SETTINGS.fp32_precision
    with pytest.raises(ZeroDivisionError), quick_matmul():
        raise ZeroDivisionError
    assert SETTINGS.fp32_precision == before


def test_where_precision_would_suffer_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_TOLERANCE", 0.0)
    matmul._is_exact.cache_clear()
    try:
        before = SETTINGS.fp32_precision
        with quick_matmul():
            assert SETTINGS.fp32_precision == before
    finally:
        matmul._is_exact.cache_clear()
