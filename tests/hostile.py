"""Pickles that do harm."""


class Call:
    """Unpickling it calls the function; so does one that stands where a function is expected."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        raise NotImplementedError("only for pickle, which wants a callable")
