"""Sums of low-precision products in fp32: torch's addition in one call is used only where it is exact.

Letters: R rows, D hidden width, S columns.
"""

import pytest
import torch

from ops.sequence_logratio import slabs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew():
    slabs.adds_products.cache_clear()
    yield
    slabs.adds_products.cache_clear()


def adding(low):
    """What a device may do: add in fp32, or round the product to ``low`` first."""

    def addmm(total, a, b, *, out_dtype, out):
        product = (a.double() @ b.double()).to(low)
        return out.copy_(total + product.to(out_dtype))

    return addmm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_device_that_adds_in_fp32_is_asked_to_and_one_that_rounds_is_not(dtype, monkeypatch):
    for low, adds in ((torch.float32, True), (dtype, False)):
        slabs.adds_products.cache_clear()
        monkeypatch.setattr(torch, "addmm", adding(low))
        assert slabs.adds_products(CPU, dtype) is adds


def test_a_version_without_that_call_takes_the_product_and_the_sum(monkeypatch):
    def missing(*arguments, **options):
        raise TypeError("addmm() got an unexpected keyword argument 'out_dtype'")

    monkeypatch.setattr(torch, "addmm", missing)
    assert slabs.adds_products(CPU, torch.bfloat16) is False


@pytest.mark.parametrize("adds", [True, False])
def test_the_sum_is_the_same_either_way(adds, monkeypatch):
    random = torch.Generator().manual_seed(0)
    a_RS, b_SD = (torch.randn(*size, generator=random).bfloat16() for size in ((5, 70), (70, 9)))
    total_RD = torch.randn(5, 9, generator=random)
    exact_RD = total_RD.double() + a_RS.double() @ b_SD.double()
    monkeypatch.setattr(slabs, "adds_products", lambda device, dtype: adds)
    monkeypatch.setattr(torch, "addmm", adding(torch.float32))
    monkeypatch.setattr(slabs, "product", lambda a, b: a.float() @ b.float())
    assert slabs.add_product(total_RD, a_RS, b_SD) is total_RD
    torch.testing.assert_close(total_RD.double(), exact_RD, rtol=1e-5, atol=1e-5)


def test_this_machine_answers_without_an_error():
    assert slabs.adds_products(CPU, torch.bfloat16) in (True, False)
