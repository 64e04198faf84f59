"""An estimate may come from any device, and any rank's failure in making it is known to all."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_safe.constraint import dual_ascent as dual
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.types import CostEstimate


def test_an_estimate_made_on_a_gpu_comes_to_the_cpu():
    with FakeTensorMode():
        mean, stderr = torch.zeros(2, device="cuda"), torch.zeros(2, device="cuda")
        here = CostEstimate(mean, stderr, 4, torch.zeros((), device="cuda"), 4.0).cpu()
        assert {value.device.type for value in here if isinstance(value, torch.Tensor)} == {"cpu"}
        assert (here.count, here.effective, here.bounds) == (4, 4.0, None)


def test_an_estimator_of_a_users_own_runs_where_an_error_is_told_to_the_other_ranks(monkeypatch):
    heard = []

    @contextmanager
    def recording():
        try:
            yield
        except OSError as error:
            heard.append(str(error))
            raise

    def estimator(module, data, *, seed, epoch):
        raise OSError("the scorer is gone")

    monkeypatch.setattr(dual, "failing_together", recording)
    callback = DualAscent(lr=1.0, estimator=estimator)
    with pytest.raises(OSError, match="the scorer is gone"):
        callback._estimate(SimpleNamespace(datamodule=None), SimpleNamespace(seed=0), estimator, 0)
    assert heard == ["the scorer is gone"]
