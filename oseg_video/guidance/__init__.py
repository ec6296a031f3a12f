"""The mathematics of guidance, and its methods as data. Importing a method imports no torch."""
