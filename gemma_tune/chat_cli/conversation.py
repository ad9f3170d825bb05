"""A conversation in the terminal: turns, commands, and results for the model's tool calls."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from gemma_tune.chat.calls import Call
from gemma_tune.chat.render import Messages, Tools
from gemma_tune.chat_cli.responder import Responder, note
from gemma_tune.data.prompts import medium_part, user_message
from gemma_tune.data.records import BadRow
from gemma_tune.errors import UserError
from gemma_tune.media.kinds import WORDS, shown_name
from gemma_tune.validation.suggest import did_you_mean

COMMANDS = {
    **{f"/{kind} FILE": f"put {what} before your next message (several are allowed)" for kind, what in WORDS.items()},
    "/new": "forget the conversation and begin another one",
    "/help": "show this list",
    "/quit": "end (so does Ctrl-D; Ctrl-C stops an answer)",
}
_NAMES = [name.split()[0] for name in COMMANDS]


def ask_terminal(prompt: str) -> str:
    """Reads a line from the terminal, with readline's keys if standard output is the terminal, too.

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
    """The user wants a new conversation."""


class Conversation:
    """A conversation in the terminal, kept until `/new`.

    Args:
        responder: Generates the answers.
        opening: Messages before the first turn: a system text, or none.
        tools: Function schemas, or None.
        ask: Returns the next line for a prompt; raises EOFError or KeyboardInterrupt at the end.
    """

    def __init__(
        self, responder: Responder, opening: Messages, tools: Tools, ask: Callable[[str], str] = ask_terminal
    ) -> None:
        self._responder = responder
        self._opening = opening
        self._tools = tools
        self._ask = ask
        self._calls: list[Call] = []
        self._media: list[dict[str, str]] = []  # of the next message
        self._rows: list[dict[str, Any]] = []
        self.messages = [*opening]

    def run(self) -> list[dict[str, Any]]:
        """Runs until the user ends it; returns the rows of all answers."""
        while True:
            try:
                turn = self._turn()
            except _Forget:
                self.messages, self._calls, self._media = [*self._opening], [], []
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
        answer = self._responder.answer(asked, self._tools, "the conversation", stoppable=True)
        self._rows.append(answer.row(asked))
        if answer.said or answer.stopped:
            self.messages, self._calls = [*asked, answer.message()], answer.calls
        else:
            note("(nothing was said; your turn is forgotten)")

    def _turn(self) -> Messages:
        """The user's next messages: results for the calls just made, or a message."""
        results: Messages = []
        for call in self._calls:
            line = self._line(f"result of {call.name}> ")
            if not line:
                break
            results.append(user_message(line, "this result", "tool"))
        if results:
            return results
        self._calls = []
        while not (line := self._line("you> ")) and not self._media:  # media alone are a message, too
            pass
        message = user_message(line, "this message", media=self._media)
        self._media = []
        return [message]

    def _line(self, prompt: str) -> str:
        """Reads lines until one isn't a command, and returns it."""
        while True:
            line = self._ask(prompt).strip()
            name, _, file = line.partition(" ")
            if name[1:] in WORDS and name.startswith("/"):
                self._attach(name[1:], file.strip())
                continue
            if not re.fullmatch(r"/\w+", line):  # /usr/bin is not a command
                return line
            if line == "/quit":
                raise EOFError
            if line == "/new":
                raise _Forget
            if line != "/help":
                note(f"(there is no command {line}.{did_you_mean(line, _NAMES)})")
            for name, meaning in COMMANDS.items():
                if name[1:].partition(" ")[0] not in {*WORDS} - {*self._responder.kinds}:
                    note(f"  {name:11}  {meaning}")

    def _attach(self, kind: str, file: str) -> None:
        """Puts a medium before the next message, and says how many tokens it has; or why it can't."""
        try:
            self._responder.check_kind(kind)
            if not file:
                raise UserError(f"name the file: /{kind} FILE")
            part = medium_part(kind, _unquoted(file))
            tokens = self._responder.media_tokens(part)
        except (BadRow, UserError) as error:
            note(f"({error})")
            return
        self._media.append(part)
        note(f"({kind} {shown_name(part[kind])}, {tokens:,} tokens: it stands before your next message)")


def _unquoted(name: str) -> str:
    """The name of a file as a terminal has it that a file is dropped on: in quotes, or its blanks after backslashes."""
    if os.path.exists(name):
        return name
    with contextlib.suppress(ValueError):
        if len(words := shlex.split(name)) == 1:
            return words[0]
    return name
