"""The kernels that this CPU has for plain weights, so that tests go through all of them and not the best alone."""

from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, KERNEL_CHOICES, Library, load_library

# What `--kernels` names, and what a CPU may have besides: wide vectors without VNNI.
_LIMITS = {**KERNEL_CHOICES, "avx512-without-vnni": (INSTRUCTION_SETS.index("avx512"), False)}


def library_of(choice: str) -> Library:
    """Return a library of its own that uses nothing beyond a choice, and whose threads no other test changes."""
    level, has_vnni = _LIMITS[choice]
    return Library(library_path(), level, has_vnni=has_vnni)


def plain_choices() -> list[str]:
    """Return the choices that multiply plain weights here, each by other kernels than the others."""
    if load_library() is None:
        return []
    chosen: dict[tuple[object, ...], str] = {}
    for choice in _LIMITS:
        library = library_of(choice)
        kernels = (library.plain_kernel(16, is_int8=False), library.plain_kernel(16, is_int8=True))
        if library.has_plain_linear:
            chosen.setdefault(kernels, choice)
    return list(chosen.values())


def decoder_choices() -> list[str]:
    """Return the least and the best choice that run whole layers here: they are compiled for AVX2 and for AVX-512."""
    choices = [choice for choice in plain_choices() if choice in KERNEL_CHOICES]
    return sorted({choices[0], choices[-1]}) if choices else []
