"""The devices of this machine as `--targets` names them, asked before anything here holds them."""

from jaxlean.cost.hardware import Device, of_kind
from jaxlean.errors import ConfigError
from jaxlean.run.devices import look


def here(file: str | None) -> tuple[Device | None, int]:
    """What the table knows of a device of this machine, and how many there are; None where it knows nothing.

    Args:
        file: the user's hardware table.
    """
    found = look()
    return (None, 1) if found is None else (of_kind(found.kind, file), found.num)


def target_of(device: Device | None, num_devices: int, *, why: str, fix: str) -> str:
    """The target of these devices.

    Args:
        device, num_devices: as of `here`.
        why: what it is wanted for, for the message.
        fix: what to do where it is not known.

    Raises:
        ConfigError: the table does not know them, or it is a TPU, whose grid is not known before a run.
    """
    if device is None or device.target is None:
        raise ConfigError(f"{why}? The hardware table does not know what is here", fix=fix)
    if device.platform == "tpu":
        raise ConfigError(f"{why}? A TPU's grid is not known before the run", fix=fix)
    return device.target if device.platform == "cpu" else f"{device.target}:{num_devices}"
