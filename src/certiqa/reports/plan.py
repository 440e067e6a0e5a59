"""The plan of a certification, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from certiqa.certification.planning import CertificationPlan
from certiqa.reports.tables import count, duration, exact, percent


def plan_lines(plan: CertificationPlan, sigma: float, confidence: float, joint: float | None) -> Iterator[str | Table]:
    """Yield what ``certiqa-plan`` prints."""
    yield headline(plan)
    if plan.draws_per_second and plan.seconds is not None:
        yield f"about {duration(plan.seconds)} here, at {plan.draws_per_second:.1f} draws per second (measured now)"
    side = percent(confidence, setting=True)
    yield f"sigma {exact(sigma)}, confidence {side} per side and image: {_reach(plan.reach)}"
    if joint is not None:
        side = percent(joint, setting=True)
        yield f"joint confidence {side} over all images and radii: {_reach(plan.joint_reach)}"
    if plan.lipschitz != 1:
        yield f"a linear step before the noise: radii at the input count {plan.lipschitz:.4g} times at the noise"
    table = Table(box=box.SIMPLE)
    for header in ("radius", "at the noise", "draws needed", "for the set's guarantees"):
        table.add_column(header, justify="right")
    for row in plan.radii:
        needed = (_draws(number, plan.num_samples) for number in (row.needed, row.needed_joint))
        table.add_row(exact(row.radius), f"{row.at_noise:.4g}", *needed)
    yield table


def headline(plan: CertificationPlan) -> str:
    """Return the line that stands before a run."""
    images, draws, forward = (count(number) for number in (plan.num_images, plan.num_samples, plan.num_forward))
    return f"to certify: {images} images, up to {draws} draws each, {forward} forward passes"


def _reach(radius: float | None) -> str:
    return "no radius can be certified" if radius is None else f"radii up to {radius:.4g} can be certified"


def _draws(needed: int | None, planned: int) -> Text:
    if needed is None:
        return Text("-")
    return Text(count(needed), "" if needed <= planned else "bold red")
