"""A study trains several ways on one cohort, tests them on held-out cases, and reports."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.adapters import Adapter, TestTimeAdapter
from medtl.checkpoints import restore_weights
from medtl.data.cases.table import Case, CaseTable
from medtl.data.cohort import Cohort
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.spec import Preprocess
from medtl.errors import ConfigError, DataError
from medtl.evaluation import Cost, Results, RunContext
from medtl.prediction.trained import model_header, save_state
from medtl.report.run import report_run
from medtl.runs import Run, software, weight_files
from medtl.selection.decide import Decision
from medtl.tasks.task import Task
from medtl.tasks.ways import FINETUNE, Way
from medtl.training.costs import CostMeter, mean_costs
from medtl.training.fit import FitConfig, FitResult, fit
from medtl.training.learning import Kept, learning_curves

logger = logging.getLogger(__name__)

BOUND = "target_trained"
"""Name of the upper bound in tables; its halves are called `target_trained_1` and `_2` in the run folder."""
HELD_OUT = (("source", "validation"), ("source", "test"), ("target", "test"))


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training; the weights are on disk.

    Attributes:
        result: the result of `fit`.
        kept: accuracy of the kept weights on training and validation cases.
        cost: time, memory and size.
    """

    result: FitResult
    kept: Kept
    cost: Cost


