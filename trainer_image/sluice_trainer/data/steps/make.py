"""The steps of a job's spec, as what does them."""

from collections.abc import Mapping, Sequence

from sluice_api.data_steps import Filter, Step
from sluice_api.reasons import Reason
from sluice_trainer.data.steps.chunk import ChunkTexts, Offsets
from sluice_trainer.data.steps.clean import CleanTexts
from sluice_trainer.data.steps.deduplicate import DropDuplicates
from sluice_trainer.data.steps.filter import FilterRows
from sluice_trainer.data.steps.languages import known_languages
from sluice_trainer.data.steps.redact import RedactTexts
from sluice_trainer.data.steps.step import RowStep
from sluice_trainer.data.steps.word_list import word_list
from sluice_trainer.errors import StageError


def row_steps(
    steps: Sequence[Step], offsets: Offsets, words: Mapping[str, Sequence[str]]
) -> list[RowStep | DropDuplicates]:
    """What does the steps, in their order. All but DropDuplicates look at one row at a time.

    Args:
        steps: dataset.steps.
        offsets: Where the tokens of a text are, for `chunk`.
        words: The words of each file that a filter's wordsFrom names, by its address.

    Raises:
        StageError: a filter names a language that is never found.
    """
    return [_made(index, step, offsets, words) for index, step in enumerate(steps)]


def _made(index: int, step: Step, offsets: Offsets, words: Mapping[str, Sequence[str]]) -> RowStep | DropDuplicates:
    if step.clean is not None:
        return CleanTexts(step.clean)
    if step.filter is not None:
        _check_languages(index, step.filter)
        more = words[step.filter.words_from] if step.filter.words_from is not None else ()
        return FilterRows(step.filter, word_list([*step.filter.words, *more]))
    if step.deduplicate is not None:
        return DropDuplicates(step.deduplicate)
    if step.redact is not None:
        return RedactTexts(step.redact)
    if step.chunk is not None:
        return ChunkTexts(step.chunk, offsets)
    raise ValueError(f"dataset.steps[{index}] has no field; the schema lets none such pass")


def _check_languages(index: int, spec: Filter) -> None:
    unknown = sorted(set(spec.languages) - known_languages()) if spec.languages else []
    if unknown:
        raise StageError(
            Reason.DATASET_INVALID,
            f"dataset.steps[{index}].filter.languages: no text is ever found to be in {', '.join(unknown)}. Languages "
            f"are known by these codes: {', '.join(sorted(known_languages()))}.",
        )
