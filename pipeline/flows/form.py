"""The parameters of a flow from a pydantic model, for Prefect's form; errors as users read them."""

import inspect
from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, ValidationError

from lasr.errors import UserError, of_machine
from lasr.flags import without_none


def signature_of(model: type[BaseModel], without: Collection[str] = ()) -> inspect.Signature:
    """The fields of a model as parameters of a flow, with their bounds.

    A field that may be None has the type that it has otherwise: the form would show another one,
    "Property is type None". Left out, it is None.
    """
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[without_none(field.annotation), field],
                default=inspect.Parameter.empty if field.is_required() else field.default,
            )
            for name, field in model.model_fields.items()
            if name not in without
        ]
    )


def described(model: type[BaseModel], about: str) -> str:
    """A docstring with the descriptions of the fields, where Prefect's form reads them."""
    fields = model.model_fields.items()
    return "\n".join([about, "", "Args:", *(f"    {name}: {f.description}" for name, f in fields)])


def user_error(error: Exception) -> UserError:
    """An error of the user or of the machine as the user reads it; another one is raised again."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return of_machine(error)
    if not isinstance(error, ValidationError):
        raise error
    wrong = [(".".join(map(str, e["loc"])) or "parameters", e["msg"]) for e in error.errors()]
    return UserError(", ".join(f"{field}: {message}" for field, message in wrong))
