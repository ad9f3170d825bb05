"""A conversation at the terminal: turns, commands, and results of the calls that the model makes."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from typing import Any

from gemma_tune.chat.calls import Call
from gemma_tune.chat.render import Messages, Tools
from gemma_tune.chat_cli.responder import Responder, note
from gemma_tune.data.prompts import user_message
from gemma_tune.data.records import BadRow
from gemma_tune.errors import UserError
from gemma_tune.validation.suggest import did_you_mean

COMMANDS = {
    "/new": "forget the conversation and begin another one",
    "/help": "show this list",
    "/quit": "end (so does Ctrl-D; Ctrl-C stops an answer)",
}


def ask_terminal(prompt: str) -> str:
    """A line from the terminal, with readline's keys where answers go there, too.

    Raises:
        EOFError: Ctrl-D.
        KeyboardInterrupt: Ctrl-C.
    """
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() uses it once it is imported
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


class _Forget(Exception):
    """The person wants another conversation."""


class Conversation:
    """A conversation in the terminal, kept whole until `/new`.

    Args:
        voice: Who answers.
        opening: What stands before the first turn: a system text, or nothing.
        tools: Function schemas, or None.
        ask: Gives the next line for a prompt; ends with EOFError or KeyboardInterrupt.
    """

    def __init__(
        self, voice: Responder, opening: Messages, tools: Tools, ask: Callable[[str], str] = ask_terminal
    ) -> None:
        self._voice = voice
        self._opening = opening
        self._tools = tools
        self._ask = ask
        self._calls: list[Call] = []
        self._rows: list[dict[str, Any]] = []
        self.messages = [*opening]

    def run(self) -> list[dict[str, Any]]:
        """Talks until the person ends it; the rows of all answers."""
        while True:
            try:
                turn = self._turn()
            except _Forget:
                self.messages, self._calls = [*self._opening], []
                note("(a new conversation)")
                continue
            except BadRow as error:
                note(f"({error})")
                continue
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return self._rows
            try:
                self._answer(turn)
            except UserError as error:
                note(f"({error} Your turn is forgotten; /new begins another conversation.)")
            except KeyboardInterrupt:
                note("(stopped; your turn is forgotten)")

    def _answer(self, turn: Messages) -> None:
        asked = [*self.messages, *turn]
        answer = self._voice.answer(asked, self._tools, "the conversation", stoppable=True)
        self._rows.append(answer.row(asked))
        if answer.said or answer.stopped:
            self.messages, self._calls = [*asked, answer.message()], answer.calls
        else:
            note("(nothing was said; your turn is forgotten)")

    def _turn(self) -> Messages:
        """The person's side: results of the calls just made, or what they say."""
        results: Messages = []
        for call in self._calls:
            line = self._line(f"result of {call.name}> ")
            if not line:
                break
            results.append(user_message(line, "this result", "tool"))
        if results:
            return results
        self._calls = []
        while not (line := self._line("you> ")):
            pass
        return [user_message(line, "this message")]

    def _line(self, prompt: str) -> str:
        """A line that is no command."""
        while True:
            line = self._ask(prompt).strip()
            if not re.fullmatch(r"/\w+", line):  # /usr/bin is none
                return line
            if line == "/quit":
                raise EOFError
            if line == "/new":
                raise _Forget
            if line != "/help":
                note(f"(there is no command {line}.{did_you_mean(line, COMMANDS)})")
            for name, meaning in COMMANDS.items():
                note(f"  {name}  {meaning}")
