"""The one exception of this package.

Whatever goes wrong below (PyNaCl raises several unrelated types, among them a plain
ValueError for a ciphertext shorter than its tag) leaves this package as CryptoError.
"""


class CryptoError(Exception):
    """Bytes did not prove what they claimed, or were not of the form expected."""
