"""The controller that the settings of dual ascent choose."""

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.subgradient import ProjectedSubgradient
from lit_safe.training.schedules import Schedule


def chosen(
    controller: Controller | None,
    lr: float | list[float],
    schedule: Schedule | None,
    maximum: float | list[float] | None,
) -> Controller:
    """The rule of the step: the one that is named, else the subgradient step of the other settings.

    Raises:
        ValueError: If a controller and one of the other settings are both given.
    """
    if controller is None:
        return ProjectedSubgradient(lr, schedule, 10.0 if maximum is None else maximum)
    given = {"lr": lr not in (0, 0.0), "schedule": schedule is not None, "maximum": maximum is not None}
    both = [name for name, named in given.items() if named]
    if both:
        raise ValueError(
            f"controller {type(controller).__name__} and dual.{both[0]} are both given: leave dual.{both[0]} out, and "
            "set the controller's own settings"
        )
    return controller
