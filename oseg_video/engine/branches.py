"""Run the branches of one step: which passes they share, what is perturbed in them, what is not run twice."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch._dynamo.eval_frame import OptimizedModule

from oseg_video.adapters.base import Condition, ModelAdapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import NOTHING_CUT, JointText
from oseg_video.engine.actions import BlockActions, perturbed_streams
from oseg_video.engine.errors import GuidanceError, SilentGuidanceError
from oseg_video.engine.patching import swapped_class
from oseg_video.engine.patching.attention import spread_attention
from oseg_video.engine.patching.gates import BlockPlan, gated, taken
from oseg_video.engine.reading import InputChanges
from oseg_video.engine.report import PassRecord
from oseg_video.engine.reuse import Prefix, Written
from oseg_video.engine.sharding import BlockStack
from oseg_video.engine.step_cache import StepCache
from oseg_video.guidance.attended import Noise
from oseg_video.guidance.perturbations import (
    ExtrapolateAttention,
    IsolateStreams,
    SkipBlock,
)
from oseg_video.guidance.plan import Branch, Perturbation
from oseg_video.guidance.reuse import EXACT, PLAIN, USE_OURS, Reuse, no_chain
from oseg_video.parallel.mesh import ONE_RANK
from oseg_video.parallel.sequence import SequenceGroup, SpreadSequence
from oseg_video.types import Denoiser


class Pass(NamedTuple):
    """Branches that share one forward pass, in the order of its rows."""

    names: tuple[str, ...]
    conditions: tuple[Condition, ...]
    perturbation: Perturbation | None
    start_unit: int
    """First unit that runs; those before it replay what the unperturbed pass had there."""


class _Rows(NamedTuple):
    """The rows of a batch: as many of every condition, in their order."""

    conditions: tuple[Condition, ...]
    of_each: int

    def of(self, wanted: tuple[Condition, ...]) -> slice:
        """The rows of neighbouring conditions."""
        first = self.conditions.index(wanted[0])
        assert self.conditions[first : first + len(wanted)] == wanted
        return slice(first * self.of_each, (first + len(wanted)) * self.of_each)


class _Prefixes:
    """What the plain passes of one denoiser call leave for perturbed ones that begin at a later unit."""

    def __init__(self, passes: Sequence[Pass], rows: _Rows, empty: Callable[[int], Prefix]) -> None:
        """empty: makes the prefix of so many units."""
        self._units = max((one.start_unit for one in passes), default=0)
        self._wanted = {condition for one in passes if one.start_unit for condition in one.conditions}
        self._rows = rows
        self._empty = empty
        self._kept: dict[Condition, tuple[Prefix, _Rows]] = {}

    def begin(self, plan: BlockPlan, current: Pass) -> int:
        """Let a pass replay a prefix, or keep its own where one is wanted; the unit that it begins at."""
        if current.start_unit > 0:
            prefix, kept = self._kept[current.conditions[0]]
            plan.replay = prefix.replay(kept.of(current.conditions), kept.of(kept.conditions).stop)
            return current.start_unit if plan.replay else 0
        if current.perturbation is None and self._wanted.intersection(current.conditions):
            prefix, kept = self._empty(self._units), self._rows._replace(conditions=current.conditions)
            plan.capture = prefix.capture()
            self._kept |= dict.fromkeys(current.conditions, (prefix, kept))
        return 0


class BranchRunner:
    """Runs branches on one denoiser. `active()` must be open while it runs any that is perturbed."""

    def __init__(
        self,
        adapter: ModelAdapter,
        denoiser: Denoiser,
        selectors: Sequence[int | str] = (),
        *,
        reuse: Reuse = EXACT,
        sequence: SequenceGroup = ONE_RANK.sequence,
    ) -> None:
        """`selectors` name every block that any branch perturbs; `sequence`: the ranks that share the tokens.

        Raises `UnknownBlockError`, and `GuidanceError` for tokens that ranks cannot share and for a step
        cache where there is no chain of blocks.
        """
        if reuse.cache and not adapter.blocks.chained:
            raise GuidanceError(no_chain(adapter.family))
        if sequence.size > 1 and not adapter.sequence_parallel:
            raise GuidanceError(
                f"{adapter.family} has no sequence of tokens that ranks could share (ulysses, ring); "
                f"it runs in parallel over branch and data"
            )
        self._beside = adapter.blocks.beside(denoiser)
        if sequence.size > 1 and self._beside:
            raise GuidanceError(
                f"{self._beside[0]} looks at all tokens beside the blocks, so that ranks cannot share them "
                f"(ulysses, ring); this model runs in parallel over branch and data"
            )
        self._adapter = adapter
        self._sequence = sequence
        self._denoiser = denoiser
        self._reuse = reuse
        self._selectors = tuple(selectors)
        self._units = adapter.blocks.units(denoiser)
        # Schedules change the blocks from step to step.
        self._addresses: dict[tuple[int | str, ...], list[BlockAddress]] = {}
        for selector in self._selectors:
            self._addresses[selector,] = adapter.resolve_blocks(denoiser, (selector,))
        self._written = Written()
        # Of the thread that runs a guided pass: another one may run the denoiser for another pipeline.
        self._here = threading.local()
        self._stack = BlockStack(adapter, denoiser)
        self._first_block = adapter.blocks(denoiser)[0]

    @property
    def unit_count(self) -> int:
        """Number of units that a perturbed pass can replay: blocks, or the stages of a UNet."""
        return len(self._units)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Be the only one who intervenes at the denoiser's blocks, if anything does."""
        with ExitStack() as stack:
            if self.intervenes:
                stack.enter_context(taken(self._denoiser))
            if self._sequence.size > 1:
                stack.enter_context(spread_attention(self._adapter, self._denoiser, self._current_spread))
            yield

    @property
    def intervenes(self) -> bool:
        """Whether blocks are perturbed, share their tokens over ranks, or must not be left out unseen."""
        return bool(self._selectors) or self._sequence.size > 1 or self._reuse.active

    @property
    def compiled(self) -> bool:
        """Whether a block is compiled, which hides its attention."""
        blocks = (self._denoiser.get_submodule(one.path) for one in self._adapter.blocks(self._denoiser))
        return any(isinstance(one, OptimizedModule) or one._compiled_call_impl is not None for one in blocks)

    def _current_plan(self) -> BlockPlan | None:
        return getattr(self._here, "plan", None)

    def _current_spread(self) -> SpreadSequence | None:
        plan = self._current_plan()
        return plan.spread if plan else None

    def run_plain(self, call: Callable[[], Any], arguments: Mapping[str, Any]) -> Any:
        """The denoiser's call as the pipeline made it, with `arguments`; ranks share its tokens."""
        with self._following(self._stack.plan(self._spread(arguments), NOTHING_CUT)):
            return call()

    def run(
        self,
        call: Callable[..., Any],
        arguments: Mapping[str, Any],
        branches: Mapping[str, Branch],
        conditions: tuple[Condition, ...],
        *,
        noise: Noise | None = None,
        negative: Mapping[str, Any] | None = None,
        cache: StepCache | None = None,
    ) -> tuple[dict[str, Tensor], list[PassRecord]]:
        """The prediction of every branch, and the passes that it took.

        call: the denoiser's own call. arguments: those that the pipeline passed, without `return_dict`.
        conditions: of the rows in `arguments`, in equal shares; every branch's condition is among them.
        noise: of this step, for branches whose input is changed.
        negative: the arguments of the `uncond` rows, for branches that look at their text; left out, those of
            this call.
        cache: what decides whether the step is skipped; then the plain conditional branch is all that runs.
        Raises `SilentGuidanceError` when a perturbed site did not fire, `GuidanceError` when a block was not
        called.
        """
        denoiser_call = self._adapter.denoiser_call
        passes = self.passes(branches, conditions)
        rows = _Rows(conditions, len(arguments[denoiser_call.sample]) // len(conditions))
        prefixes = _Prefixes(passes, rows, self._prefix)
        changes = InputChanges(self._adapter, self._denoiser, branches, self._resolve, noise)
        actions = BlockActions(self._adapter, self._denoiser, self._resolve, self._beside, self._fired)
        predictions: dict[str, Tensor] = {}
        records = []
        for current in passes:
            inputs = denoiser_call.take_rows(arguments, rows.of(current.conditions))
            if branches[current.names[0]].reads_negative:
                if negative is None:
                    negative = denoiser_call.take_rows(arguments, rows.of(("uncond",)))
                inputs = self._with_negative(inputs, negative)
            text = self._adapter.padded_text.cut(inputs) if self.intervenes else NOTHING_CUT
            inputs = text.arguments(inputs)
            plan = self._stack.plan(self._spread(inputs), text)
            if current.perturbation is None:
                plan.actions = changes.readings(current.names, inputs)
            elif current.perturbation.source is None:
                plan.actions = actions.of(current.perturbation, inputs, plan.spread, negative)
            else:
                inputs, read = changes.changed(current.perturbation, inputs, predictions)
                plan.fired += read
            start = prefixes.begin(plan, current)
            watched = cache if branches[current.names[0]] == PLAIN else None
            if watched is not None:
                watched.watch(plan, self._units[len(self._beside) :], self._written)
            with self._following(plan):
                prediction = denoiser_call.prediction(call(**inputs, return_dict=False))
            self._require_passed(plan)
            if current.perturbation is not None:
                self._require_fired(current.perturbation, plan)
            rows_each = self._rows_each(current.perturbation)
            own = prediction[: len(prediction) // rows_each]
            predictions |= zip(current.names, own.tensor_split(len(current.names)), strict=True)
            skipped = watched is not None and watched.skipped
            stop = len(self._beside) + 1 if skipped else len(self._units)
            fired = tuple(plan.fired)
            records.append(PassRecord(current.names, len(prediction), start, stop, fired, rows_each))
            if skipped:
                break
        return predictions, records

    def _prefix(self, until: int) -> Prefix:
        """An empty one, of the units before this one."""
        units = self._units[:until]
        return Prefix(units, self._needed(units), self._written)

    def passes(self, branches: Mapping[str, Branch], conditions: tuple[Condition, ...]) -> list[Pass]:
        """The fewest passes that run all branches, unperturbed ones first, rows in order of `conditions`.

        With a step cache the plain conditional branch is the first one, and conditions share no pass.
        """
        plain = {branch.condition for branch in branches.values() if branch.perturbation is None}
        perturbed = (branch.perturbation for branch in branches.values() if branch.perturbation is not None)
        inside = [one for one in perturbed if one.source is None]
        starts = {one: self._start(one) for one in inside} if self._reuse.prefix else {}
        # One prefix serves all passes that leave out any blocks.
        first = min(filter(None, starts.values()), default=0)
        apart = self._reuse.cache > 0
        groups: dict[tuple[Perturbation | None, int, Condition | None], list[str]] = {}
        for name in sorted(branches, key=lambda name: conditions.index(branches[name].condition)):
            branch = branches[name]
            replays = branch.perturbation is not None and starts.get(branch.perturbation, 0) > 0
            start = first if replays and branch.condition in plain else 0
            group = branch.perturbation, start, branch.condition if apart else None
            groups.setdefault(group, []).append(name)
        passes = [
            Pass(tuple(names), tuple(branches[name].condition for name in names), perturbation, start)
            for (perturbation, start, _), names in groups.items()
        ]
        return sorted(
            passes,
            key=lambda one: (one.perturbation is not None, apart and branches[one.names[0]] != PLAIN),
        )

    def cost(self, branches: Mapping[str, Branch], conditions: tuple[Condition, ...]) -> float:
        """Passes through the whole denoiser that these branches take, counted in units.

        Infinite where a branch starts from what another one shows that is not among them.
        """
        perturbed = (branch.perturbation for branch in branches.values() if branch.perturbation is not None)
        if any(one.source is not None and one.source not in branches for one in perturbed):
            return math.inf
        return sum(
            self._rows_each(one.perturbation) * len(one.names) * (1 - one.start_unit / self.unit_count)
            for one in self.passes(branches, conditions)
        )

    def _rows_each(self, perturbation: Perturbation | None) -> int:
        """Rows that a branch takes for each clip."""
        two_texts = perturbation is not None and isinstance(perturbation.change, ExtrapolateAttention)
        return 2 if two_texts and isinstance(self._adapter.text_attention, JointText) else 1

    def _with_negative(self, arguments: Mapping[str, Any], negative: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a denoiser call with the text of others beside its own."""
        texts = self._adapter.text_attention
        if isinstance(texts, JointText):
            return texts.joined(self._adapter.denoiser_call, arguments, negative)
        joined = dict(arguments)
        for one in texts:
            joined = one.joined(joined, negative)
        return joined

    def _needed(self, units: Sequence[str]) -> Sequence[str]:
        """Of units that are left out together, those whose outputs the others take."""
        if not self._adapter.blocks.chained:
            return units
        return [*(unit for unit in units[:-1] if unit in self._beside), units[-1]]

    def _start(self, perturbation: Perturbation) -> int:
        """The first unit that a perturbation inside of blocks changes."""
        if isinstance(perturbation.change, ExtrapolateAttention):
            return 0  # which is of all units that see the text
        return self._resolve(perturbation)[0].unit

    def _resolve(self, perturbation: Perturbation) -> list[BlockAddress]:
        selectors = perturbation.blocks
        if selectors not in self._addresses:
            chosen = {a.index: a for one in selectors for a in self._addresses[one,]}
            self._addresses[selectors] = [chosen[index] for index in sorted(chosen)]
        return self._addresses[selectors]

    @contextmanager
    def _following(self, plan: BlockPlan) -> Iterator[None]:
        """Gates in front of the denoiser's blocks, if anything intervenes there, which follow this plan."""
        with ExitStack() as stack:
            if self.intervenes:
                stack.enter_context(gated(self._adapter, self._denoiser, self._current_plan))
                for part, other in self._adapter.changed_classes(self._denoiser):
                    stack.enter_context(swapped_class(part, other))
            self._here.plan = plan
            try:
                yield
            finally:
                self._here.plan = None

    def _spread(self, arguments: Mapping[str, Any]) -> SpreadSequence | None:
        """How the ranks share the tokens of a denoiser call."""
        ranks = self._sequence.size
        if ranks == 1:
            return None
        tokens = self._adapter.video_tokens(self._denoiser, arguments, self._first_block)
        if tokens.video < ranks:
            raise GuidanceError(f"{tokens.video} video tokens cannot be shared by {ranks} ranks")
        return SpreadSequence(self._sequence, tokens.video, tokens.text_first)

    def _fired(self, name: str) -> None:
        plan = self._current_plan()
        assert plan is not None
        plan.fired.append(name)

    def _require_passed(self, plan: BlockPlan) -> None:
        if not self.intervenes:
            return
        for unit in self._units:
            if unit not in plan.passed:
                raise GuidanceError(
                    f"the denoiser did not call its block {unit}: its forward is replaced by one that leaves "
                    f"blocks out, as step caches such as TeaCache do; {USE_OURS}"
                )

    def _require_fired(self, perturbation: Perturbation, plan: BlockPlan) -> None:
        whole = isinstance(perturbation.change, SkipBlock | IsolateStreams)
        expected = 1 if whole or perturbation.source else len(perturbed_streams(self._adapter, perturbation))
        for address in self._resolve(perturbation):
            own = {one for one in plan.fired if one == address.path or one.startswith(f"{address.path}.")}
            if len(own) < expected:
                raise SilentGuidanceError(
                    f"block {address.index} ({address.path}) was to be perturbed, but its attention site "
                    f"never fired; fused projections or a foreign attention processor may bypass it"
                )
