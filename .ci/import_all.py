"""Imports every module of the package, and lists those that an optional package keeps out."""

import importlib
import pkgutil

import fmerge

OPTIONAL = {"h5py": "the extra hdf5", "triton": "Triton"}
"""Packages that may be missing, and what brings them."""

if __name__ == "__main__":
    names = [module.name for module in pkgutil.walk_packages(fmerge.__path__, "fmerge.")]
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            print(f"{name}: needs {OPTIONAL[error.name]}")
    print(f"imported {len(names)} modules of fmerge {fmerge.__version__}")