class Study:
    """Trains several ways on the same cases and collects their results.

    Example:
        study = Study.prepare(run, task, ways, cases, preprocess)
        for way in ways:
            study.train(way, seed=0)
        results, page = study.report(title="Two ways")

    Args:
        run: the open run.
        task: classification or segmentation.
        ways: the ways to train; if one learns from the target, all take the same number of steps.
        cohort: the cases.
        progress_bar: show a bar on the terminal while training.

    Raises:
        DataError: too few patients of the target for `--target-trained`.
    """

    def __init__(
        self, run: Run, task: Task, ways: Sequence[Way], cohort: Cohort, *, progress_bar: bool = False
    ) -> None:
        self.run, self.task, self.ways, self.cohort = run, task, tuple(ways), cohort
        self.adapts = any(way.adapts for way in ways)
        self.compares_methods = any(way.method != FINETUNE for way in ways)
        self.notes: list[str] = []
        self.config: Any = run.config
        self.progress_bar = progress_bar
        self.samples = task.samples(cohort)
        self.predictions = task.predictions(run, cohort)
        self.fitted: list[Fitted] = []
        self._sizes: dict[str, int] = {}
        self._halves = cohort.halves("target") if self.config.target_trained else ()
        if self.config.target_trained and not self._halves:
            raise DataError(
                "--target-trained learns from one half of the target's patients and is judged on the other, and "
                f"fewer than two patients have {self.config.task} that can be used. Leave the flag out."
            )

    @classmethod
    def prepare(
        cls,
        run: Run,
        task: Task,
        ways: Sequence[Way],
        cases: CaseTable,
        preprocess: Preprocess,
        *,
        progress: Callable[[int, int], None] | None = None,
        progress_bar: bool = False,
    ) -> Study:
        """Preprocesses the scans and writes `cases.csv`.

        Raises:
            DataError: nothing is left to train on.
        """
        cohort = Cohort.prepare(cases, preprocess, run.cache, progress=progress)
        cohort.table.to_csv(run.folder / "cases.csv")
        return cls(run, task, ways, cohort, progress_bar=progress_bar)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about the cases."""
        return self.cohort.table.warnings

    @property
    def sources(self) -> str:
        """The names of the source's sites."""
        return " and ".join(self.cohort.sites("source"))

    @property
    def target(self) -> str:
        """The name of the target's site; empty if there is none."""
        return " and ".join(self.cohort.sites("target"))

    def train(
        self, way: Way, seed: int, *, cases: Sequence[Case] | None = None, size: int | None = None
    ) -> Fitted:
        """Trains one way once, and predicts all held-out cases: source validation, source test, target.

        A model that is already in the run folder is not trained again.

        Args:
            way: the way.
            seed: training seed.
            cases: training cases of the source, instead of all.
            size: number of their patients, which becomes part of the model's name (`probe@20`).

        Raises:
            DataError: there are no training cases, or some that no model can be trained on.
        """
        cohort, name = self.cohort, way.name if size is None else f"{way.name}@{size}"
        if size is not None:
            self._sizes[name] = size
        chosen = cohort.select("source", "train") if cases is None else tuple(cases)
        train = self._data("source", "train", cases=chosen, with_labels=True, augmented=True, seed=seed)
        if train is None:
            raise DataError("There are no training cases: every case of the source was left out or held out.")
        adapter = self._adapter(way, seed, chosen, size)
        validation = self._data("source", "validation", with_labels=True)
        target = few = None
        if self.adapts:
            strong = "strong_view" in way.kind.needs
            every = self.cohort.select("target")  # those whose labels may be used are unlabelled here too
            target = self._data("target", "test", cases=every, augmented=True, seed=seed, strong=strong)
        if "labelled_target" in way.kind.needs:
            few = self._data(
                "target",
                "train",
                with_labels=True,
                augmented=True,
                seed=seed,
                stream="labelled_target",
            )
        folder, config = self.run.model_folder(name, seed), self._fit_config(way, seed)
        self.run.check(*weight_files(folder))
        with CostMeter(self.run, folder) as meter:
            given = self.task.inputs(adapter, train, self.run, training=True)
            checked = None if validation is None else self.task.inputs(adapter, validation, self.run)
            result = fit(
                adapter,
                given,
                target,
                folder=folder,
                config=config,
                validation=checked,
                labelled_target=few,
                target_plain=self._target_plain(),
                header=self._header(adapter, way, name),
                metrics=self.run.metrics(name, seed),
            )
        for stamp in result.stamps:
            self.run.stamp(stamp)
        with adapter.on_source():
            kept = Kept(
                model=name,
                seed=seed,
                best_epoch=result.best_epoch,
                train_accuracy=self.task.accuracy(adapter, given, config.batch_size),
                validation_accuracy=None
                if checked is None
                else self.task.accuracy(adapter, checked, config.batch_size),
                validation_patients=len({c.patient for c in cohort.select("source", "validation")}),
            )
        # A method that adapts while predicting has no time per case.
        time_it = (
            None
            if isinstance(adapter, TestTimeAdapter)
            else lambda: self.task.predict_some(adapter, train, **self.samples)
        )
        cost = meter.cost(name, adapter, lr=self.config.lr, predict=time_it)
        for part in HELD_OUT:
            if (data := self._data(*part)) is not None:
                self.predictions.add(adapter, data, name, seed)
        save_state(adapter, folder)
        self.run.note_model(folder)
        self._remember(name, getattr(adapter, "remarks", ()))
        self.fitted.append(Fitted(result, kept, cost))
        return self.fitted[-1]

    def train_bound(self, way: Way, seed: int) -> None:
        """Trains on the target's own labels if the run asks for it: an upper bound, never a candidate.

        Every case is predicted by a model that has not seen its patient: each half of the patients tests the model of
        the other half.
        """
        every = self.cohort.select("target", "test")
        for number, (half, other) in enumerate(self._halves, 1):
            # Cases that nobody can learn from are predicted once too, for tables in which all models have all cases.
            judged = {c.case for c in (*half, *other)}
            rest = (*other, *(c for c in every if number == 1 and c.case not in judged))
            train = self._data("target", "test", cases=half, with_labels=True, augmented=True, seed=seed)
            unseen = self._data("target", "test", cases=rest)
            assert train is not None
            assert unseen is not None
            adapter, name = self._adapter(way, seed, half), f"{BOUND}_{number}"
            folder = self.run.model_folder(name, seed)
            self.run.check(*weight_files(folder))
            fit(
                adapter,
                self.task.inputs(adapter, train, self.run, training=True),
                folder=folder,
                config=dataclasses.replace(self._fit_config(way, seed), patience=None),
                header=self._header(adapter, way, name),
                metrics=self.run.metrics(name, seed),
            )
            self.run.note_model(folder)
            self.predictions.add(adapter, unseen, BOUND, seed, candidate=False)

    def recommend(self, reference: Way) -> Decision:
        """Which model to keep, decided without a label of the target.

        Args:
            reference: the way that is not adapted.
        """
        return self.predictions.recommend(reference.name)

    def report(
        self,
        *,
        title: str,
        decision: Decision | None = None,
        reference_model: str = "",
        notes: Sequence[str] = (),
    ) -> tuple[Results, Path]:
        """Writes the predictions, evaluates them, and writes the report.

        Args:
            title: title of the page.
            decision: the choice made without target labels.
            reference_model: the model that others are compared with.
            notes: remarks in addition to the cohort's warnings.

        Returns:
            The results, and the path of the page.
        """
        config, cohort = self.config, self.cohort
        predictions = self.predictions.finish()
        if decision is not None:
            self.run.write_json("decision.json", decision.to_dict())
        described = {way.name: f"{way.note} {self.task.note}".strip() for way in self.ways}
        models = dict.fromkeys(fitted.kept.model for fitted in self.fitted)
        context = RunContext(
            title=title,
            source_sites=cohort.sites("source"),
            target_site=self.target,
            reference_model=reference_model,
            keep=None if decision is None else decision.to_dict(),
            notes=(*cohort.table.warnings, *notes, *self.notes),
            stamps=self.run.stamps,
            flow=cohort.table.flow(),
            target_trained=(BOUND,) if config.target_trained else (),
            target_seen_unlabelled=self.adapts,
            command=self.run.command,
            versions=software(),
            seeds=config.training_seeds,
            learning=learning_curves(self.run.folder / "metrics.csv", [f.kept for f in self.fitted]),
            costs=mean_costs([f.cost for f in self.fitted]),
            sizes=self._sizes,
            methods={m: described.get(m, described.get(m.rpartition("@")[0], "")) for m in models},
        )
        return report_run(self.run, predictions, context)

    def _adapter(self, way: Way, seed: int, cases: Sequence[Case], size: int | None = None) -> Adapter:
        """The way's untrained model, with the weights that it starts from and the loss of these cases."""
        classes, preprocess = self.cohort.table.classes, self.cohort.cache.preprocess
        model = self.task.build(way.encoder, len(classes), preprocess, seed)
        if way.start:
            start = way.start if size is None else f"{way.start}@{size}"
            restore_weights(model, self.run.model_folder(start, seed))
        return way.around(model, seed, self.task.loss(self.cohort, cases))

    def _target_plain(self) -> CaseDataset | None:
        """Every case of the target, for methods that look at all of it."""
        every = self.cohort.select("target")
        return self._data("target", "test", cases=every) if self.compares_methods and every else None

    def _remember(self, model: str, remarks: Sequence[str]) -> None:
        for remark in remarks:
            note = f"{model}: {remark}"
            if note not in self.notes:
                self.notes.append(note)

    def _data(
        self,
        domain: str,
        split: str,
        *,
        augmented: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> CaseDataset | None:
        if augmented:
            options |= {"augment": self.config.augment, "seed": seed}
        return self.cohort.dataset(domain, split, **options, **self.samples)

    def _fit_config(self, way: Way, seed: int) -> FitConfig:
        own: dict[str, Any] = {}
        if (
            self.compares_methods
        ):  # an adapted model is that of the last step: source validation must not stop it
            own["patience"] = None
        return FitConfig.of_recipe(
            self.config,
            **own,
            batch_size=self.cohort.cases_per_batch(self.config.batch_size, **self.samples),
            seed=seed,
            progress_bar=self.progress_bar,
        )

    def _header(self, adapter: Adapter, way: Way, name: str) -> dict[str, Any]:
        return model_header(
            adapter,
            self.cohort.table.classes,
            self.cohort.cache.preprocess,
            name=name,
            hparams=way.hparams,
            **self.task.header(self.cohort),
        )


def check_ways(
    task: Task, ways: Sequence[Way], cases: CaseTable, preprocess: Preprocess
) -> dict[str, list[dict[str, Any]]]:
    """Builds every way once, so that errors come before anything is written.

    Args:
        task: classification or segmentation.
        ways: the ways.
        cases: the cases.
        preprocess: the preprocessing of every scan.

    Returns:
        For each way, what its strategy trains, one row per part of the model.

    Raises:
        ConfigError: a method, strategy, encoder or loss that does not fit the others.
        WeightsError: the weights are missing or belong to another encoder.
    """
    learners = [way.name for way in ways if "labelled_target" in way.kind.needs]
    if task.config.few_labels is not None and not learners:
        raise ConfigError(
            "--few-labels: no model of this run learns from labels of the target, so the flag would only take cases "
            "out of the test. Add the method few_labels (adapt, compare or data_efficiency), or leave the flag out."
        )
    if learners and task.config.few_labels is None:
        raise ConfigError(f"{learners[0]} learns from a few labels of the target: give --few-labels CSV.")
    if FitConfig.of_recipe(task.config).num_nodes > 1:
        raise ConfigError(
            "--fit num_nodes: a recipe writes one run folder and belongs on one machine. Start one job a seed, or "
            "train over several machines with medtl.fit in a script of your own."
        )
    plans = {}
    for way in ways:
        model = task.build(way.encoder, len(cases.classes), preprocess, task.config.seed)
        adapter = way.around(model, task.config.seed)
        task.check_adapter(adapter)
        plans[way.name] = adapter.strategy.plan(task.config.lr or 0.0)
    return plans
