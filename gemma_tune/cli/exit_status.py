"""The exit status of a command, and its one message in place of a traceback."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gemma_tune.cli import compose
from gemma_tune.errors import RunError, UserError, first_line, quoted
from gemma_tune.process_failures import announce_stop, quiet, speaks
from gemma_tune.processes import failure_of_others, is_main_process, world
from gemma_tune.run.stopping import STOPPED, Stopped


def print_message(message: str, status: int) -> None:
    """Says on stderr why the command ends; after Ctrl-C the terminal has written `^C` at the end of a line."""
    begin = "\n" if status in STOPPED else ""
    print(f"{begin}gemma_tune: {message}", file=sys.stderr)


def exit_status(work: Callable[[], None], say: Callable[[str, int], None] = print_message) -> int:
    """Does the work of a command.

    Args:
        work: What the command does.
        say: Called with the message and the exit status where it ends early.

    Returns:
        0; 2 after a user's mistake; 1 after a run that failed; 130 after Ctrl-C, 143 after SIGTERM and SIGHUP; 141
        where nobody reads the output any more. Any other error goes on as it is.
    """
    try:
        with quiet():
            work()
    except UserError as error:
        return _ends(say, str(error), 2)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        return _ends(say, str(compose.as_user_error(error)), 2)
    except RunError as error:
        return _ends(say, str(error), 1)
    except KeyboardInterrupt as error:
        code = error.code if isinstance(error, Stopped) else 130
        announce_stop()
        if is_main_process() and failure_of_others() is None:  # it knows how to go on; no failure for the others
            say(f"interrupted. {error}".rstrip(), code)
        return code
    except BrokenPipeError:
        if not _is_read(sys.stdout.fileno()):  # the reader, `head` for example, has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _ends(say, "nobody reads the output any more.", 128 + signal.SIGPIPE)
        raise
    except PermissionError as error:
        return _ends(say, f"{error.filename}: you have no right to read or write this.", 2)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return _ends(say, f"{quoted(error.filename)}: this can't be opened ({error.strerror}).", 2)
    except Exception as error:
        if world() == 1:
            raise
        message = f"{type(error).__name__}: {first_line(error)}"
        if speaks(message):  # else it is what another one's end has led to
            traceback.print_exc()
            say(message, 1)
        return 1
    return 0


def _ends(say: Callable[[str, int], None], message: str, status: int) -> int:
    """The status; of several processes the first one that fails says why, and the others end with it."""
    if speaks(message):
        say(message, status)
    return status


def _is_read(pipe: int) -> bool:
    """Whether a pipe still has a reader."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
