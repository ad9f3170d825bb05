"""How the user's own functions are called: what their parameters must take. Imports nothing of ours.

The signatures come from a file's text (`user_source`) before the run, and from the function itself where the text
can't say (`user_code`).
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import ClassVar


@dataclass(frozen=True)
class FunctionCall:
    """A call of a user's function.

    Attributes:
        positional: What it is given, in this order.
        named: What it is given by name.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...] = ()
    awaits: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"({', '.join([*self.positional, *(f'{name}=…' for name in self.named)])})"

    def problem(self, signature: Signature) -> str | None:
        """Why a function with this signature can't be called so; None where it can."""
        try:
            signature.bind(*self.positional, **dict.fromkeys(self.named))
        except TypeError as error:
            why = self._missing(signature) or _not_given(signature, self) or str(error)
            return f"its parameters are {signature}, and it is called with {self}: {why}"
        return None

    def _missing(self, signature: Signature) -> str:
        """What the call gives and the function doesn't take."""
        kinds = [p.kind for p in signature.parameters.values()]
        places = sum(kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
        absent = [] if Parameter.VAR_POSITIONAL in kinds else list(self.positional[places:])
        if Parameter.VAR_KEYWORD not in kinds:
            absent += [name for name in self.named if name not in named_parameters(signature)]
        return f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} missing" if absent else ""


def _not_given(signature: Signature, call: FunctionCall) -> str:
    """The required parameters that the call gives nothing for."""
    by_name = {name: p for name, p in signature.parameters.items() if name not in call.named}
    rest = [
        name
        for place, (name, p) in enumerate(by_name.items())
        if p.default is Parameter.empty
        and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        and (place >= len(call.positional) or p.kind is Parameter.KEYWORD_ONLY)
    ]
    return f"nothing is given for {' and '.join(rest)}; give it a default" if rest else ""


READER = FunctionCall(("path", "data"))
EVALUATOR = FunctionCall(("engine", "inputs"))
# Transformers' and TRL's `compute_loss_func`
LOSS = FunctionCall(("outputs", "labels"), ("num_items_in_batch",))


@dataclass(frozen=True)
class RewardCall:
    """The two calls of a reward: ours, `(completions, records)`, and TRL's, by name.

    A function with `records` is ours. Any other is called as TRL calls it, with those of TRL's arguments and of the
    rows' fields that it takes: https://huggingface.co/docs/trl/grpo_trainer#using-a-custom-reward-function
    """

    awaits: ClassVar[bool] = True

    def problem(self, signature: Signature) -> str | None:
        """Why neither call fits; whether a parameter is a field of the rows can't be known here."""
        if takes_records(signature):
            return None
        kinds = [p.kind for p in signature.parameters.values()]
        said = f"its parameters are {signature}"
        if Parameter.POSITIONAL_ONLY in kinds:
            return f"{said}, and those before `/` can't be passed by name; {REWARD_WAYS}"
        if Parameter.VAR_KEYWORD not in kinds and not {"completions", "completion_ids"} & signature.parameters.keys():
            return f"{said}: it takes no completions; {REWARD_WAYS}"
        return None


REWARD = RewardCall()
OUR_REWARD = ("completions", "records")
# What TRL passes by name beside the columns of the rows; and the columns that it never passes
TRL_REWARD = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
NO_COLUMNS = ("prompt", "completion", *TRL_REWARD)
REWARD_WAYS = "write (completions, records), or TRL's (prompts, completions, **kwargs) with fields of the rows by name"


def named_parameters(signature: Signature) -> dict[str, bool]:
    """The parameters that can be passed by name, each with whether it must be."""
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return {n: p.default is Parameter.empty for n, p in signature.parameters.items() if p.kind in by_name}


def takes_records(signature: Signature) -> bool:
    """Whether a reward's signature is ours."""
    named = named_parameters(signature)
    return "records" in named and "prompts" not in named and {n for n, must in named.items() if must} <= {*OUR_REWARD}


def field_problem(signature: Signature, fields: tuple[str, ...]) -> str | None:
    """What is wrong with the parameters of a reward, once the fields of the rows are known.

    Args:
        signature: The reward's.
        fields: Names of the fields of all rows.
    """
    if takes_records(signature):
        return None
    must = [name for name, required in named_parameters(signature).items() if required]
    said = f"its parameters are {signature}"
    extra = [name for name in must if name not in OUR_REWARD]
    if extra and "records" in must and "prompts" not in must and "records" not in fields:
        return (
            f"{said}: beside completions and records, nothing is given for {' and '.join(extra)}; write (completions, "
            f"records) and take it from each record's row, record.row[{extra[0]!r}], or give it a default"
        )
    unknown = [name for name in must if name not in TRL_REWARD and (name not in fields or name in NO_COLUMNS)]
    if not unknown:
        return None
    name = unknown[0]
    hint = f" TRL names it {name}s." if f"{name}s" in TRL_REWARD else ""
    return (
        f"{said}: {name} is neither an argument of TRL's ({', '.join(TRL_REWARD)}) nor a field of the rows, which "
        f"have: {', '.join(fields) or 'none'}.{hint} Rename it, give it a default, or {REWARD_WAYS}"
    )
