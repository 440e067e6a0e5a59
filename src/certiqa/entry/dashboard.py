"""``certiqa-dashboard``: make the project's W&B workspace."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from certiqa.console import accept_any_text
from certiqa.errors import UserError, first_line, suggest


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and save the workspace, or print it; exits with 1 where W&B refuses it."""
    accept_any_text()
    parser = argparse.ArgumentParser(
        prog="certiqa-dashboard",
        description="Make the W&B workspace of runs logged with logger=wandb: correlation, certificates against "
        "radius, attack gains, sweeps. Needs pip install 'certiqa[dashboard]'.",
    )
    parser.add_argument("--project", default="certiqa", help="as logger.project (default: %(default)s)")
    parser.add_argument("--entity", help="user or team (default: the key's own)")
    parser.add_argument("--name", default="certiqa", help="of the view (default: %(default)s)")
    parser.add_argument("--attacks", help="those with bars, e.g. ifgsm,square (default: all)")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print its definition, send nothing")
    chosen = parser.parse_args(arguments)
    try:
        print(make(chosen.project, chosen.entity, chosen.name, chosen.attacks, only_print=chosen.only_print))
    except UserError as error:
        print(f"certiqa-dashboard: {error}", file=sys.stderr)
        sys.exit(1)


def make(project: str, entity: str | None, name: str, attacks: str | None, *, only_print: bool = False) -> str:
    """Save the workspace and return its address; or return its definition as JSON.

    Raises:
        UserError: for an unknown attack, without a key, or where W&B refuses.
    """
    from certiqa.attacks import ATTACKS
    from certiqa.reports.dashboard import dashboard, workspace

    names = attacks.split(",") if attacks else list(ATTACKS)
    for attack in names:
        if attack not in ATTACKS:
            raise UserError(f"no attack '{attack}'; there are: {', '.join(ATTACKS)}.{suggest(attack, ATTACKS)}")
    sections = dashboard(names)
    if only_print:
        from dataclasses import asdict

        return json.dumps([asdict(section) for section in sections], indent=1)
    view = workspace(sections, entity=entity or default_entity(), project=project, name=name)
    try:
        view.save()
    except Exception as error:
        raise UserError(f"W&B did not take the workspace: {first_line(error)}; check --entity and --project") from error
    return str(view.url)


def default_entity() -> str:
    """Return the user or team that the key of this machine logs to by default."""
    import wandb

    try:
        found = wandb.login(prompt=False, verify=False) and wandb.Api().default_entity
    except Exception as error:
        raise UserError(
            f"W&B cannot be asked: {first_line(error)}; check the network, the key, or give --entity"
        ) from error
    if not found:
        raise UserError("there is no key for W&B; give one with `wandb login` or WANDB_API_KEY")
    return str(found)


if __name__ == "__main__":
    main()
