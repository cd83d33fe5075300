"""Whether what clients remember goes together with the rest of an experiment."""

from collections.abc import Iterator

from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.updates.row import OWN
from raffm_ray.server.kept.held_words import against_own_words
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
from raffm_ray.server.strategies import Strategy
from raffm_ray.settings.experiment import Experiment


def check_memory(experiment: Experiment, strategy: Strategy) -> None:
    """Raises UserError where a client update lacks what it needs, or cannot remember rightly with other settings."""
    for problem in _of_updates(experiment):
        raise UserError(problem)
    for problem in _of_sums(experiment, strategy):
        raise UserError(problem)
    for problem in against_own_words(experiment, strategy) if experiment.strategy.vocabulary == "own" else ():
        raise UserError(problem)


def _of_updates(experiment: Experiment) -> Iterator[str]:
    local, server, personal = experiment.local, experiment.server, experiment.strategy.personal
    update, name = CLIENT_UPDATES[local.client_update], local.client_update
    told, row = (
        f"local.client_update {name!r}",
        SERVER_OPTIMIZERS.chosen(server.optimizer, experiment.plugin_settings, "server.optimizer"),
    )
    side = row.client_update
    if side and side != name:
        yield f"server.optimizer: {server.optimizer!r} is the server's side of local.client_update {side}, got {name!r}"
    sides = [one for one, row in SERVER_OPTIMIZERS.items() if row.client_update == name]
    if sides and not side:
        yield f"server.optimizer: must be {sides[0]} with {told}, whose server's side it is, got {server.optimizer!r}"
    if update.proximal and not local.proximal:
        yield f"local.proximal: must be above 0 with {told}: it is the {update.proximal}"
    if update.personal and not personal:
        yield f"strategy.personal: {told} trains personal parameters in turn with the others: name some, such as [classifier]"
    if OWN in update.keeps and personal:
        yield f"strategy.personal: {', '.join(personal)}: with {told} all parameters are the clients' own already: name none"
    if (OWN in update.keeps or personal) and experiment.evaluation.keep_best:
        yield (
            "evaluation.keep_best: must be false where clients have parameters of their own "
            f"({'strategy.personal' if personal else told}): those of the best round are not kept"
        )


def _of_sums(experiment: Experiment, strategy: Strategy) -> Iterator[str]:
    """What keeps a server from knowing the mean over all clients of what each remembers."""
    server, clock, name = experiment.server.optimizer, experiment.clock, experiment.strategy.name
    shares = SERVER_OPTIMIZERS.chosen(server, experiment.plugin_settings).shares
    if not (shares or CLIENT_UPDATES[experiment.local.client_update].variate):
        return
    told = f"server.optimizer {server!r}" if shares else f"local.client_update {experiment.local.client_update!r}"
    if experiment.strategy.own:
        yield f"strategy.own: {', '.join(experiment.strategy.own)}: {told} corrects the model's own parameters alone: name none"
    if not strategy.steady:
        yield f"strategy.name: {told} needs clients that hold the same part in every round, and {name!r} gives them others"
    if shares and strategy.aggregation != "coverage":
        yield f"strategy.aggregation: must be coverage with {told}, which sums up means of changes, got {strategy.aggregation!r}"
    for key in ("fair_exponent", "agnostic_rate"):
        if value := getattr(experiment.server, key):
            yield f"server.{key}: {value:g} cannot be with {told}, which takes means by weights that stay the clients' own"
    if clock.late == "accept" and clock.staleness:
        yield f"clock.staleness: must be 0 with {told}, to which every update counts as a whole, got {clock.staleness:g}"
