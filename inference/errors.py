"""Errors of trained models, one class for each thing a caller can do about it."""


class ModelError(Exception):
    """Root of the package's errors."""


class TorchFileError(ModelError):
    """A .pth file that is damaged, or holds more than names and tensors; give another file."""


class BackboneError(ModelError):
    """A backbone that cannot be built: unknown name, or weights missing or not its own."""


class EngineError(ModelError):
    """The device or engine that was asked for is not on this machine; ask for another."""


class ModelStoreError(ModelError):
    """The model store cannot be read or written; the message says what and why."""


class UnknownVersionError(ModelStoreError):
    """There is no such version or record; ask for another."""


class EarlierReleaseError(ModelStoreError):
    """A version that an earlier release trained cannot be run any more; a training is needed."""


class VersionInUseError(ModelStoreError):
    """A version that is still needed cannot be deleted; the message says for what."""
