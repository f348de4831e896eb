"""What processes that run the same passes decide together."""


class Alone:
    """What one process decides by itself; ``Shards`` asks all of them."""

    def any(self, flag: bool) -> bool:
        """Tells whether any process says so.

        Args:
            flag: What this one says.

        Returns:
            Whether one does.
        """
        return flag

    def most(self, number: int) -> int:
        """Finds the largest number.

        Args:
            number: That of this process.

        Returns:
            That of all.
        """
        return number

    def union(self, names: set[str]) -> set[str]:
        """Unites names.

        Args:
            names: Those of this process, of parameters.

        Returns:
            Those of all.
        """
        return names


ALONE = Alone()
