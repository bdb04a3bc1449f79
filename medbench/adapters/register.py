"""Makes the method known to `peft`, so that its own functions build, save and load it.

peft keeps its methods in an enumeration and refuses names that are not in it. The enumeration is extended
in memory; nothing of peft's is replaced.
"""

from enum import Enum

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from medbench.adapters.config import PEFT_NAME, PREFIX, ExpertLoraConfig
from medbench.adapters.model import ExpertLoraModel


def extend_str_enum(enum: type[Enum], name: str) -> None:
    """Add the member `name = "name"` to an enumeration of strings, unless it is there (Python 3.11 to 3.13).

    Args:
        enum: A subclass of `str` and `Enum`.
        name: Name and value of the new member.
    """
    if name in enum._member_map_:
        return
    member = str.__new__(enum, name)  # type: ignore[type-var]
    member._name_ = name
    member._value_ = name
    member.__objclass__ = enum  # type: ignore[attr-defined]
    member._sort_order_ = len(enum._member_names_)  # type: ignore[attr-defined]
    # Past EnumType.__setattr__, which is there to stop accidents.
    type.__setattr__(enum, name, member)
    enum._member_map_[name] = member
    enum._value2member_map_[name] = member
    enum._member_names_.append(name)
    hashable = getattr(enum, "_hashable_values_", None)  # `value in enum` looks here from Python 3.13 on
    if hashable is not None:
        hashable.append(name)


def register() -> None:
    """Register the method with peft; calling it again does nothing."""
    extend_str_enum(PeftType, PEFT_NAME.upper())
    if PeftType(PEFT_NAME.upper()) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=PEFT_NAME, config_cls=ExpertLoraConfig, model_cls=ExpertLoraModel, prefix=PREFIX)
