"""The key of a home: made once, opened at every start, named without being opened.

Between `home` (files and modes) and `crypto.identity` (what is in them); the passphrase comes from the
environment or from the person, never from the command line, where every process of the machine can read it.
"""

import os
from pathlib import Path

import click

from crypto.errors import CryptoError
from crypto.identity import Identity, PublicKey, read_key_header
from gossip.dht.ids import NodeId, node_id
from p2pnode import home as homes
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import PASSPHRASE_VARIABLE, Home


def make_identity(home: Home, *, passphrase: str | None) -> tuple[PublicKey, NodeId]:
    """Make the key of `home`, sealed under `passphrase` if there is one.

    Raises:
        UserError: HOME; there is a key already, or the passphrase cannot be used.
    """
    identity = Identity.generate(os.urandom)
    try:
        data = identity.seal(passphrase, os.urandom)
    except CryptoError as error:
        raise UserError(ExitCode.HOME, f"{home.key}: {error}") from error
    _begin_numbers(home)
    homes.write_key(home, data)
    return identity.public_key, node_id(identity.public_key)


def _begin_numbers(home: Home) -> None:
    """Write down, before there is a key, that its first sequence number is 1: a key without its numbers has lost them.

    Raises:
        UserError: HOME; the state cannot be written.
    """
    # Imported here: `p2pnode id` must stay fast.
    from gossip import persisted
    from p2pnode.store import SqliteStore

    store = SqliteStore(home.state)
    try:
        if persisted.CEILING_KEY not in store.load():
            store.put([persisted.ceiling_entry(1)], fsync=True)
    finally:
        store.close()


def claimed_identity(home: Home) -> tuple[PublicKey, NodeId]:
    """Who the key file says we are, without its passphrase.

    Raises:
        UserError: HOME.
    """
    try:
        key = read_key_header(homes.read_key(home)).public_key
    except CryptoError as error:
        raise UserError(ExitCode.HOME, f"{home.key}: {error}") from error
    return key, node_id(key)


def open_identity(home: Home) -> Identity:
    """The identity of `home`. Asks for the passphrase if the key needs one and the environment has none.

    Raises:
        UserError: HOME.
    """
    data = homes.read_key(home)
    try:
        passphrase = _passphrase(home.key) if read_key_header(data).encrypted else None
        return Identity.unseal(data, passphrase)
    except CryptoError as error:
        raise UserError(ExitCode.HOME, f"{home.key}: {error}") from error


def new_passphrase(home: Home) -> str:
    """The passphrase for a key that is to be made: from the environment, else from the person, who types it twice.

    Raises:
        UserError: HOME; there is none in the environment and no terminal to ask on.
    """
    known = os.environ.get(PASSPHRASE_VARIABLE)
    if known:
        return known
    if not os.isatty(0):
        came = "no passphrase" if known is None else "an empty one"
        raise UserError(
            ExitCode.HOME,
            f"{home.key}: expected a passphrase in {PASSPHRASE_VARIABLE} or a terminal to ask on, got {came} and "
            f"no terminal; set {PASSPHRASE_VARIABLE}, or leave out --encrypt.",
        )
    answer: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return answer


def _passphrase(key: Path) -> str:
    known = os.environ.get(PASSPHRASE_VARIABLE)
    if known is not None:
        return known
    if not os.isatty(0):
        raise UserError(
            ExitCode.HOME,
            f"{key}: the key is encrypted and nobody is there to ask; set {PASSPHRASE_VARIABLE}.",
        )
    answer: str = click.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return answer
