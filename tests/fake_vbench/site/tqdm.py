class tqdm:
    def __init__(self, iterable=None, **options):
        self.iterable = iterable

    def __iter__(self):
        yield from self.iterable
