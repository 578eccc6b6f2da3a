"""Objects named on the command line as package.module:callable."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError, LightenError


def call(target: str) -> Any:
    """The result of a callable named "package.module:callable". Raises InputError naming what is wrong, also where it ends the
    program.
    """
    module_name, _, attribute = target.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module_name), attribute)
        return found()
    except ModuleNotFoundError as error:
        raise InputError(f"{target}: {error}.", hint="Run it from the folder that holds the package.") from error
    except LightenError:
        raise
    except SystemExit as stop:
        raise InputError(f"{target} ended the program: exit {stop.code}.") from stop
    except Exception as error:  # the user's code raises what it likes
        raise InputError(f"{target} failed: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(folder)
