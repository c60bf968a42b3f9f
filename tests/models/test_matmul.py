"""Float32 products by the quicker library: as exact as before, for the time of a block, and never at their cost."""

import warnings

import pytest
import torch

from pluralign.config import ModelConfig
from pluralign.models import load_base, matmul
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


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_slow_bfloat16_is_warned_of(capability: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_base(ModelConfig(dtype="float32"))
        assert not [one for one in said if "bfloat16" in str(one.message)]
        load_base(ModelConfig(dtype="bfloat16"))
    assert any("set dtype to float32" in str(one.message) for one in said) == warned
