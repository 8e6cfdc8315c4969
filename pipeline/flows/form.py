"""The parameters of a flow from a pydantic model, for Prefect's form; errors as users read them."""

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

from pydantic import BaseModel, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lasr.errors import UserError, of_machine


class NeverNull:
    """Keeps null out of a type's JSON schema: the form shows it as "Property is type None"."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
        return schema | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})


def signature_of(model: type[BaseModel], without: Collection[str] = ()) -> inspect.Signature:
    """The fields of a model as parameters of a flow, with their bounds.

    In the form, a field that may be None has the type that it has otherwise; left out, it is None.
    """
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[field.annotation, field, NeverNull()],
                default=inspect.Parameter.empty if field.is_required() else field.default,
            )
            for name, field in model.model_fields.items()
            if name not in without
        ]
    )


def shaped(
    function: Callable[..., Any], model: type[BaseModel], about: str, without: Collection[str] = ()
) -> Callable[..., Any]:
    """The function of a flow with the parameters of a model.

    It keeps a name of its own, beside that of the flow: by that name pickles for other machines
    find the function.
    """
    function.__signature__ = signature_of(model, without)  # type: ignore[attr-defined]
    function.__doc__ = described(model, about)
    return function


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
